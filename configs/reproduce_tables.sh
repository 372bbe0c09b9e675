#!/usr/bin/env bash
# Every experiment of the paper's tables 1 and 2, one after the other, and the report: 4 data sets with 3 models.
# Assumes the four data sets and the index "wiki" (README, "The paper's data sets").
# Costs 9,000 questions and 27,000 passages, about 230 GB of adapters; started again, it goes on.
# MODELS and DATASETS in the environment choose some of them:
#
#     DATASETS=popqa MODELS=llama3.2-1b-instruct bash configs/reproduce_tables.sh
set -euo pipefail
cd "$(dirname "$0")/.."

datasets=${DATASETS:-2wikimultihopqa hotpotqa popqa complexwebquestions}
models=${MODELS:-llama3.2-1b-instruct qwen2.5-1.5b-instruct llama3-8b-instruct}
export METHODS=${METHODS:-closed_book icl da_icl prag combine}

for model in $models; do
    for dataset in $datasets; do
        bash "configs/${dataset}_${model}.sh"
    done
done
python src/report.py
