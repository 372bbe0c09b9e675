#!/usr/bin/env bash
# HotpotQA with Llama-3.2-1B-Instruct: the paper's table 1, four ways of answering.
# Assumes hotpot_dev_distractor_v1.json in data/hotpotqa and the index wiki (README, "The paper's data sets").
# Costs 900 questions and 2700 passages (3 data types x 300 questions x 3); 10.5 GB of adapters (3.9 MB each);
# a GPU that holds the model (2.5 GB of weights in bfloat16).
set -euo pipefail
cd "$(dirname "$0")/.."

model=llama3.2-1b-instruct
dataset=hotpotqa
epochs=1
max_new_tokens=128
mode=--with_cot
. configs/paper/stages.sh
