# What configs/{dataset}_{model}.sh share: the paper's settings and the stages. They set model, dataset,
# epochs, max_new_tokens and mode (--with_cot, or nothing: answers without reasoning), and read this file.
data_path=data/$dataset
index=wiki
engine=embedded         # or elasticsearch, with ELASTICSEARCH_URL set
sample=300              # questions of each data type
learning_rate=3e-4
methods=${METHODS:-closed_book icl prag combine}     # da_icl too, for the paper's DA-RAG
init_adapter=${INIT_ADAPTER:-random}                # warmup: see configs/reproduce_tables.sh
augment_parts=${AUGMENT_PARTS:-rewrite,qa}          # none, qa, rewrite: the paper's figure 3
augment_model=${AUGMENT_MODEL:-$model}              # another one: the paper's table 3

data="--dataset $dataset --sample $sample"
train="--lora_rank 2 --lora_alpha 32 --learning_rate $learning_rate --num_train_epochs $epochs ${mode-} \
    --init_adapter $init_adapter --augment_parts $augment_parts --augment_model $augment_model"

python src/augment.py --model_name $augment_model $data --data_path $data_path --topk 3 \
    --engine $engine --index_name $index
python src/encode.py --model_name $model $data $train --per_device_train_batch_size 1
for method in $methods; do
    python src/inference.py --model_name $model $data $train --inference_method $method \
        --max_new_tokens $max_new_tokens
done
