"""A model in one `.gguf` file: a tiny one, and (slow) SmolLM2 with real questions."""

import json
from dataclasses import replace

import gguf
import peft
import pytest
import torch
from adapter_runs import generated_by
from conftest import REPOSITORY, tiny_model
from safetensors.torch import load_file
from stage_runs import refused, run
from test_lora import train_with_peft
from transformers import AutoModelForCausalLM

import augment
import encode
import inference
import prep_elastic
from utils.experiment import Experiment
from utils.model_files import model_identity, resolve_model
from utils.models import context_length, load_model, load_tokenizer
from utils.questions import load_questions
from utils.recipe import Recipe

SMOLLM2 = REPOSITORY / "models/SmolLM2-135M-Instruct.Q4_1.gguf"
HOTPOTQA = REPOSITORY.parent / "shared/data/hotpotqa"

NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm", "embed_tokens": "token_embd", "norm": "output_norm",
}  # fmt: skip


def write_gguf(model, file) -> None:
    """The tiny Llama `model` as llama.cpp keeps one, in float32."""
    config, writer = model.config, gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([chr(33 + number) for number in range(94)] + ["ab", "bc", "cd"])
    writer.add_token_merges(["a b", "b c", "c d"])
    writer.add_eos_token_id(2)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":  # tied
            continue
        module = name.removeprefix("model.").removesuffix(".weight").removeprefix("layers.")
        number, _, inner = module.partition(".")
        place, module = (f"blk.{number}.", NAMES[inner]) if inner else ("", NAMES[module])
        if module in ("attn_q", "attn_k"):  # llama.cpp interleaves the halves of a head
            heads = getattr(
                config, f"num_{'attention' if module[-1] == 'q' else 'key_value'}_heads"
            )
            halves = tensor.view(heads, 2, -1, tensor.shape[1])
            tensor = halves.transpose(1, 2).reshape(tensor.shape)
        writer.add_tensor(f"{place}{module}.weight", tensor.numpy().copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def file(root):
    write_gguf(tiny_model(seed=3), root / "tiny.gguf")
    return root / "tiny.gguf"


def test_a_gguf_file_is_dequantised_once_into_a_model_folder(root, file, capsys):
    name, source = str(file), tiny_model(seed=3)
    folder = resolve_model(name)
    assert "tiny.gguf: dequantised into" in capsys.readouterr().err
    assert resolve_model("tiny.gguf") == folder and not capsys.readouterr().err
    assert folder.startswith(str(root / "offline/.gguf/tiny.gguf@"))
    identity = model_identity(name)
    assert identity.startswith(folder.rpartition("/")[2])
    tokenizer = load_tokenizer(name)
    assert tokenizer.eos_token_id == 2 and tokenizer.chat_template and context_length(name) == 1024
    ids = torch.tensor([[1, 5, 9, 30]])
    for model in (
        load_model(name, "float32", tokenizer),
        AutoModelForCausalLM.from_pretrained(folder),  # what peft loads an adapter's model with
    ):
        assert torch.equal(model(ids).logits, source(ids).logits)
    write_gguf(tiny_model(seed=4), file)  # another model under the same name
    assert model_identity(name).partition("+")[0] != identity.partition("+")[0]


def test_a_gguf_file_that_is_missing_or_damaged_is_one_sentence(root, file):
    refused("there is no such file or folder", resolve_model, "models/none.gguf")
    content = file.read_bytes()
    for damaged in (content[:2000], content[:-5000], b"GGUF", b"{}" * 99):
        file.write_bytes(damaged)
        refused(
            r"tiny\.gguf\) cannot be loaded: .*; fetch the file again", resolve_model, str(file)
        )
    assert not list((root / "offline/.gguf").glob("*"))


@pytest.mark.slow
@pytest.mark.skipif(not SMOLLM2.is_file(), reason="no model: run make model")
@pytest.mark.skipif(not HOTPOTQA.is_dir(), reason="the shared data is not here")
def test_three_real_questions_go_through_all_stages(root):
    """SmolLM2 writes, learns and answers; peft, one adapter at a time, does the same."""
    questions = load_questions("hotpotqa", HOTPOTQA)["total"][:3]
    (root / "own.json").write_text(json.dumps(questions))
    data = ["--model_name", str(SMOLLM2), "--prompts", "small", "--dataset", "own"]
    run(prep_elastic, "--from_contexts", str(HOTPOTQA), "--index_name", "own")
    own = ["--data_path", str(root / "own.json"), "--index_name", "own", "--topk", "2"]
    run(augment, *data, *own)
    records = json.loads((root / "data_aug/own/own.json").read_text())
    for entry in (entry for record in records for entry in record["augment"]):
        assert len(entry[f"{SMOLLM2.name}_qa"]) == 3 and entry[f"{SMOLLM2.name}_rewrite"]

    train = ["--learning_rate", "1e-3", "--adapters_per_batch", "6"]
    run(encode, *data, *train)
    run(inference, *data, *train[:2], "--inference_method", "prag", "--max_new_tokens", "12")
    recipe = replace(Recipe(), model_name=str(SMOLLM2), prompts="small", dataset="own")
    experiment = Experiment(replace(recipe, learning_rate=1e-3))
    passages, folder = experiment.passages("own"), resolve_model(str(SMOLLM2))
    for work in experiment.works()[:2]:
        model = AutoModelForCausalLM.from_pretrained(folder)
        prompts = [example.ids for example in work.examples]
        oracle = train_with_peft(model, experiment.base_folder, prompts, 1e-3, 1, 1)
        saved = load_file(work.folders[0] / "adapter_model.safetensors")
        differences = torch.cat([(saved[key] - oracle[key]).abs().flatten() for key in oracle])
        assert differences.max() < 2e-3 and (differences < 1e-6).float().mean() > 0.99

    [result] = root.glob("output/**/prag/own/predict.json")
    for did, row in enumerate(json.loads(result.read_text())):
        model = AutoModelForCausalLM.from_pretrained(folder)
        for pid, (adapter, _) in enumerate(passages[did]):
            if pid == 0:
                model = peft.PeftModel.from_pretrained(model, adapter, adapter_name="0")
            else:
                model.load_adapter(adapter, adapter_name=str(pid))
        model.add_weighted_adapter(["0", "1"], [1.0, 1.0], "sum", combination_type="cat")
        model.set_adapter("sum")
        prompt = experiment.encoder.question(row["question"], [])
        assert generated_by(model, experiment.tokenizer, prompt) == row["text"]
