#!/usr/bin/env bash
# 2WikiMultihopQA with Llama-3-8B-Instruct: the paper's table 1, four ways of answering.
# Assumes dev.json and id_aliases.json in data/2wikimultihopqa and the index wiki (README, "The paper's data sets").
# Costs 1500 questions and 4500 passages (5 data types x 300 questions x 3); 63.9 GB of adapters (14.2 MB each);
# a GPU that holds the model (16.1 GB of weights in bfloat16).
set -euo pipefail
cd "$(dirname "$0")/.."

model=llama3-8b-instruct
dataset=2wikimultihopqa
epochs=1
max_new_tokens=128
mode=--with_cot
. configs/paper/stages.sh
