#!/usr/bin/env bash
# PopQA with Qwen2.5-1.5B-Instruct: the paper's table 1, four ways of answering.
# Assumes popQA.tsv in data/popqa and the index wiki (README, "The paper's data sets").
# Costs 300 questions and 900 passages (1 data type x 300 questions x 3); 6.4 GB of adapters (7.1 MB each);
# a GPU that holds the model (3.1 GB of weights in bfloat16).
set -euo pipefail
cd "$(dirname "$0")/.."

model=qwen2.5-1.5b-instruct
dataset=popqa
epochs=2
max_new_tokens=20
mode=
. configs/paper/stages.sh
