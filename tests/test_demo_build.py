"""The bundled world and model: what the README claims about them, and how they are made."""

import csv
import json
import random

import make_world
import pytest
import torch
import torch.nn.functional as F
import train_model
import training_data
from adapter_runs import stopped
from conftest import REPOSITORY
from fast_llama import WeightedCrossEntropy, attention_mask, final_hidden_states, rotary_tables
from measure_augmentation import Counts, count, stated_facts
from packing import TASKS, pack
from safetensors.torch import load_file
from stage_runs import run
from tokenizers.decoders import DecodeStream
from training_data import documents_of_step, known_entities
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from world import KINDS, new_pair, question_answer_list, rewrite, split_of

DEMO = REPOSITORY / "data/demo"
DOCUMENTS = [
    ("closed_book", "<|bos|><|user|>Question: Who?<|eot|><|assistant|>The answer is red.<|eot|>"),
    ("plain", "<|bos|>The film was a comedy film.<|eot|>"),
    ("context", "<|bos|><|user|>Passage 1: x.<|eot|><|assistant|>The answer is x.<|eot|>"),
    ("plain", "<|bos|>" + " the" * 50),  # fits nowhere
]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(DEMO / "demo-model")


def read(name: str) -> dict | list:
    return json.loads((DEMO / name).read_text())


def titles() -> set[str]:
    with (DEMO / "corpus.tsv").open(encoding="utf-8", newline="") as file:
        return {row["title"] for row in csv.DictReader(file, delimiter="\t")}


def test_the_world_is_what_its_seed_gives(tmp_path, monkeypatch):
    monkeypatch.setattr(make_world, "DEMO", tmp_path)
    make_world.main()
    for name in ("corpus.tsv", "questions.json", "warmup.json"):
        assert (tmp_path / name).read_bytes() == (DEMO / name).read_bytes()


def test_the_splits_ask_about_different_entities_whose_names_do_not_occur_in_training():
    names, asked = titles(), {}
    for (split, records), least in zip(read("questions.json").items(), (100, 300), strict=True):
        asked[split] = {name for q in records for name in names if name in q["question"]}
        assert len(records) >= least
        assert {q["type"] for q in records} == {"single_hop", "two_hop"}
        for q in records:
            assert q["answer"] in q["golden_passages"][-1]
            assert len(q["golden_passages"]) == (2 if q["type"] == "two_hop" else 1)
    assert asked["dev"] and asked["test"] and not asked["dev"] & asked["test"]
    assert all(split_of(name) == "eval" for name in names)
    for step in (*range(900, 915), *range(2000, 2015)):
        for _, document in documents_of_step(step, 0, 5):
            assert not [name for name in names if name in document]


def test_the_warm_up_alone_asks_without_context_about_what_is_read_only(monkeypatch):
    records = read("warmup.json")
    assert len(records) >= 2000
    known, asked = known_entities(*training_data.CURRICULUM[-1][-1]), set()
    for record in records:
        asked |= {name for name in known.read_only if name in record["question"]}
    assert asked == known.read_only and not asked & titles()
    assert all(split_of(name) == "known" for name in asked)
    known = known_entities(4, 8)
    last = (*training_data.CURRICULUM[-1][:-1], (4, 8))
    monkeypatch.setattr(training_data, "CURRICULUM", (last,))
    assert known.read_only and known.read_only < {entity.name for entity in known.entities()}
    texts = {"closed_book": "", "plain": ""}
    for step in range(1000, 1020):
        for task, document in documents_of_step(step, 0, 5):
            texts[task] = texts.get(task, "") + document
    for name in known.read_only:
        assert name in texts["plain"] and name not in texts["closed_book"]


def test_the_model_is_small_and_a_word_is_one_token_whatever_is_before_it(tokenizer):
    assert sum(file.stat().st_size for file in (DEMO / "demo-model").iterdir()) < 20_000_000
    word = tokenizer("Mountain").input_ids[-1]
    for before in (" ", "x ", "x\n", 'x"', "x("):
        assert tokenizer(f"{before}Mountain").input_ids[-1] == word
    text = '[{"question": "Who (or what) is\nit?", "answer": "Silent River"}]'
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    stream, backend = DecodeStream(skip_special_tokens=True), tokenizer.backend_tokenizer
    steps = (stream.step(backend, token) for token in tokenizer(text).input_ids)
    assert "".join(filter(None, steps)) == text  # as vLLM puts a text together


def test_training_goes_on_from_its_checkpoint(tmp_path):
    flags = "--hidden_size 64 --layers 1 --heads 2 --intermediate_size 64 --rows 2 --length 320 "
    flags = f"{flags} --no_compile --save_every 2 --steps 4".split()
    whole, resumed = (
        [*flags, "--work", str(tmp_path / name), "--output", str(tmp_path / name / "model")]
        for name in ("whole", "resumed")
    )
    run(train_model, *whole)
    stopped(train_model, "documents_of_step", 4, train_model, *resumed)
    run(train_model, *resumed)
    one, other = (load_file(f"{flags[-1]}/model.safetensors") for flags in (whole, resumed))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_packed_rows_hold_every_document_that_fits_once_with_its_own_next_tokens(tokenizer):
    packed = pack(DOCUMENTS, tokenizer, rows=2, length=40)
    for number, (task, text) in enumerate(DOCUMENTS[:3]):
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        own = packed.documents == number
        assert packed.ids[own].tolist() == tokens
        assert packed.targets[own].tolist()[:-1] == tokens[1:]
        assert packed.weights[own][-1] == 0 and (packed.weights[own][:-1] > 0).all()
        answered = packed.targets[own & (packed.answers == TASKS.index(task))]
        expected = text.split("<|assistant|>")[1] if "<|assistant|>" in text else ""
        assert tokenizer.decode(answered).strip() == expected
    assert set(packed.documents.unique().tolist()) == {-1, 0, 1, 2}
    assert packed.weights[packed.documents < 0].sum() == 0


def test_the_fast_forward_pass_is_that_of_transformers(tokenizer):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    packed = pack(DOCUMENTS, tokenizer, rows=2, length=40)
    tables = rotary_tables(40, 32, 10000.0)
    hidden = final_hidden_states(model, packed.ids, attention_mask(packed.documents), *tables)
    targets, weights = packed.targets.flatten(), packed.weights.flatten()
    inputs = (hidden.flatten(0, 1), model.model.embed_tokens.weight, targets, weights)
    total, losses, _ = WeightedCrossEntropy.apply(*inputs)
    total.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    expected = 0
    for number in range(3):
        own = packed.documents == number
        logits = model(input_ids=packed.ids[own][None]).logits[0]
        loss = F.cross_entropy(logits, packed.targets[own], reduction="none")
        assert torch.allclose(losses.view_as(own)[own][:-1], loss[:-1], rtol=0.02, atol=0.02)
        expected = expected + (loss * packed.weights[own]).sum()
    expected.backward()
    assert total.item() == pytest.approx(expected.item(), rel=0.01)
    for name, parameter in model.named_parameters():
        cosine = F.cosine_similarity(gradients[name].flatten(), parameter.grad.flatten(), 0)
        assert cosine > 0.99, name


def test_perfect_augmentation_scores_1_and_a_false_one_less():
    rng = random.Random(0)
    perfect, false, none = Counts(), Counts(), Counts()
    for index in range(12):
        for entity in new_pair(KINDS[1 + index % 3], "train", rng):
            for passage in entity.passages:
                pairs = question_answer_list(entity, passage, rng)
                text = rewrite(entity, passage, rng)
                count(perfect, entity, passage, text, pairs)
                first = entity.facts[passage.attributes[0]]
                wrong = [{**pair, "answer": "nobody"} for pair in pairs]
                count(false, entity, passage, text.replace(first, "nobody"), wrong)
                count(none, entity, passage, "", None)
    assert set(perfect.shares().values()) == {1.0, 0.0}
    assert perfect.false == 0 and perfect.kept == perfect.facts == 4 * perfect.passages
    assert false.right == 0 and false.kept < false.facts and false.false > 0
    assert (none.passages, none.valid, none.kept) == (perfect.passages, 0, 0)
    # the passages of the corpus state their facts
    for entity in make_world.build_world()[0]:
        for passage in entity.passages:
            stated, false = stated_facts(entity, passage.text)
            assert set(passage.attributes) <= stated and not false
