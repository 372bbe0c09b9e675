#!/usr/bin/env bash
# Does knowledge move into the parameters? The demo's methods and controls with three seeds, and prag
# against learning rate and epochs on dev. Needs nothing but the repository; `make effect` runs it.
set -euo pipefail
cd "$(dirname "$0")/.."

model=data/demo/demo-model
split=${SPLIT:-test}
sample=${SAMPLE:--1}
seeds=${SEEDS:-0 1 2}   # of the augmentation's sampling and of the adapter that every passage starts from
control_seeds=${CONTROL_SEEDS-$seeds}
controls=${CONTROLS-paper others untrained golden warmup merging topk8 topk1 longer neighbours}
learning_rate=4e-3      # chosen on dev, as are the epochs: see the sweep
epochs=1
warmup_rate=1e-3        # chosen on dev, of 1e-4, 3e-4 and 1e-3
warm_learning_rate=4e-3
sweep=${SWEEP-3e-4,1 2e-3,1 3e-3,1 4e-3,1 5e-3,1 1e-3,2 1.5e-3,2 2e-3,2 2.5e-3,2 7e-4,4 1e-3,4}
root="${PRAG_ROOT:-.}/effect"

common="--model_name $model --prompts demo --dataset demo"
data="$common --data_type $split --sample $sample"
plain="--learning_rate $learning_rate --num_train_epochs $epochs"
long="--learning_rate $learning_rate --num_train_epochs 3 --schedule halving"  # chosen on dev

augment() {
    python src/augment.py --data_path data/demo/questions.json --index_name demo \
        --max_new_tokens 200 --temperature 0.3 --batch_size 64 "$@"
}
answer() {  # METHODS FLAGS...
    local methods=$1
    shift
    for method in $methods; do
        python src/inference.py --max_new_tokens 12 --inference_method $method "$@"
    done
}

in_folder() {  # where the stages work from now on
    export PRAG_ROOT="$1"
    if [ ! -d "$PRAG_ROOT/index/demo" ]; then
        python prep_elastic.py --data_path data/demo/corpus.tsv --index_name demo
    fi
}

# prag against rate and epochs, on dev
if [ -n "$sweep" ]; then
    in_folder "$root/sweep"
    augment $common --data_type dev
    for setting in $sweep; do  # rate,epochs
        train="--learning_rate ${setting%,*} --num_train_epochs ${setting#*,}"
        python src/encode.py $common --data_type dev $train
        answer "prag combine" $common --data_type dev $train
    done
    answer icl $common --data_type dev $plain
fi

# The methods
for seed in $seeds; do
    in_folder "$root/seed=$seed"
    augment $data --seed $seed
    python src/encode.py $data $plain --seed $seed
    answer "closed_book icl prag combine" $data $plain --seed $seed
done

# Controls and variants
paper() {  # the paper's rate and epochs, for models of 1 to 8 billion parameters
    local train="--learning_rate 3e-4 --num_train_epochs 1 --seed $seed"
    python src/encode.py $data $train
    answer "prag combine" $data $train
}
others() {  # adapters of passages that are not the question's
    python src/encode.py $data $plain --seed $seed --adapters others
    answer prag $data $plain --seed $seed --adapters others
}
untrained() {  # adapters as they are before training
    python benchmarks/effect_controls.py --control untrained $data $plain
}
golden() {  # the passages that hold the answer
    in_folder "$own/golden"
    augment $data --seed $seed --engine golden
    python src/encode.py $data $plain --seed $seed
    answer "icl prag combine" $data $plain --seed $seed
}
warmup() {  # on questions about entities that the model has read about but was never asked about
    python src/get_warmup_data.py --dataset demo --data_path data/demo/warmup.json --sample 0 \
        --direct_records 2000 --seed $seed
    python src/warmup_lora.py --model_name $model --prompts demo --learning_rate $warmup_rate --seed $seed \
        --data "$own/data_aug/warmup/demo/direct.json"
    local train="--learning_rate $warm_learning_rate --num_train_epochs $epochs --init_adapter warmup --seed $seed"
    python src/encode.py $data $train
    answer "prag combine" $data $train --merge base_once
    answer prag $data $train
}
merging() {  # fewer adapters, weaker ones
    answer "prag combine" $data $plain --seed $seed --merge_topk 1
    answer "prag combine" $data $plain --seed $seed --merge_scale 0.5
}
topk1() {  # one retrieved passage
    in_folder "$own/topk=1"
    augment $data --seed $seed --topk 1
    python src/encode.py $data $plain --seed $seed
    answer "icl prag combine" $data $plain --seed $seed
}
topk8() {  # more passages than the model was trained to read, the adapters of the first three or one
    in_folder "$own/topk=8"
    augment $data --seed $seed --topk 8
    python src/encode.py $data $plain --seed $seed
    answer icl $data $plain --seed $seed
    for adapters in 3 1; do
        answer combine $data $plain --seed $seed --merge_topk $adapters
    done
}
longer() {  # three passes, each at half the rate: adapters alone
    python src/encode.py $data $long --seed $seed
    answer "prag combine" $data $long --seed $seed
}
neighbours() {  # the same passes beside two neighbours, and the controls of that
    local beside="$long --neighbours 2 --seed $seed"
    python src/encode.py $data $beside --index_name demo
    answer "prag combine" $data $beside
    answer "prag combine" $data $beside --merge_topk 1
    python src/encode.py $data $beside --index_name demo --adapters others
    answer prag $data $beside --adapters others
    in_folder "$own/without_gold"
    python benchmarks/effect_controls.py --control without_gold --from_root "$own" $data
    answer prag $data $beside
    for folder in golden topk=8; do
        in_folder "$own/$folder"
        python src/encode.py $data $beside --index_name demo
        answer prag $data $beside
    done
    answer combine $data $beside
    answer combine $data $beside --merge_topk 3
}
for control in $controls; do
    for seed in $control_seeds; do
        own="$root/seed=$seed"
        in_folder "$own"
        $control
    done
done

python benchmarks/effect.py --root "$root" --data_type $split $plain --warm_learning_rate $warm_learning_rate
