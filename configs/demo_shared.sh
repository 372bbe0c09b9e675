#!/usr/bin/env bash
# encode.py --shared on the demo: F1 against storage for M adapters in the pool (docs/shared.md).
# SPLIT, SAMPLE, SEEDS, POOLS and RATE in the environment choose others; the defaults take about 40
# minutes on one core. Adapters alone and beside neighbours: configs/demo_neighbours.sh.
set -euo pipefail
cd "$(dirname "$0")/.."

root="${PRAG_ROOT:-.}/effect/shared"
model=${MODEL:-data/demo/demo-model}
pools=${POOLS:-4 8 16 32}
common="--model_name $model --augment_model data/demo/demo-model --prompts ${PROMPTS:-demo} --dataset demo"
data="$common --data_type ${SPLIT:-test} --sample ${SAMPLE:--1}"

for seed in ${SEEDS:-0 1 2}; do
    export PRAG_ROOT="$root/seed=$seed"
    if [ ! -d "$PRAG_ROOT/index/demo" ]; then
        python prep_elastic.py --data_path data/demo/corpus.tsv --index_name demo
    fi
    python src/augment.py --model_name data/demo/demo-model --prompts demo --dataset demo \
        --data_type ${SPLIT:-test} --sample ${SAMPLE:--1} --data_path data/demo/questions.json \
        --index_name demo --max_new_tokens 200 --temperature 0.3 --batch_size 64 --seed $seed
    for pool in $pools; do
        train="--learning_rate ${RATE:-4e-3} --num_train_epochs 3 --schedule halving --shared $pool --seed $seed"
        python src/encode.py $data $train
        for method in prag combine; do
            python src/inference.py $data $train --inference_method $method --max_new_tokens 12 --merge mean
        done
        # the control: the right passage's weights are left out
        python src/inference.py $data $train --inference_method prag --max_new_tokens 12 --merge mean --leave_out gold
    done
    python src/adapters.py list
    python src/report.py --dataset demo
done
