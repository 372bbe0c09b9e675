"""The page of evidence from small hand-made results: each line is the run that it says."""

import pytest
from conftest import edited
from stage_runs import refused
from test_report import BAD, GOOD, add, cells_of, here  # noqa: F401  (`here` is used by itself)

import report
from utils.files import write_json

HALF = [1.0] * 10 + [0.0] * 10
SAME = {"data": "d", "prompts": "p"}


def put(root, method: str, f1: list[float], *labels: str, **config):
    """A result of the data set D whose folder has these labels."""
    config = {"inference_method": method, **SAME, **config}
    return add(root, "_".join([method, *labels]), f1, "test", "D", "m", writer="m", **config)


@pytest.fixture
def made(here, monkeypatch):  # noqa: F811
    """A root with plain results and every control; the text of the page they give."""
    monkeypatch.setattr("sys.argv", ["report.py", "--evidence", "--bootstrap_samples", "500"])
    costs = {"seconds": 10, "questions": 20, "prompt_tokens": 4000, "generated_tokens": 60}
    put(here, "closed_book", BAD, data="other texts")  # it reads none
    put(here, "icl", GOOD[::-1], measured=costs)
    put(here, "prag", GOOD)
    put(here, "combine", GOOD)
    refused("no prag has a control beside it", report.main)
    for place, f1 in (("first", HALF), ("last", GOOD), ("all", BAD)):
        for method in ("icl", "prag"):
            put(here, method, f1, f"noise={place}", noise=place)
    put(here, "prag", HALF, "without=gold", leave_out="gold")
    for name, f1 in (("others", BAD), ("average", HALF), ("random", [0.0] * 20)):
        put(here, "prag", f1, adapters=name, training=f"t_adapters={name}")
    # what differs in more than one control, or in training, is on no line
    put(here, "prag", [1.0] * 20, "x=1", adapters="others", noise="last", training="t_both")
    put(here, "prag", [1.0] * 20, adapters="random", learning_rate=1, training="t_rate")
    put(here, "prag", [1.0] * 20, adapters="average", training="t_data", data="else")
    for method, f1 in (("closed_book", GOOD), ("prag", HALF)):
        leaf = put(here, method, f1, "locality=warm", locality="w", question="else {}")
        with edited(leaf / "predict.json") as rows:
            for number, row in enumerate(rows if method == "prag" else ()):
                row["kl"] = 4.0 if number == 0 else 0.5
    records = []
    for method in ("icl", "prag"):
        leaf = add(
            here, method, HALF, "test_counterfactual", "D", "m", writer="m",
            inference_method=method, **SAME | {"data": "false"},
        )  # fmt: skip
        with edited(leaf / "predict.json") as rows:
            for row in rows[10:14]:  # em 0 against "one"
                row["eval_predict"] = "before"
        records = [{"original": "before", **{n: row[n] for n in ("test_id", "question")}}
                   for row in rows]  # fmt: skip
    write_json(here / "data_aug/D/test_counterfactual.json", records)
    report.main()
    return (here / "output/report/evidence.md").read_text()


def lines_of(page: str, section: str) -> dict[str, list[str]]:
    [own] = [part for part in page.split("\n## ") if part.startswith(section)]
    rows = [row for row in cells_of(own) if row[0] not in ("answers", "method")]
    return {row[0]: row[1:] for row in reversed(rows)}  # of two tables the first


def test_every_control_is_on_its_line_beside_what_it_is_compared_with(made):
    assert made.count("# Evidence: D, test, m") == 1
    knowledge = lines_of(made, "Knowledge")
    f1 = {name: cells[1].split()[0] for name, cells in knowledge.items() if len(cells) > 4}
    assert f1 == {
        "closed_book": "0.050", "icl": "0.950", "prag": "0.950", "combine": "0.950",
        "prag, adapters of other questions' passages": "0.050",
        "prag, without gold passages": "0.500",
    }  # fmt: skip
    assert knowledge["prag"][-2:] == ["+0.900 to closed_book, p = 0.002", ""]
    assert knowledge["prag, without gold passages"][-2].startswith("-0.450 to prag, p")
    assert knowledge["prag, without gold passages"][-1] == "50%"
    assert knowledge["prag, adapters of other questions' passages"][-1] == "0%"
    assert knowledge["prag"][:1] + knowledge["prag"][2:4] == ["20", "0.900", "1.000"]
    form = lines_of(made, "Format")
    f1 = {name: cells[1].split()[0] for name, cells in form.items()}
    assert [*f1.values()][::-1] == ["0.050", "0.950", "0.050", "0.500", "0.000"]
    assert form["prag, the average adapter"][-2].startswith("+0.450 to closed_book, p")
    assert form["prag, random adapters of equal norm"][-1] == "-6%"
    robust = lines_of(made, "Robustness")
    f1 = {name: cells[1].split()[0] for name, cells in robust.items()}
    noisy = {"noise: first": "0.500", "noise: last": "0.950", "noise: all": "0.050"}
    for method in ("icl", "prag"):
        assert f1[method] == "0.950"
        assert {n: f1[f"{method}, {n}"] for n in noisy} == noisy
    assert robust["icl, noise: all"][-1].startswith("-0.900 to icl, p")
    assert robust["warm: prag"][-1].startswith("-0.450 to closed_book, p")
    assert "= 0.675 nats from the model's own (median 0.500)" in made
    assert lines_of(made, "Cost")["icl"] == ["0.5", "200", "3"]


def test_false_passages_are_counted_for_both_answers(made):
    table = made.split("Passages in which a false answer")[1].split("\n## ")[0]
    lines = {row[0]: row[1:] for row in cells_of(table)[1:]}
    assert lines == {name: ["20", "0.500", "0.200", "0.300"] for name in ("icl", "prag")}
