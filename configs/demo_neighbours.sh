#!/usr/bin/env bash
# What of `encode.py --neighbours` does it: ablations on the demo's dev questions (docs/neighbours.md).
# About 55 minutes on one core. VARIANTS in the environment chooses some.
set -euo pipefail
cd "$(dirname "$0")/.."

root="${PRAG_ROOT:-.}/effect/neighbours"
data="--model_name data/demo/demo-model --prompts demo --dataset demo --data_type dev"
variants=${VARIANTS-alone passes1 passes2 passes3 passes4 alone3 k1 k4 rate3e-3 rate6e-3 groups8 groups100 \
    distill distill_alone rank4 rank8 five_k1 five_k2 five_k4 pairs6 pairs6_alone pairs12 pairs12_alone \
    random frozen half two_hop two_hop_alone}

train() {  # RATE EPOCHS NEIGHBOURS MORE...
    flags="--learning_rate $1 --num_train_epochs $2 --schedule halving --neighbours $3 ${*:4}"
}
for variant in $variants; do
    export PRAG_ROOT="$root/$variant"
    more="" pairs=3 topk=3 script="src/encode.py"
    case $variant in
        alone) train 4e-3 1 0 ;;
        alone3) train 4e-3 3 0 ;;
        passes*) train 4e-3 "${variant#passes}" 2 ;;
        k*) train 4e-3 3 "${variant#k}" ;;
        rate*) train "${variant#rate}" 3 2 ;;
        groups*) train 4e-3 3 2; more="--adapters_per_batch ${variant#groups}" ;;
        distill) train 4e-3 3 2 --objective distill ;;
        distill_alone) train 4e-3 1 0 --objective distill ;;
        pairs*_alone) train 4e-3 1 0; pairs=${variant//[!0-9]/} ;;
        pairs*) train 4e-3 3 2; pairs=${variant#pairs} ;;
        rank*) train 4e-3 3 2 --lora_rank "${variant#rank}" --lora_alpha $((16 * ${variant#rank})) ;;
        five_k*) train 4e-3 3 "${variant#five_k}"; topk=5 ;;
        *) train 4e-3 3 2; script="benchmarks/effect_neighbours.py --variant $variant" ;;
    esac
    if [ ! -d "$PRAG_ROOT/index/demo" ]; then
        python prep_elastic.py --data_path data/demo/corpus.tsv --index_name demo
    fi
    python src/augment.py $data --data_path data/demo/questions.json --index_name demo \
        --max_new_tokens 200 --temperature 0.3 --batch_size 64 \
        --pairs $pairs --topk $topk
    python $script $data $flags $more --index_name demo
    for method in prag combine; do
        python src/inference.py $data $flags --inference_method $method --max_new_tokens 12
        python src/inference.py $data $flags --inference_method $method --max_new_tokens 12 --merge_topk 1
    done
done
python benchmarks/effect_neighbours_table.py --root "$root" --data_type dev
