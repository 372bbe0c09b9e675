#!/usr/bin/env bash
# ComplexWebQuestions with Llama-3-8B-Instruct: the paper's table 1, four ways of answering.
# Assumes ComplexWebQuestions_dev.json in data/complexwebquestions and the index wiki (README, "The paper's data sets").
# Costs 300 questions and 900 passages (1 data type x 300 questions x 3); 12.8 GB of adapters (14.2 MB each);
# a GPU that holds the model (16.1 GB of weights in bfloat16).
set -euo pipefail
cd "$(dirname "$0")/.."

model=llama3-8b-instruct
dataset=complexwebquestions
epochs=1
max_new_tokens=20
mode=
. configs/paper/stages.sh
