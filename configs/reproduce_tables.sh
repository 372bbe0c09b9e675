#!/usr/bin/env bash
# The paper's experiments one after the other, and the report: 4 data sets with 3 models.
# Assumes the four data sets and the index "wiki" (README, "The paper's data sets").
# Costs, for "main" alone: 9,000 questions, 27,000 passages, about 230 GB of adapters; "warmup" as much again, "parts" three times.
# Started again after a stop, it goes on. The environment chooses what to run:
#
#     TABLES=main DATASETS=popqa MODELS=llama3.2-1b-instruct bash configs/reproduce_tables.sh
set -euo pipefail
cd "$(dirname "$0")/.."

datasets=${DATASETS:-2wikimultihopqa hotpotqa popqa complexwebquestions}
models=${MODELS:-llama3.2-1b-instruct qwen2.5-1.5b-instruct llama3-8b-instruct}
tables=${TABLES:-main warmup}       # more: "parts" (figure 3), "augmenter" (table 3)

experiments() {
    for model in $models; do
        for dataset in $datasets; do
            bash "configs/${dataset}_${model}.sh"
        done
    done
}

for table in $tables; do
    case $table in
    main)       # tables 1 and 2
        METHODS="closed_book icl da_icl prag combine" experiments ;;
    warmup)     # the table of the warm-up: every passage starts from a trained adapter
        for model in $models; do
            python src/get_warmup_data.py --model_name $model --sample 300
            case "$datasets" in *popqa* | *complexwebquestions*)
                python src/warmup_lora.py --model_name $model ;;
            esac
            case "$datasets" in *2wikimultihopqa* | *hotpotqa*)
                python src/warmup_lora.py --model_name $model --with_cot ;;
            esac
        done
        INIT_ADAPTER=warmup METHODS="prag combine" experiments ;;
    parts)      # figure 3: without rewrites, without question-answer pairs, without both
        for parts in qa rewrite none; do
            AUGMENT_PARTS=$parts METHODS=prag experiments
        done ;;
    augmenter)  # table 3: augmentation written by each of the models
        for augment_model in $models; do
            AUGMENT_MODEL=$augment_model METHODS="prag combine" experiments
        done ;;
    *)
        echo "error: there is no table '$table'; use main, warmup, parts, augmenter" >&2
        exit 2 ;;
    esac
done
python src/report.py
