"""The report from small hand-made output trees."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

import report
from utils import plots
from utils.reporting.runs import METHODS
from utils.running import InputError

MODEL, DATASET, TRAINING = "llama3.2-1b-instruct", "2wikimultihopqa", "lr=0.0003_epoch=1_cot"
PAPER = {"lora_rank": 2, "lora_alpha": 32, "learning_rate": 3e-4, "augment_model": MODEL}


@pytest.fixture
def here(root, monkeypatch):
    """The report's root folder, with nothing in it, and a quick command line."""
    monkeypatch.setattr(sys, "argv", ["report.py", "--bootstrap_samples", "200"])
    monkeypatch.setitem(plots.STYLE, "savefig.dpi", 50)
    return root


TEXTS = {1.0: "one", 0.5: "one or two", 0.0: "two"}  # F1 -> a text that has it against "one"


def add(
    root, method, f1, data_type="total", dataset=DATASET, model=MODEL, training=TRAINING, **config
):
    """A run whose question i has the F1 `f1[i]`; `config` overrides its settings."""
    leaf = root / "output" / model / "rank=2_alpha=32" / dataset / training
    leaf = leaf / f"aug_model={model}" / method / data_type
    leaf.mkdir(parents=True)
    predictions = [
        {
            **{"test_id": i, "question": f"q{i}", "answer": ["one"], "text": ""},
            **({"eval_predict": TEXTS[f]} if f in TEXTS else {}),
            **{"em": float(f == 1), "f1": f, "prec": f, "recall": f, "answer_presence": 1.0},
        }
        for i, f in enumerate(f1)
    ]
    (leaf / "predict.json").write_text(json.dumps(predictions))
    settings = {"inference_method": method.split("_scale")[0].split("_topk")[0], **PAPER, **config}
    (leaf / "config.json").write_text(json.dumps(settings))
    return leaf


def folder(root):
    return root / "output" / "report"


def made(root):
    """The text of table.md and the lines of table.csv, newly made."""
    report.main()
    with (folder(root) / "table.csv").open(newline="") as file:
        return (folder(root) / "table.md").read_text(), list(csv.DictReader(file))


def cells_of(markdown):
    """Each table line as its list of cells."""
    lines = [line for line in markdown.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def by_row(lines, *names):
    return {tuple(line[name] for name in names): line for line in lines}


GOOD, BAD = [1.0] * 18 + [0.5] * 2, [0.0] * 18 + [0.5] * 2


def test_a_table_has_means_intervals_marks_and_the_papers_figures(here, capsys):
    add(here, "closed_book", BAD)
    add(here, "icl", BAD)
    add(here, "prag", GOOD)
    add(here, "combine", GOOD[::-1], data_type="comparison")
    table, lines = made(here)
    header, *rows = cells_of(table)
    # data types in the paper's order, total last; methods in the paper's order
    assert header == ["model", "method", "comparison (n = 20)", "total (n = 20)"]
    assert [row[1] for row in rows] == ["closed_book", "icl", "prag", "combine"]
    cells = {row[1]: row[2:] for row in rows}
    assert cells["closed_book"][1].startswith("0.050 [") and cells["closed_book"][1].endswith("] ‡")
    assert cells["icl"][1].endswith("] ‡ (paper 0.252, n = 300)")
    assert cells["prag"] == ["", cells["prag"][1]] and "0.950 [" in cells["prag"][1]
    assert cells["prag"][1].endswith("] † (paper 0.276, n = 300)")
    assert cells["combine"][0].endswith("] (paper 0.505, n = 300)")  # nothing to compare with
    prag = by_row(lines, "method")[("prag",)]
    assert (prag["em"], prag["answer_presence"], prag["n"]) == ("0.9", "1", "20")
    assert float(prag["f1_low"]) < 0.95 < float(prag["f1_high"]) <= 1
    assert float(prag["p_icl"]) < 0.05 and prag["p_prag"] == ""
    assert by_row(lines, "method")[("closed_book",)]["p_icl"] == "1"
    assert "paired randomisation test" in table and "not a mean over the types" in table
    shown = [line for line in capsys.readouterr().out.splitlines() if line != str(folder(here))]
    assert "0.950 [" in "".join(shown) and max(map(len, shown)) <= 80


def test_runs_with_other_questions_are_marked_and_not_tested(here):
    add(here, "icl", BAD)
    leaf = add(here, "closed_book", BAD)  # the same questions in another order are the same
    (leaf / "predict.json").write_text(json.dumps(json.loads(read(leaf))[::-1]))
    add(here, "prag", GOOD[:12])
    leaf = add(here, "combine", GOOD)
    other = [p | {"question": p["question"] + "!"} for p in json.loads(read(leaf))]
    (leaf / "predict.json").write_text(json.dumps(other))
    table, lines = made(here)
    cells = {row[1]: row[2] for row in cells_of(table)[1:]}
    assert "§ n = 12" in cells["prag"] and "§ n = 20" in cells["combine"]
    assert "†" not in "".join(cells.values()) and "‡" not in "".join(cells.values())
    assert "§ answered other questions" in table
    same = {line["method"]: line["same_questions"] for line in lines}
    assert same == {"closed_book": "True", "icl": "True", "prag": "False", "combine": "False"}
    assert all(line["p_icl"] == line["p_prag"] == "" for line in lines if line["method"] != "icl"
               and line["method"] != "closed_book")  # fmt: skip


@pytest.mark.parametrize("other", [{"data": "b"}, {"prompts": "b"}, {"dtype": "b"}])
def test_runs_under_other_conditions_are_marked_and_not_tested(here, other, capsys):
    """Results that stand from before new passages or prompts came."""
    same = {"data": "a", "prompts": "a", "dtype": "a"}
    add(here, "closed_book", BAD, **same)
    add(here, "icl", BAD, **same)
    add(here, "prag", GOOD, **{**same, **other})
    add(here, "combine", GOOD, **same)
    table, lines = made(here)
    marks = {row[1]: row[2].partition("]")[2].partition("(")[0].strip() for row in cells_of(table)}
    # combine can be compared with icl, but not with prag
    assert [marks[name] for name in ("icl", "prag", "combine")] == ["¶", "¶", "†¶"]
    # closed_book uses no passages, but prompts and a dtype
    assert ("¶" in marks["closed_book"]) == ("data" not in other)
    assert "¶ differs from" in table and "¶: other passages" in capsys.readouterr().out
    rows = by_row(lines, "method")
    assert rows[("prag",)]["p_icl"] == rows[("icl",)]["p_prag"] == ""
    assert rows[("prag",)]["same_conditions"] == "False"


def test_another_augmentation_of_the_same_passages_is_compared(here):
    """Its hash of the data differs; `icl` is in the other augmentation model's setting."""
    add(here, "icl", BAD, data="a")
    leaf = add(here, "prag", GOOD, data="b", augment_model="writer", training="lr=1_epoch=1")
    leaf.parents[1].rename(leaf.parents[1].with_name("aug_model=writer"))
    table, lines = made(here)
    assert float(by_row(lines, "method")[("prag",)]["p_icl"]) < 0.05 and "¶" not in table


def read(leaf):
    return (leaf / "predict.json").read_text()


def test_settings_have_rows_of_their_own_named_by_the_folders_that_differ(here):
    add(here, "icl", BAD)
    add(here, "prag", BAD)
    add(here, "prag_scale=0.5", GOOD, merge_scale=0.5)
    warm = f"{TRAINING}_warmup"
    add(here, "prag", GOOD, training=warm, init_adapter="warmup")
    add(here, "prag", GOOD, dataset="popqa", training="lr=0.0003_epoch=2")
    rows = by_row(made(here)[1], "dataset", "settings", "method")
    assert set(rows) == {
        (DATASET, TRAINING, "icl"),
        (DATASET, TRAINING, "prag"),
        (DATASET, TRAINING, "prag_scale=0.5"),
        (DATASET, warm, "prag"),
        ("popqa", "", "prag"),
    }
    # the paper's figure stands beside the paper's settings alone, and the warm one beside the warm
    published = {key: row["published_f1"] for key, row in rows.items()}
    assert published[DATASET, TRAINING, "prag"] == "0.2764"
    assert published[DATASET, TRAINING, "prag_scale=0.5"] == ""
    assert published[DATASET, warm, "prag"] == "0.3546"
    # tested against icl of the other setting, and against prag without the warm start
    assert float(rows[DATASET, warm, "prag"]["p_icl"]) < 0.05
    assert float(rows[DATASET, warm, "prag"]["p_prag"]) < 0.05
    assert float(rows[DATASET, TRAINING, "prag_scale=0.5"]["p_prag"]) < 0.05
    assert rows[DATASET, TRAINING, "prag"]["p_prag"] == ""
    assert rows["popqa", "", "prag"]["p_icl"] == ""


@pytest.mark.parametrize(
    "config",
    [
        {"learning_rate": 2e-3},
        {"augment_model": "other"},
        {"augment_parts": "qa"},
        {"answer_cut": "none"},
        {"merge_topk": 1},
    ],
)
def test_the_papers_figure_is_not_beside_runs_that_depart_from_it(here, config):
    add(here, "prag", GOOD, **config)
    assert made(here)[1][0]["published_f1"] == ""


@pytest.mark.parametrize("other", [{"answer_cut": "none"}, {"with_cot": True}])
def test_runs_are_not_tested_across_scorings_or_prompts(here, other):
    add(here, "icl", BAD, **other)
    add(here, "prag", GOOD, training="lr=1_epoch=1")
    rows = by_row(made(here)[1], "method")
    assert rows[("prag",)]["p_icl"] == ""


def test_a_model_has_its_published_figures_by_its_hub_name_too(here):
    name = "Llama-3.2-1B-Instruct"
    add(here, "icl", GOOD, model=name, augment_model=name)
    assert made(here)[1][0]["published_f1"] == "0.252"


def test_seconds_and_tokens_are_weighted_by_their_questions(here):
    measured = {"seconds": 10, "questions": 20, "prompt_tokens": 4000, "generated_tokens": 60}
    more = {"seconds": 80, "questions": 10, "prompt_tokens": 5000, "generated_tokens": 30}
    name = "llama3-8b-instruct"
    add(here, "icl", GOOD, model=name, measured=measured)
    add(here, "icl", GOOD, "comparison", model=name, measured=more)
    table, lines = made(here)
    assert cells_of(table)[1][-2:] == ["3 (paper 3.03)", "300"]
    figures = by_row(lines, "data_type")[("total",)]
    assert figures["seconds_per_question"] == "0.5"
    assert figures["prompt_tokens_per_question"] == "200"
    assert figures["generated_tokens_per_question"] == "3"


def test_question_types_of_ones_own_data_have_columns(here):
    add(here, "prag", [1.0, 0.0, 0.5], "test", dataset="D")
    (here / "data_aug" / "D").mkdir(parents=True)
    records = [{"question": f"q{i}", "type": t} for i, t in enumerate(["two", "one", "two"])]
    (here / "data_aug" / "D" / "test.json").write_text(json.dumps(records))
    table, lines = made(here)
    assert cells_of(table)[0][2:] == ["test (n = 3)", "test: one (n = 1)", "test: two (n = 2)"]
    assert [line["f1"] for line in lines] == ["0.5", "0", "0.75"]


def damage_settings(leaf):
    (leaf / "config.json").write_text('{"inference_method": "prag"}')


DAMAGES = {
    "em 1 where its answer gives 0": lambda leaf: (leaf / "predict.json").write_text(
        read(leaf).replace('"eval_predict": "one"', '"eval_predict": "two"', 1)
    ),
    "is no valid JSON": lambda leaf: (leaf / "predict.json").write_text('[{"em": 1'),
    "no list of predictions": lambda leaf: (leaf / "predict.json").write_text("[]"),
    "prediction 0 has no f1 from 0 to 1": lambda leaf: (leaf / "predict.json").write_text(
        read(leaf).replace('"f1": 1.0', '"f1": NaN', 1)
    ),
    "test_id 0 occurs twice": lambda leaf: (leaf / "predict.json").write_text(
        read(leaf).replace('"test_id": 1,', '"test_id": 0,')
    ),
    "no config.json": lambda leaf: (leaf / "config.json").unlink(),
    "not that of method icl": damage_settings,
    "is unfinished": lambda leaf: (leaf / "predict.json").unlink(),
    '"measured" in its config.json': lambda leaf: (leaf / "config.json").write_text(
        '{"inference_method": "icl", "measured": {"seconds": "1"}}'
    ),
}


@pytest.mark.parametrize("problem", DAMAGES)
def test_a_damaged_result_is_named_and_not_counted(here, problem, capsys):
    add(here, "prag", GOOD)
    leaf = add(here, "icl", GOOD)
    DAMAGES[problem](leaf)
    table, lines = made(here)
    assert [line["method"] for line in lines] == ["prag"]
    (warning,) = capsys.readouterr().err.splitlines()
    assert "icl/total is left out: " in warning and problem in warning
    assert warning.removeprefix("warning: ") in table


def test_a_result_in_a_strange_place_is_named(here, capsys):
    add(here, "prag", GOOD)
    (here / "output" / "mine").mkdir()
    (here / "output" / "mine" / "predict.json").write_text("[]")
    made(here)
    assert "mine is left out: results stand in {model}/" in capsys.readouterr().err


def test_the_report_is_the_same_when_made_again_and_filters_select(here, monkeypatch):
    add(here, "icl", BAD)
    add(here, "prag", GOOD, dataset="popqa")
    add(here, "prag", GOOD, dataset="popqa", model="m")
    made(here)
    first = {path.name: path.read_bytes() for path in folder(here).iterdir()}
    assert set(first) == {"table.md", "table.csv", "f1_by_method.png", "f1_by_method.pdf"}
    assert b"CreationDate" not in first["f1_by_method.pdf"]
    made(here)
    assert {path.name: path.read_bytes() for path in folder(here).iterdir()} == first
    monkeypatch.setattr(sys, "argv", ["report.py", "--dataset", "popqa", "--model_name", "x/m"])
    assert [line["model"] for line in made(here)[1]] == ["m"]
    monkeypatch.setattr(sys, "argv", ["report.py", "--dataset", "hotpotqa"])
    with pytest.raises(InputError, match=r"no result of hotpotqa .* choose another"):
        report.main()


def test_nothing_under_output_is_an_input_error(here):
    with pytest.raises(InputError, match=r"there is no result under .*output; run augment\.py"):
        report.main()
    assert not (here / "output").exists()


def test_the_script_says_so_in_one_sentence(tmp_path):
    command = [sys.executable, str(REPOSITORY / "src/report.py")]
    environment = {"PRAG_ROOT": str(tmp_path), "PATH": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert done.stderr.startswith("error: there is no result") and done.stderr.count("\n") == 1


def test_what_the_stages_write_is_read(copy, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["report.py"])
    _, lines = made(copy)
    assert capsys.readouterr().err == ""
    whole = [line for line in lines if not line["question_type"]]
    assert [line["method"] for line in whole] == list(METHODS)
    for line in whole:
        text = (Path(line["folder"]) / "result.txt").read_text()
        assert f"f1\t{float(line['f1']):.4f}\n" in text
        assert float(line["seconds_per_question"]) > 0
        assert float(line["prompt_tokens_per_question"]) > 5


# ------------------------------------------------------------------------------------------------
# Plots


@pytest.fixture
def figures(monkeypatch):
    """The figures that a report draws, in their order."""
    drawn = []
    monkeypatch.setattr(plots.plt, "close", drawn.append)
    return drawn


def overlaps(texts, renderer):
    """The pairs of texts that cover each other."""
    boxes = [(t.get_text(), plots.Text.get_window_extent(t, renderer)) for t in texts]
    return [
        (one, other)
        for i, (one, box) in enumerate(boxes)
        for other, its in boxes[:i]
        if one and other and box.overlaps(its)
    ]


def add_many(here, methods):
    for m, model in enumerate([MODEL, "qwen2.5-1.5b-instruct", "llama3-8b-instruct"]):
        for d, dataset in enumerate([DATASET, "hotpotqa", "popqa", "complexwebquestions"]):
            for i, method in enumerate(methods):
                f1 = [1.0] * (4 + i + m) + [0.0] * (16 - i - m)
                measured = {"seconds": (8 + 5 * i + d) * (m + 1), "questions": 20}
                measured |= {"prompt_tokens": 100, "generated_tokens": 10}
                add(here, method, f1, dataset=dataset, model=model, measured=measured)


def test_the_bars_are_the_means_with_their_intervals(here, figures):
    add(here, "icl", [0.5, 0.1])
    add(here, "combine", [1.0, 0.8])
    _, lines = made(here)
    (panel,) = figures[0].axes
    labels = [text.get_text() for text in panel.get_yticklabels()]
    names = dict(zip(panel.get_yticks(), labels, strict=True))
    widths = {
        names[round(bar.get_y() + bar.get_height() / 2)]: bar.get_width() for bar in panel.patches
    }
    assert widths == pytest.approx({"icl": 0.3, "combine": 0.9})
    whiskers = [line.get_segments()[0][:, 0].tolist() for line in panel.collections]
    assert whiskers == [
        pytest.approx([float(line["f1_low"]), float(line["f1_high"])], abs=1e-5) for line in lines
    ]


@pytest.mark.parametrize(
    "methods",
    [
        ("closed_book", "icl", "da_icl", "prag", "combine"),
        ("icl", "prag", "prag_topk=1_scale=0.5", "combine", "combine_topk=1_scale=0.5"),
    ],
)
def test_no_text_of_a_large_plot_covers_another(here, figures, methods):
    add_many(here, methods)
    report.main()
    assert len(figures) == 2
    for figure in figures:
        figure.draw_without_rendering()
        renderer = figure.canvas.get_renderer()
        texts = [text for axis in figure.axes for text in (axis.title, *axis.texts)]
        texts += [text for legend in figure.legends for text in legend.get_texts()]
        first_column = [axis for axis in figure.axes if axis.get_subplotspec().is_first_col()]
        texts += [label for axis in first_column for label in axis.get_yticklabels()]
        assert overlaps(texts, renderer) == []
        frame = figure.get_window_extent(renderer)
        for text in texts:
            box = plots.Text.get_window_extent(text, renderer)
            assert frame.x0 <= box.x0 and box.x1 <= frame.x1
            assert frame.y0 <= box.y0 and box.y1 <= frame.y1


def test_without_measured_time_there_is_no_plot_of_it_and_an_old_one_goes(here, capsys):
    add(here, "icl", GOOD)
    old = folder(here) / "f1_against_seconds.png"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"old")
    report.main()
    assert not old.exists()
    assert "have not measured their time" in capsys.readouterr().out
