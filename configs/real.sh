#!/usr/bin/env bash
# Real questions and a real model, offline: HotpotQA, 2WikiMultihopQA and PopQA with SmolLM2-135M-Instruct.
# `make real` fetches the model and runs it. Started again after a stop, with the same variables, it goes on
# where it was.
# Choose the rate:  SPLIT=dev RATES="1e-3 2e-3 4e-3" bash configs/real.sh
set -euo pipefail
cd "$(dirname "$0")/.."

model=models/SmolLM2-135M-Instruct.Q4_1.gguf
questions=${QUESTIONS:-16}  # to report, of each data set; 100 take about six times as long
dev=${DEV:-40}              # to choose the rate on
split=${SPLIT:-test}
rates=${RATES:-2e-3}        # chosen on dev questions of HotpotQA (docs/real/questions.md)
root="${PRAG_ROOT:-.}"

answer() {  # METHODS FLAGS...
    local methods=$1
    shift
    for method in $methods; do
        python src/inference.py --inference_method $method --max_new_tokens 20 "$@"
    done
}

for dataset in ${DATASETS:-hotpotqa 2wikimultihopqa popqa}; do
    folder=data/$dataset
    if [ ! -d $folder ] && [ -d ../shared/data/$dataset ]; then
        folder=../shared/data/$dataset
    fi
    # 1. The corpus: what the data set shows beside its questions; PopQA shows nothing, it needs one
    #    of your own (id, text, title), such as Wikipedia's leads
    if [ $dataset = popqa ]; then
        if [ ! -f $folder/corpus.tsv ]; then
            echo "popqa is left out: there is no $folder/corpus.tsv"
            continue
        fi
        corpus="--data_path $folder/corpus.tsv"
    else
        corpus="--from_contexts $folder"
    fi
    if [ ! -d "$root/index/$dataset" ]; then
        python prep_elastic.py $corpus --index_name $dataset
    fi
    python benchmarks/real_questions.py --dataset $dataset --data_path $folder --index_name $dataset \
        --dev $dev --test $questions

    # 2. The stages, adapters alone and beside two neighbours
    data="--model_name $model --prompts small --dataset real_$dataset --data_type $split"
    python src/augment.py $data --data_path "$root/data/real/$dataset.json" --index_name $dataset \
        --max_new_tokens 240
    for rate in $rates; do  # without rewrites: those of so small a model keep too few facts
        alone="--learning_rate $rate --max_length 200 --augment_parts qa"
        beside="$alone --num_train_epochs 2 --schedule halving --neighbours 2"
        python src/encode.py $data $alone
        python src/encode.py $data $beside --index_name $dataset
        answer "closed_book icl prag combine" $data $alone
        answer "prag combine" $data $beside
        if [ $split = dev ]; then
            continue
        fi

        # 3. Format or facts: the mean of all adapters, and those of another question
        for control in average others; do
            python src/encode.py $data $alone --adapters $control
            python src/encode.py $data $beside --index_name $dataset --adapters $control
            answer "prag combine" $data $alone --adapters $control
            answer "prag combine" $data $beside --adapters $control
        done
    done
done
python src/report.py --model_name $model
