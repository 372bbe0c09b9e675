"""The table and the plot from a small hand-made output tree."""

import json
import sys

import pytest

import report
from utils.paths import InputError

EXPERIMENT = "model/rank=2_alpha=32/D/lr=0.0003_epoch=1/aug_model=model"


@pytest.fixture
def here(root, monkeypatch):
    """The report's root folder, with nothing in it, and a command line without flags."""
    monkeypatch.setattr(sys, "argv", ["report.py"])
    return root


def add_result(root, method, scores, data_type="test", experiment=EXPERIMENT):
    """A `predict.json` whose question i has the (em, f1) of `scores[i]`."""
    leaf = root / "output" / experiment / method / data_type
    leaf.mkdir(parents=True)
    predictions = [
        {"test_id": i, "question": f"q{i}", "em": em, "f1": f1} for i, (em, f1) in enumerate(scores)
    ]
    (leaf / "predict.json").write_text(json.dumps(predictions))


def cells_of(markdown):
    """Each table line as its list of cells."""
    lines = [line for line in markdown.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_table_has_means_counts_and_question_types_in_the_methods_order(here, capsys):
    add_result(here, "combine", [(1, 1.0), (0, 0.5), (1, 1.0)])
    add_result(here, "icl", [(0, 0.0), (0, 0.25), (1, 1.0)])
    (here / "data_aug" / "D").mkdir(parents=True)
    records = [{"question": f"q{i}", "type": t} for i, t in enumerate(["two", "one", "two"])]
    (here / "data_aug" / "D" / "test.json").write_text(json.dumps(records))
    report.main()
    table = (here / "output" / "report" / "table.md").read_text()
    assert cells_of(table) == [
        ["method", "EM", "F1", "questions", "F1 one", "F1 two"],
        ["icl", "0.333", "0.417", "3", "0.250", "0.500"],
        ["combine", "0.667", "0.833", "3", "0.500", "1.000"],
    ]
    assert table in capsys.readouterr().out
    picture = (here / "output" / "report" / "f1_by_method.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and picture.endswith(b"IEND\xaeB`\x82")


def test_experiments_and_data_types_have_tables_of_their_own(here):
    add_result(here, "prag", [(1, 1.0)])
    add_result(here, "icl", [(0, 0.5)], data_type="dev")
    add_result(here, "icl", [(0, 0.0)], experiment=EXPERIMENT.replace("epoch=1", "epoch=2_cot"))
    report.main()
    table = (here / "output" / "report" / "table.md").read_text()
    assert [cells[:4] for cells in cells_of(table) if cells[0] != "method"] == [
        ["icl", "0.000", "0.500", "1"],
        ["prag", "1.000", "1.000", "1"],
        ["icl", "0.000", "0.000", "1"],
    ]
    titles = [line for line in table.splitlines() if line.startswith("D, ")]
    assert [title.split(" ")[1] for title in titles] == ["dev", "test", "test"]
    report.main()  # the report's own files are no results
    assert (here / "output" / "report" / "table.md").read_text() == table


def test_the_plot_shows_the_f1_of_each_method_in_its_panel(here, tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(report.plt, "close", figures.append)
    add_result(here, "icl", [(0, 0.5), (0, 0.1)])
    add_result(here, "combine", [(1, 1.0), (0, 0.8)])
    report.main()
    (panel,) = figures[0].axes
    heights = {
        label.get_text(): round(float(bar.get_height()), 6)
        for label, bar in zip(panel.get_xticklabels(), panel.patches, strict=True)
    }
    assert heights == {"icl": 0.3, "combine": 0.9}


def test_nothing_under_output_is_an_input_error(here):
    with pytest.raises(InputError, match=r"there is no result under .*output; run augment\.py"):
        report.main()
    assert not (here / "output").exists()


def test_a_damaged_result_is_named_and_not_left_out(here):
    add_result(here, "prag", [(1, 1.0)])
    leaf = here / "output" / EXPERIMENT / "icl" / "test"
    leaf.mkdir(parents=True)
    (leaf / "predict.json").write_text('[{"em": 1')
    with pytest.raises(InputError, match=r"icl/test/predict\.json is no valid JSON"):
        report.main()
