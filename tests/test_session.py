"""What ask.py and serve.py keep open: one batch of all methods, and ask.py itself."""

import json
import shutil
from dataclasses import replace
from io import StringIO

import pytest
from augment_runs import instantly
from serve_runs import FLAGS, expected
from stage_runs import COMMON, refused, run, watched
from test_corpus import CORPUS, ROWS, index

import ask
import augment
import encode
from utils import session
from utils.recipe import AT_ONCE
from utils.serving.requests import Request


def test_one_batch_of_all_methods_says_what_inference_says(served, finished, monkeypatch):
    batches = watched(monkeypatch, session, "answer_batch")
    answers, own = expected(finished), served.session
    requests = [
        Request(asked, replace(own.recipe, inference_method=method), 3, ids)
        for method, asked, ids, _ in answers
    ]
    rows = own.prepare(requests)
    assert [answer.text for answer in own.answer(rows)] == [text for *_, text in answers]
    assert [len(prompts) for _, _, prompts, *_ in batches] == [20]
    assert len({text for *_, text in answers}) > 5
    merged = [row.merged for row in rows]
    assert [one is None for one in merged] == [m not in ("prag", "combine") for m, *_ in answers]


def test_a_row_that_ends_early_leaves_the_others_as_they_are(served, finished):
    own, (_, asked, _, said) = served.session, expected(finished)[0]
    recipe = replace(own.recipe, inference_method="closed_book")
    seen: list[str] = []
    gone, short, whole = (Request(asked, recipe, 3) for _ in range(3))
    short.recipe = replace(recipe, max_new_tokens=3)
    whole.tell, gone.tell = seen.append, lambda text: setattr(gone, "gone", True)
    answers = own.answer(own.prepare([gone, short, whole]))
    assert [one.tokens for one in answers[:2]] == [3, 3] and answers[1].finish_reason == "length"
    assert answers[2].text == said and len(seen) > 2
    assert all(said.startswith(text) for text in seen) and seen == sorted(seen, key=len)


def test_a_batch_that_fails_leaves_no_adapter_to_the_next_one(served, finished, monkeypatch):
    own = served.session
    asked, plain = next((a, text) for way, a, _, text in expected(finished) if way == "closed_book")
    closed, merged = (
        own.prepare([Request(asked, replace(own.recipe, inference_method=method), 3)])
        for method in ("closed_book", "prag")
    )

    def failing(model, tokenizer, prompts, most, watch, use, keep):
        use([0])
        raise RuntimeError("no memory")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="no memory"):
        patch.setattr(session, "answer_batch", failing)
        own.answer(merged)
    assert own.answer(closed)[0].text == plain


def test_numbers_that_are_not_finite_are_an_error_of_their_row_alone(served, monkeypatch):
    merge = served.session.merger.merge

    def huge(passages, recipe):
        factor = float("nan") if recipe.merge_scale == 7 else 1
        return {name: (A, factor * B) for name, (A, B) in merge(passages, recipe).items()}

    monkeypatch.setattr(served.session.merger, "merge", huge)
    own = served.session
    names = list(own.by_id)[:1]
    recipes = [replace(own.recipe, inference_method="prag", merge_scale=s) for s in (7, 1)]
    rows = own.prepare([Request("Who?", recipe, 3, names) for recipe in recipes])
    bad, good = own.answer(rows)
    assert "not finite" in str(bad.bad) and good.bad is None


def test_ask_shows_what_each_method_says_and_what_each_adapter_changes(
    copy, finished, monkeypatch, capsys
):
    answers = expected(finished)
    _, asked, _, _ = answers[0]
    said = {method: text.strip() for method, question, _, text in answers if question == asked}
    run(ask, asked, *FLAGS, "--show_adapters", "--methods", ",".join(AT_ONCE))
    out = capsys.readouterr().out.splitlines()
    for method, text in said.items():
        assert any(line.startswith(method) and line.split(None, 1)[1] in text for line in out)
    assert sum("prag without the adapter of" in line for line in out) == 3
    assert out[0].startswith("1. ") and out[-1].endswith(" s")
    lines = f"{asked}\n\n{'x ' * 4000}\nWhat sport was Gigov Teglimine fond of?\n"
    monkeypatch.setattr("sys.stdin", StringIO(lines))
    run(ask, *FLAGS, "--json", "--methods", "prag,closed_book", "--topk", "1")
    first, long, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["answers"]["closed_book"]["text"].strip() == said["closed_book"]
    assert len(first["passages"]) == len(last["passages"]) == 1
    assert "does not fit" in long["error"] and last["seconds"] > 0
    refused("the question is empty", run, ask, " ", *FLAGS)
    shutil.rmtree(copy / "offline")
    run(ask, asked, *FLAGS, "--methods", "icl")  # needs no adapters
    assert said["icl"].rstrip(".") in capsys.readouterr().out
    refused("there is no adapter", run, ask, asked, *FLAGS)


def test_a_corpus_without_questions_is_asked(root, monkeypatch, capsys):
    """Every passage of an index is encoded; one that came later is found and has no adapter."""
    index(root, ROWS[:4])
    instantly(monkeypatch)
    run(augment, *CORPUS)
    run(encode, *COMMON, "--dataset", "mydocs")
    index(root, ROWS[:5])
    flags = [*COMMON, "--dataset", "mydocs", "--index_name", "mydocs"]
    run(ask, "Which town is fact number 2 about?", *flags, "--topk", "5", "--json")
    reply = json.loads(capsys.readouterr().out.splitlines()[-1])
    adapters = {one["id"]: one["adapter"] for one in reply["passages"]}
    assert adapters == {"0": True, "1": True, "2": True, "3": True, "4": False}
    assert reply["passages"][0]["id"] == "2" and len(reply["answers"]) == 4
