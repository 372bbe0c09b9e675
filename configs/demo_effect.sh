#!/usr/bin/env bash
# Does knowledge move into the parameters? The demo's methods and controls with three seeds, and prag
# against learning rate and epochs on dev. Needs nothing but the repository; `make effect` runs it.
set -euo pipefail
cd "$(dirname "$0")/.."

model=data/demo/demo-model
split=${SPLIT:-test}
sample=${SAMPLE:--1}
seeds=${SEEDS:-0 1 2}   # of the augmentation's sampling and of the adapter that every passage starts from
learning_rate=2e-3      # chosen on dev, as are the epochs: see the sweep at the end
epochs=4
warmup_rate=3e-4        # chosen on dev, as is the passages' rate after a warm-up
warm_learning_rate=1e-3
sweep_rates=${SWEEP_RATES:-3e-4 1e-3 2e-3 4e-3}
sweep_epochs=${SWEEP_EPOCHS:-1 2 4 8}
root="${PRAG_ROOT:-.}/effect"

common="--model_name $model --prompts demo --dataset demo"
data="$common --data_type $split --sample $sample"
plain="--learning_rate $learning_rate --num_train_epochs $epochs"

index() {
    if [ ! -d "$PRAG_ROOT/index/demo" ]; then
        python prep_elastic.py --data_path data/demo/corpus.tsv --index_name demo
    fi
}
augment() {
    python src/augment.py --data_path data/demo/questions.json --index_name demo \
        --max_new_tokens 200 --temperature 0.3 --batch_size 64 "$@"
}
answer() {  # METHODS FLAGS...
    local methods=$1
    shift
    for method in $methods; do
        python src/inference.py --max_new_tokens 12 --inference_method $method "$@"
    done
}

for seed in $seeds; do
    own="$root/seed=$seed"

    # The methods, and the settings of the paper (for models 500 times larger)
    export PRAG_ROOT="$own"
    index
    augment $data --seed $seed
    python src/encode.py $data $plain --seed $seed
    answer "closed_book icl prag combine" $data $plain --seed $seed
    answer "prag combine" $data $plain --seed $seed --merge_topk 1
    answer "prag combine" $data $plain --seed $seed --merge_scale 0.5
    paper="--learning_rate 3e-4 --num_train_epochs 1 --seed $seed"
    python src/encode.py $data $paper
    answer "prag combine" $data $paper

    # Warm-up on dev's questions past the first 60: none is about an entity of the test split
    python src/get_warmup_data.py --dataset demo --data_path data/demo/questions.json --data_type dev \
        --sample 60 --seed $seed
    python src/warmup_lora.py --model_name $model --prompts demo --learning_rate $warmup_rate --seed $seed \
        --data "$own/data_aug/warmup/demo/direct.json"
    warm="--learning_rate $warm_learning_rate --num_train_epochs $epochs --init_adapter warmup --seed $seed"
    python src/encode.py $data $warm
    answer "prag combine" $data $warm
    answer "prag combine" $data $warm --merge base_once

    # Controls: untrained adapters, adapters of others' passages
    python benchmarks/effect_controls.py --control untrained --model_name $model --data_type $split $plain
    export PRAG_ROOT="$own/others"
    python benchmarks/effect_controls.py --control others --from_root "$own" --data_type $split --seed $seed
    python src/encode.py $data $plain --seed $seed
    answer "prag" $data $plain --seed $seed

    # One retrieved passage; the passages that hold the answer
    for variant in topk=1 golden; do
        export PRAG_ROOT="$own/$variant"
        if [ $variant = golden ]; then
            augment $data --seed $seed --engine golden
        else
            index
            augment $data --seed $seed --topk 1
        fi
        python src/encode.py $data $plain --seed $seed
        answer "icl prag combine" $data $plain --seed $seed
    done
done

# prag against rate and epochs, on dev
export PRAG_ROOT="$root/sweep"
index
augment $common --data_type dev
for rate in $sweep_rates; do
    for passes in $sweep_epochs; do
        train="--learning_rate $rate --num_train_epochs $passes"
        python src/encode.py $common --data_type dev $train
        answer "prag combine" $common --data_type dev $train
    done
done
answer "icl" $common --data_type dev $plain

python benchmarks/effect.py --root "$root" --data_type $split $plain --warm_learning_rate $warm_learning_rate
