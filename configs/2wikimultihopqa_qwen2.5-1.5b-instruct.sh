#!/usr/bin/env bash
# 2WikiMultihopQA with Qwen2.5-1.5B-Instruct: the paper's table 1, four ways of answering.
# Assumes dev.json and id_aliases.json in data/2wikimultihopqa and the index wiki (README, "The paper's data sets").
# Costs 1500 questions and 4500 passages (5 data types x 300 questions x 3); 31.9 GB of adapters (7.1 MB each);
# a GPU that holds the model (3.1 GB of weights in bfloat16).
set -euo pipefail
cd "$(dirname "$0")/.."

model=qwen2.5-1.5b-instruct
dataset=2wikimultihopqa
epochs=1
max_new_tokens=128
mode=--with_cot
. configs/paper/stages.sh
