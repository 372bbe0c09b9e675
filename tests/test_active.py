"""Retrieval while answering: FLARE and DRAGIN in batches against one plain question at a time."""

import json

import pytest
import torch
from active_reference import Reference
from conftest import FAMILIES, REPOSITORY, WINDOW, tiny_model
from stage_runs import MODEL, RESULTS, answer, refused, tree
from transformers import AutoModelForCausalLM, AutoTokenizer

from utils.active.attention import last_attention
from utils.active.rounds import Rounds
from utils.active.texts import pieces_of, sentence_ends, words_of
from utils.metrics import COUNTS, is_answered
from utils.prompting import PromptEncoder, load_prompts
from utils.recipe import ACTIVE, Recipe
from utils.retrieval.embedded import EmbeddedIndex

TOKENIZER = AutoTokenizer.from_pretrained(MODEL)
ENCODER = PromptEncoder(TOKENIZER, load_prompts("demo", "demo", False), False, 900)
QUESTIONS = json.loads((REPOSITORY / "data/demo/questions.json").read_text())["dev"]
LOW = {"flare_theta": 0.5, "flare_beta": 0.3, "dragin_threshold": 0.5, "dragin_words": 4}


class Rewriting:
    """Asks for a rewrite of the "question", a passage, and of what was retrieved: the bundled model
    answers with several sentences."""

    def question(self, question: str, passages: list[str]) -> list[int]:
        return ENCODER.request("rewrite", " ".join([question, *passages]))


@pytest.fixture(scope="module")
def models():
    load = AutoModelForCausalLM.from_pretrained
    return load(MODEL).eval(), load(MODEL, attn_implementation="eager").eval()


def compare(finished, models, encoder, questions: list[str], **settings) -> list[dict]:
    """Batches against the reference; gives what the batches count."""
    recipe, index = Recipe(**settings), EmbeddedIndex(finished / "index/demo")

    def search(query):
        return [hit["text"] for hit in index.search([query], recipe.retrieve_topk)[0]]

    one_by_one = Reference(models[1], TOKENIZER, encoder.question, search, recipe)
    found = Rounds(models[0], TOKENIZER, encoder, index, recipe).answer(dict(enumerate(questions)))
    for question, (text, counts) in zip(questions, found, strict=True):
        assert (text, counts["queries"]) == one_by_one.answer(question)
        assert counts["retrievals"] == len(counts["queries"]) <= recipe.max_retrievals
    return [counts for _, counts in found]


@pytest.mark.parametrize("method", ACTIVE)
def test_a_batch_equals_one_question_at_a_time(finished, models, method):
    passages = [one["golden_passages"][0] for one in QUESTIONS[:3]]
    how = {"inference_method": method, "with_cot": True, "max_new_tokens": 60, "look_ahead": 24}
    counts = compare(finished, models, Rewriting(), passages, retrieve_topk=1, **how, **LOW)
    assert max(one["retrievals"] for one in counts) > 2  # beside rows with fewer
    assert len({one["retrievals"] for one in counts}) > 1
    questions = [one["question"] for one in QUESTIONS[:5]]
    asked = {"inference_method": method, "max_new_tokens": 12}
    counts = compare(finished, models, ENCODER, questions, **asked)
    assert len({one["retrievals"] for one in counts}) > 1


@pytest.mark.slow
@pytest.mark.parametrize("method", ACTIVE)
@pytest.mark.parametrize("settings", [
    {}, LOW, {**LOW, "max_retrievals": 2}, {"look_ahead": 7, "retrieve_topk": 2},
], ids=str)  # fmt: skip
def test_batches_of_twenty_equal_one_question_at_a_time(finished, models, method, settings):
    # of more words most get no attention but rounding, which may rank them otherwise
    how = {"inference_method": method, "dragin_words": 60, **settings}
    questions = [one["question"] for one in QUESTIONS[:20]]
    compare(finished, models, ENCODER, questions, max_new_tokens=12, **how)
    passages = [one["golden_passages"][0] for one in QUESTIONS[:20]]
    compare(finished, models, Rewriting(), passages, max_new_tokens=80, with_cot=True, **how)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_layers_attention_is_the_librarys_and_nothing_else_changes(family):
    model = tiny_model(family)
    generator = torch.Generator().manual_seed(3)
    sizes = (3 * WINDOW, 5, WINDOW + 1)
    rows = [torch.randint(3, 97, (n,), generator=generator).tolist() for n in sizes]
    ids = torch.tensor(rows[:1])
    with torch.no_grad():
        before = model(ids).logits
        found = last_attention(model, rows, [4, 0, 2])
        assert torch.equal(model(ids).logits, before)
        model.set_attn_implementation("eager")
        for row, start, weights in zip(rows, [4, 0, 2], found, strict=True):
            expected = model(torch.tensor([row]), output_attentions=True).attentions[-1][0]
            assert torch.allclose(weights, expected[:, start:], atol=1e-6)


def test_a_model_that_attends_in_its_own_way_is_refused():
    model = tiny_model()
    for layer in model.model.layers:
        del layer.self_attn.layer_idx
    refused("LlamaForCausalLM computes it in a way of its own", last_attention, model, [[5]], [0])


def test_tokens_have_pieces_that_make_words_and_sentences():
    text = " Née Orr. She left\nthe U. S. in 1971. No"
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    pieces = pieces_of(TOKENIZER, ids, ids[:1])
    assert "".join(pieces) == text
    for word, tokens in words_of(pieces):
        assert word in "".join(pieces[i] for i in tokens)
    assert [word for word, _ in words_of(pieces)] == text.split()
    ends = sentence_ends(pieces)
    parts = ["".join(pieces[a:b]).strip() for a, b in zip([0, *ends], ends, strict=False)]
    assert parts == ["Née Orr.", "She left", "the U. S. in 1971.", "No"]
    assert sentence_ends([]) == [] and sentence_ends(pieces[:1]) == [1]


@pytest.mark.parametrize("text, with_cot, cut, done", [
    (" Orr", False, "mark", False), (" Orr.", False, "mark", True), (" ", False, "mark", False),
    (" U.S. Army", False, "none", False), (" U.S. Army\nNo", False, "none", True),
    (" Orr left. He died.", True, "mark", False), (" So the answer is", True, "mark", False),
    (" So the answer is Orr", True, "mark", False), (" So the answer is Orr.", True, "mark", True),
])  # fmt: skip
def test_an_answer_is_complete_when_more_text_would_not_change_it(text, with_cot, cut, done):
    assert is_answered(text, with_cot, cut) == done


@pytest.mark.parametrize("method", ACTIVE)
def test_a_result_has_its_queries_and_what_they_cost(copy, method):
    leaf = copy / RESULTS / method / "dev"
    whole, rows = tree(leaf), json.loads((leaf / "predict.json").read_text())
    config = json.loads((leaf / "config.json").read_text())
    lines = dict(
        line.split("\t") for line in (leaf / "result.txt").read_text().split("\n\n")[0].split("\n")
    )
    for name in COUNTS:
        total = sum(row[name] for row in rows)
        assert config["measured"][name] == total and lines[name] == f"{total / 4:.4f}"
    assert all(row["retrievals"] == len(row["queries"]) for row in rows)
    assert config["index"]["name"] == "demo" and config["engine"] == "embedded"
    other = {"flare": "dragin_words", "dragin": "flare_theta"}[method]
    assert config["look_ahead"] == 64 and other not in config
    for name in ("icl", "prag"):
        text = (copy / RESULTS / name / "dev/config.json").read_text()
        assert "look_ahead" not in text and '"index"' not in text and "retrievals" not in text
    (leaf / "result.txt").unlink()
    answer(method)
    assert tree(leaf) == whole
    answer(method, "--batch_size", "1", "--overwrite")
    assert json.loads((leaf / "predict.json").read_text()) == rows
    with pytest.raises(SystemExit):
        answer(method, "--merge_topk", "1")
