#!/usr/bin/env bash
# HotpotQA with Qwen2.5-1.5B-Instruct: the paper's table 1, four ways of answering.
# Assumes hotpot_dev_distractor_v1.json in data/hotpotqa and the index wiki (README, "The paper's data sets").
# Costs 900 questions and 2700 passages (3 data types x 300 questions x 3); 19.2 GB of adapters (7.1 MB each);
# a GPU that holds the model (3.1 GB of weights in bfloat16).
set -euo pipefail
cd "$(dirname "$0")/.."

model=qwen2.5-1.5b-instruct
dataset=hotpotqa
epochs=2
max_new_tokens=128
mode=--with_cot
. configs/paper/stages.sh
