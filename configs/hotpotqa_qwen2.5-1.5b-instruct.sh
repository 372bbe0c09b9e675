#!/usr/bin/env bash
# HotpotQA with Qwen2.5-1.5B-Instruct: the paper's table 1, four ways of answering.
# Assumes hotpot_dev_distractor_v1.json in $data_path and the index $index (README, "The paper's data sets").
# Costs 900 questions and 2700 passages (3 data types x 300 questions x 3); 19.2 GB of adapters (7.1 MB each);
# a GPU that holds the model (3.1 GB of weights in bfloat16).
set -euo pipefail
cd "$(dirname "$0")/.."

model=qwen2.5-1.5b-instruct
dataset=hotpotqa
data_path=data/hotpotqa
index=wiki
engine=embedded         # or elasticsearch, with ELASTICSEARCH_URL set
sample=300              # questions of each data type
epochs=2
learning_rate=3e-4
max_new_tokens=128
methods=${METHODS:-closed_book icl prag combine}     # da_icl too, for the paper's DA-RAG
init_adapter=${INIT_ADAPTER:-random}                # warmup: see configs/reproduce_tables.sh
augment_parts=${AUGMENT_PARTS:-rewrite,qa}          # none, qa, rewrite: the paper's figure 3
augment_model=${AUGMENT_MODEL:-$model}              # another one: the paper's table 3

data="--dataset $dataset --sample $sample"
train="--lora_rank 2 --lora_alpha 32 --learning_rate $learning_rate --num_train_epochs $epochs --with_cot \
    --init_adapter $init_adapter --augment_parts $augment_parts --augment_model $augment_model"

python src/augment.py --model_name $augment_model $data --data_path $data_path --topk 3 \
    --engine $engine --index_name $index
python src/encode.py --model_name $model $data $train --per_device_train_batch_size 1
for method in $methods; do
    python src/inference.py --model_name $model $data $train --inference_method $method \
        --max_new_tokens $max_new_tokens
done
