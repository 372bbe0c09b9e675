"""Each family of models, tiny and random, through the stages; its training is in test_lora.py."""

import json
import shutil

import peft
import pytest
from adapter_runs import generated_by
from conftest import FAMILIES, WINDOW, tiny_model
from stage_runs import ENCODE, MODEL, answer, run
from transformers import AutoModelForCausalLM, AutoTokenizer

import adapters
import encode
from utils.models import load_tokenizer
from utils.prompting import PromptEncoder, load_prompts


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"llama"}))  # the demo's own
def test_a_family_is_encoded_answers_in_batches_and_is_exported(finished, root, family):
    folder, tokenizer = str(root / "tiny"), AutoTokenizer.from_pretrained(MODEL)
    tiny_model(family, vocabulary=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    shutil.copytree(finished / "data_aug", root / "data_aug")
    flags = ["--model_name", folder, "--augment_model", MODEL, "--sample", "2"]
    run(encode, *ENCODE, *flags)

    def texts(method, *more):
        answer(method, *flags, *more)
        [result] = root.glob(f"output/**/{method}/dev/predict.json")
        return [row["text"] for row in json.loads(result.read_text())]

    prag, combine = texts("prag"), texts("combine")
    assert texts("combine", "--batch_size", "1", "--overwrite") == combine

    exported = root / "exported"
    run(adapters, "export", *ENCODE, *flags, "--question_id", "1", "--output", str(exported))
    model = AutoModelForCausalLM.from_pretrained(folder)
    model = peft.PeftModel.from_pretrained(model, exported)
    tokenizer = load_tokenizer(folder)  # for some families the library makes another of its files
    encoder = PromptEncoder(tokenizer, load_prompts("demo", "demo", False), False, 500)
    record = json.loads((root / "data_aug/demo/dev.json").read_text())[1]
    passages = [entry["passage"] for entry in record["augment"]]
    for text, context in ((prag[1], []), (combine[1], passages)):
        prompt = encoder.question(record["question"], context)
        assert generated_by(model, tokenizer, prompt) == text
        with model.disable_adapter():
            assert generated_by(model, tokenizer, prompt) != text
    assert len(prompt) > 4 * WINDOW and not encoder.shortened
