"""Verdicts of a judge: by a server that is EM, by a real model over real HTTP, and their report."""

import csv
import json

import pytest
from conftest import edited
from fake_openai import NAME, FakeOpenAI, bundled, error
from stage_runs import COMMON, MODEL, RESULTS, answer, refused, run, tree
from test_server import own_environment  # noqa: F401  (used by itself)

import judge
import report
from utils.files import write_json
from utils.metrics import METRICS, extract_answer, score
from utils.prompting import PromptSet, load_judge
from utils.reporting.statistics import cohens_kappa
from utils.reporting.verdicts import verdict_in

ASKED = {"question": "Who?", "answers": ["Ada Orr", "Orr"], "given": "It was Orr."}
PREDICTION = {"test_id": 0, "question": "Who?", "answer": "Orr", "text": "Orr"}
PREDICTION |= {"eval_predict": "Orr", **dict.fromkeys(METRICS, 1.0)}
# short enough for the demo model's context
OWN = "Question: {question}\nRight:\n{answers}Given: {given}\nRight? yes or no"


def em_of(message: str) -> float:
    """What EM says, read from nothing but the message of the default prompt set."""
    before, _, given = message.partition("Answer to decide on: ")
    answers = [line[2:] for line in before.split("counts:\n")[1].splitlines()]
    given = given.rpartition("\n\nIs this answer right?")[0]
    return score(extract_answer(given, False), answers)["em"]


def is_em(body: dict) -> str:
    return "Yes." if em_of(body["messages"][0]["content"]) else "<think>yes?</think> no"


def by(fake: FakeOpenAI, *more: str) -> list[str]:
    return ["--model_name", "some/judge", "--api_base", fake.url, *more]


def leaves(root) -> list:
    return sorted(path.parent for path in (root / RESULTS).rglob("predict.json"))


def verdicts(leaf) -> dict:
    return json.loads((leaf / "judge.json").read_text())


def test_a_judge_that_is_em_gives_em_everywhere(copy, capsys):
    with edited(copy / RESULTS / "icl/dev/predict.json") as rows:  # one more is wrong, one verbose
        rows[0] |= dict(text=" nobody", eval_predict="nobody", answer_presence=0.0)
        rows[0] |= dict.fromkeys(("em", "f1", "prec", "recall"), 0.0)
        rows[1] |= dict(text=" <think>no</think> {given}. {braces}", eval_predict="{given}")
        rows[1] |= dict.fromkeys(("em", "f1", "prec", "recall", "answer_presence"), 0.0)
    with FakeOpenAI(is_em) as fake:
        run(judge, *by(fake))
        messages = [request["messages"][0]["content"] for request in fake.requests]
        assert len(set(messages)) == len(messages)  # what is asked in the same words, once
        run(judge, *by(fake))
        assert len(fake.requests) == len(messages)  # all is there already
    assert (fake.requests[0]["temperature"], fake.requests[0]["max_tokens"]) == (0, 16)
    assert any(message.count("{given}. {braces}") == 1 for message in messages)
    for leaf in leaves(copy):
        rows, made = json.loads((leaf / "predict.json").read_text()), verdicts(leaf)
        assert [one["right"] for one in made["verdicts"]] == [row["em"] == 1 for row in rows]
        assert [one["test_id"] for one in made["verdicts"]] == [row["test_id"] for row in rows]
        assert (made["model"], made["api_model"]) == ("some/judge", NAME)
        assert made["prompts"] and made["provenance"]["command"]
        assert not list(leaf.glob(".*"))
    run(report)
    shown = capsys.readouterr().out
    with (copy / "output/report/table.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(leaves(copy))
    for line in lines:
        assert line["judge"] == line["em"] and line["unread"] == "0"
        assert line["kappa_em"] == ("" if line["em"] in "01" else "1")
        assert f"{float(line['judge']):.3f} [" in shown
    assert "judge: dev" in (copy / "output/report/table.md").read_text()


def test_what_was_judged_is_kept_and_other_judges_and_answers_are_refused(copy):
    with FakeOpenAI(is_em) as fake:
        run(judge, *by(fake))
        whole = tree(copy / "output")
        for leaf in leaves(copy):
            (leaf / "judge.json").unlink()
        fake.requests.clear()
        fake.fault = lambda number, body: error(401, "expired") if number > 6 else None
        refused("expired", run, judge, *by(fake, "--api_concurrency", "1"))
        done = {request["messages"][0]["content"] for request in fake.requests[:6]}
        fake.requests.clear()
        fake.fault = lambda number, body: None
        run(judge, *by(fake))
        assert not done & {request["messages"][0]["content"] for request in fake.requests}
        assert {n: judged_by(data) for n, data in tree(copy / "output").items()} == {
            n: judged_by(data) for n, data in whole.items()
        }
        other = by(fake, "--max_new_tokens", "9")
        refused("judge.json was made with max_new_tokens = 16, .* --overwrite", run, judge, *other)
        fake.fault = lambda number, body: error(401, "expired") if number > last + 3 else None
        last = len(fake.requests)
        one_by_one = "--api_concurrency", "1"  # three verdicts come in before the error does
        refused("expired", run, judge, *other, *one_by_one, "--overwrite")
        fake.fault = lambda number, body: None
        run(judge, *other)  # goes on without the flag
        assert {verdicts(leaf)["max_new_tokens"] for leaf in leaves(copy)} == {9}
        answer("icl", "--answer_cut", "none", "--max_new_tokens", "2")
        run(judge, *other)  # the new result alone
        with edited(copy / RESULTS / "icl/dev/predict.json") as rows:
            rows[0]["text"] += " or so"
        refused("judged = .*the questions were answered again", run, judge, *other)


def judged_by(data: bytes) -> object:
    """A file without the date and command of its making."""
    try:
        return {k: v for k, v in json.loads(data).items() if k != "provenance"}
    except (ValueError, AttributeError):
        return data


def test_verdicts_on_other_answers_are_left_out_of_the_report(copy, capsys):
    with FakeOpenAI(is_em) as fake:
        run(judge, *by(fake))
    with edited(copy / RESULTS / "icl/dev/predict.json") as rows:
        rows[0]["text"] += " or so"
    with edited(copy / RESULTS / "prag/dev/judge.json") as made:
        made["verdicts"][0]["right"] = None
    run(report)
    said = capsys.readouterr().err
    assert "icl/dev/judge.json is about other answers" in said
    assert "prag/dev/judge.json is damaged" in said
    with (copy / "output/report/table.csv").open(newline="") as file:
        judges = {line["method"]: line["judge"] for line in csv.DictReader(file)}
    assert judges.pop("icl") == judges.pop("prag") == "" and all(judges.values())


def test_a_model_here_and_behind_a_server_say_the_same(copy):
    """The bundled model, which cannot judge: every verdict is unread, and none is lost."""
    prompts = copy / "own.json"
    with edited(prompts_file(prompts)) as texts:
        texts["judge"] = OWN
    flags = ["--prompts", str(prompts), "--max_new_tokens", "4"]
    run(judge, "--model_name", MODEL, *flags, "--batch_size", "3")
    local = [verdicts(leaf)["verdicts"] for leaf in leaves(copy)]
    with FakeOpenAI(bundled()) as fake:
        run(judge, *by(fake, *flags, "--overwrite"))
    assert [verdicts(leaf)["verdicts"] for leaf in leaves(copy)] == local
    texts = [one["text"] for own in local for one in own]
    assert all(texts) and len(set(texts)) > 1


def prompts_file(path):
    path.write_text(json.dumps(load_judge("default").texts))
    return path


@pytest.mark.parametrize("text, verdict", [
    ("yes", True), (" No, it is not. Yes?", False), ("**Yes**", True),
    ("<think>no</think>YES", True),
    ("The answer is right", None), ("", None), ("<think>yes", None), ("yesterday", None),
])  # fmt: skip
def test_a_verdict_is_the_first_yes_or_no(text, verdict):
    assert verdict_in(text) is verdict


def test_the_prompt_is_filled_literally_and_a_set_without_one_is_refused(root):
    shown = load_judge("default").judgement(**ASKED)
    assert (
        "Question: Who?\n" in shown and "\n- Ada Orr\n- Orr\nAnswer to decide on: It was" in shown
    )
    bare = {name: text for name, text in load_judge("default").texts.items() if name != "judge"}
    assert PromptSet("default", bare).fingerprint == load_judge("default").fingerprint
    refused("'demo' has no text 'judge'.*--prompts default", load_judge, "demo")
    path = prompts_file(root / "broken.json")
    with edited(path) as texts:
        texts["judge"] = "{question} {given}"
    refused("'judge' with {answers}, {given}, {question}", load_judge, str(path))
    with edited(path) as texts:
        texts["judge"] = OWN
        texts["judge"] *= 30
    write_json(root / RESULTS / "icl/dev/predict.json", [PREDICTION])
    write_json(root / RESULTS / "icl/dev/config.json", {"inference_method": "icl"})
    words = "longer than the judge's context has left"
    refused(words, run, judge, "--model_name", MODEL, "--prompts", str(path))
    (root / RESULTS / "icl/dev/predict.json").unlink()
    refused("no answer under", run, judge, *COMMON, "--prompts", "default")


def test_kappa_is_the_one_that_is_reckoned_by_hand():
    """Cohen's own layout: 20 both yes, 5 and 10 not the same, 15 both no: p_o 0.7, p_e 0.5."""
    pairs = [(1, 1)] * 20 + [(1, 0)] * 5 + [(0, 1)] * 10 + [(0, 0)] * 15
    a, b = zip(*pairs, strict=True)
    assert cohens_kappa(a, b) == pytest.approx(0.4) == cohens_kappa(b, a)
    assert cohens_kappa([1, 0, 1], [1, 0, 1]) == 1 and cohens_kappa([1, 0], [0, 1]) == -1
    assert str(cohens_kappa([1, 1], [1, 1])) == "nan" and cohens_kappa([1, 1], [1, 0]) == 0
