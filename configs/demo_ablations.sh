#!/usr/bin/env bash
# The paper's baselines and ablations on the demo, and merging options; configs/demo.sh comes first.
# Needs nothing but the repository; about 10 minutes on 2 CPU cores. Results: docs/ablations.md
set -euo pipefail
cd "$(dirname "$0")/.."

model=data/demo/demo-model
split=${SPLIT:-test}    # dev: to choose settings; test: to report
sample=${SAMPLE:--1}
learning_rate=4e-3
epochs=1
merge_scale=0.5         # chosen on dev
warmup_rate=1e-3        # chosen on dev
warm_learning_rate=4e-3
root="${PRAG_ROOT:-.}"

data="--model_name $model --prompts demo --dataset demo --data_type $split --sample $sample"
train="--learning_rate $learning_rate --num_train_epochs $epochs"

answer() {
    python src/inference.py $data $train --max_new_tokens 12 --inference_method "$@"
}

answer da_icl

# The paper's rate and epochs, for models of 1 to 8 billion parameters
own=$train
train="--learning_rate 3e-4 --num_train_epochs 1"
python src/encode.py $data $train
answer prag
answer combine
train=$own

for method in prag combine; do
    answer $method --merge_topk 1
    answer $method --merge_scale $merge_scale
done

for parts in none rewrite qa; do
    python src/encode.py $data $train --augment_parts $parts
    answer prag --augment_parts $parts
    answer combine --augment_parts $parts
done

# Warm-up on questions about entities that the model has read about but was never asked about
python src/get_warmup_data.py --dataset demo --data_path data/demo/warmup.json --sample 0 --direct_records 2000
python src/warmup_lora.py --model_name $model --prompts demo --learning_rate $warmup_rate \
    --data "$root/data_aug/warmup/demo/direct.json"
train="--learning_rate $warm_learning_rate --num_train_epochs $epochs --init_adapter warmup"
python src/encode.py $data $train
for method in prag combine; do
    answer $method
    answer $method --merge base_once
done
python src/report.py --dataset demo
