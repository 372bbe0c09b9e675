#!/usr/bin/env bash
# What a score of prag is made of: knowledge, format, robustness and cost on one page (docs/evidence.md).
#   bash configs/evidence.sh                       the demo: needs nothing but the repository
#   bash configs/evidence.sh DATASET MODEL         after stage 1 of that data set
# Variables: SPLIT (data type), SAMPLE, PROMPTS, TRAIN (flags of encode.py), TOKENS, INDEX (of neighbours),
# LOCALITY (JSON file of other questions), JUDGE (flags of judge.py). Started again after a stop, it goes on.
set -euo pipefail
cd "$(dirname "$0")/.."

dataset=${1:-demo}
model=${2:-data/demo/demo-model}
split=${SPLIT:-test}
index=${INDEX:-$dataset}
root="${PRAG_ROOT:-.}"
if [ $dataset = demo ]; then  # as configs/demo.sh
    prompts=${PROMPTS:-demo} tokens=${TOKENS:-12} locality=${LOCALITY-data/demo/warmup.json}
    train=${TRAIN:---learning_rate 4e-3 --num_train_epochs 1}
else
    prompts=${PROMPTS:-default} tokens=${TOKENS:-20} locality=${LOCALITY-} train=${TRAIN-}
fi
common="--model_name $model --prompts $prompts --dataset $dataset --sample ${SAMPLE:--1}"
data="$common --data_type $split"

answer() {  # METHODS FLAGS...
    local methods=$1
    shift
    for method in $methods; do
        python src/inference.py --inference_method $method --max_new_tokens $tokens $train "$@"
    done
}

# 1. The plain methods
if [ $dataset = demo ]; then
    if [ ! -d "$root/index/demo" ]; then
        python prep_elastic.py --data_path data/demo/corpus.tsv --index_name demo
    fi
    python src/augment.py $data --data_path data/demo/questions.json --index_name demo \
        --max_new_tokens 200 --temperature 0.3 --batch_size 64
fi
python src/encode.py $data $train --index_name $index
answer "closed_book icl prag combine" $data

# 2. Knowledge: without the passages that hold the answer; with passages that say something false
#    (not beside neighbours, which are true ones; not if all answers are yes or no)
answer "icl prag combine" $data --leave_out gold
if [[ $train != *--neighbours* ]] \
    && python benchmarks/counterfactual.py --dataset $dataset --data_type $split; then
    python src/encode.py $common --data_type ${split}_counterfactual $train --index_name $index
    answer "closed_book icl prag combine" $common --data_type ${split}_counterfactual
fi

# 3. Format: adapters that know nothing of the question's passages
for adapters in others average random; do
    python src/encode.py $data $train --index_name $index --adapters $adapters
    answer prag $data --adapters $adapters
done

# 4. Robustness: noise among the passages; other questions with each question's adapters
for place in first last all; do
    answer "icl prag combine" $data --noise $place
done
if [ -n "$locality" ]; then
    answer "closed_book prag" $data --locality "$locality"
fi

# 5. The page
if [ -n "${JUDGE-}" ]; then
    python src/judge.py --dataset $dataset --answers_of $model $JUDGE
fi
python src/report.py --dataset $dataset --model_name $model --evidence
