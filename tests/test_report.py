"""The report from small hand-made output trees; its statistics against scipy."""

import csv
import itertools
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY, put
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from scipy import stats

import report
from utils.files import write_json
from utils.reporting import plots
from utils.reporting.statistics import bootstrap_interval, paired_test
from utils.reporting.tables import harmless

MODEL, DATASET, TRAINING = "llama3.2-1b-instruct", "2wikimultihopqa", "lr=0.0003_epoch=1_cot"
TEXTS = {1.0: "one", 0.5: "one or two", 0.0: "two"}  # F1 -> a text that has it against "one"
F1 = [0.0, 0.0, 0.0, 1.0, 1.0, 2 / 3, 0.5, 0.4, 0.8]
GOOD, BAD = [1.0] * 18 + [0.5] * 2, [0.0] * 18 + [0.5] * 2


@pytest.fixture
def here(root, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["report.py", "--bootstrap_samples", "200"])
    monkeypatch.setitem(plots.STYLE, "savefig.dpi", 50)
    return root


def add(
    root, method, f1, data_type="total", dataset=DATASET, model=MODEL, training=TRAINING,
    question="q{}", writer=MODEL, **config,
):  # fmt: skip
    """A run whose question i has the F1 `f1[i]`; `config` overrides its settings."""
    leaf = root / f"output/{model}/rank=2_alpha=32/{dataset}/{training}/aug_model={writer}"
    leaf = leaf / method / data_type
    predictions = []
    for i, f in enumerate(f1):
        row = {"test_id": i, "question": question.format(i), "answer": ["one"], "text": ""}
        row |= {"eval_predict": TEXTS[f], "em": float(f == 1), "answer_presence": 1.0}
        predictions.append(row | dict.fromkeys(("f1", "prec", "recall"), f))
    write_json(leaf / "predict.json", predictions)
    base_method = method.split("_scale")[0].split("_topk")[0]
    settings = {"inference_method": base_method, "augment_model": writer, **config}
    write_json(leaf / "config.json", settings)
    return leaf


def made(root):
    """The text of table.md and the lines of table.csv, newly made."""
    report.main()
    with (root / "output/report/table.csv").open(newline="") as file:
        return (root / "output/report/table.md").read_text(), list(csv.DictReader(file))


def cells_of(markdown):
    lines = [line for line in markdown.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def is_tested(line):
    return [name for name in ("icl", "prag") if line[f"p_{name}"]]


def test_a_table_has_means_intervals_marks_and_the_papers_figures(here, capsys):
    for method, f1 in (("closed_book", BAD), ("icl", BAD), ("prag", GOOD)):
        add(here, method, f1)
    add(here, "combine", GOOD[::-1], data_type="comparison")
    table, lines = made(here)
    header, *rows = cells_of(table)
    # data types in the paper's order, total last; methods in the paper's order
    assert header == ["method", "comparison (n = 20)", "total (n = 20)"]
    cells = {row[0]: row[1:] for row in rows}
    assert list(cells) == ["closed_book", "icl", "prag", "combine"]
    assert re.fullmatch(r"0\.050 \[.*\] ‡", cells["closed_book"][1])
    assert cells["icl"][1].endswith("] ‡ (paper 0.252)") and cells["prag"][0] == ""
    assert re.fullmatch(r"0\.950 \[.*\] † \(paper 0\.276\)", cells["prag"][1])
    assert cells["combine"][0].endswith("] (paper 0.505)")  # nothing to compare with
    closed_book, _, prag, _ = lines
    assert (prag["em"], prag["answer_presence"], prag["n"]) == ("0.9", "1", "20")
    assert float(prag["f1_low"]) < 0.95 < float(prag["f1_high"]) <= 1
    assert float(prag["p_icl"]) < 0.05 and prag["p_prag"] == "" and closed_book["p_icl"] == "1"
    assert "0.950 [" in capsys.readouterr().out


@pytest.mark.parametrize("other, sentence", [
    ({"question": "q{}!"}, "the questions, the passages or what was written about them"),
    ({"data": "b"}, "the questions, the passages or what was written about them"),
    ({"prompts": "b"}, "prompts b (there a)"),
    ({"answer_cut": "none"}, "answer_cut none (there mark)"),
])  # fmt: skip
def test_results_under_other_conditions_are_in_a_table_of_their_own(here, other, sentence, capsys):
    same = {"data": "a", "prompts": "a"}
    add(here, "icl", BAD, **same)
    file = add(here, "combine", GOOD, **same) / "predict.json"  # the same questions, other order
    write_json(file, json.loads(file.read_text())[::-1])
    add(here, "prag", GOOD, **{**same, **other})
    add(here, "closed_book", BAD, **{**same, "data": "c"})  # uses no passages
    table, lines = made(here)
    tested = {line["method"]: line["group"] + " ".join(is_tested(line)) for line in lines}
    assert tested == {"closed_book": "1icl", "icl": "1", "combine": "1icl", "prag": "2"}
    assert f"## {DATASET}, {MODEL}, group 2\n\nNot compared with the first table" in table
    assert f"differs in: {sentence}." in table and sentence in capsys.readouterr().out


def test_settings_have_rows_of_their_own_named_by_the_folders_that_differ(here):
    add(here, "icl", BAD)
    add(here, "prag", BAD)
    add(here, "prag_scale=0.5", GOOD, merge_scale=0.5)
    warm = f"{TRAINING}_warmup"
    add(here, "prag", GOOD, training=warm, init_adapter="warmup")
    add(here, "combine", GOOD, training=warm, init_adapter="warmup", seed=1)
    add(here, "prag", GOOD, training="lr=1", learning_rate=1)
    add(here, "prag", GOOD, training="objective", objective="answer")
    add(here, "prag", GOOD, dataset="popqa", writer="other")
    lines = made(here)[1]
    rows = {(line["settings"], line["method"]): line for line in lines[:-1]}
    assert {key: is_tested(row) for key, row in rows.items()} == {
        (TRAINING, "icl"): ["prag"],
        (TRAINING, "prag"): ["icl"],
        (TRAINING, "prag_scale=0.5"): ["icl", "prag"],
        (warm, "prag"): ["icl", "prag"],  # the icl of another setting, the prag without warm start
        (warm, "combine"): ["icl"],  # its prag has another seed
        ("lr=1", "prag"): ["icl"],
        ("objective", "prag"): ["icl", "prag"],
    }
    # the paper's figure is beside the paper's settings alone, and the warm one beside the warm
    published = {key: row["published_f1"] for key, row in rows.items() if row["published_f1"]}
    assert lines[-1]["dataset"] == "popqa" and not lines[-1]["published_f1"]
    assert list(published) == [(TRAINING, "icl"), (TRAINING, "prag"), (warm, "prag")]
    assert list(published.values()) == ["0.252", "0.2764", "0.3546"]
    write_json(here / f"data_aug/{DATASET}/.total.{MODEL}.settings", {"answers": "all"})
    assert not any(line["published_f1"] for line in made(here)[1])  # others count as right


def test_seconds_and_tokens_are_weighted_by_their_questions(here):
    measured = {"seconds": 10, "questions": 20, "prompt_tokens": 4000, "generated_tokens": 60}
    more = {"seconds": 80, "questions": 10, "prompt_tokens": 5000, "generated_tokens": 30}
    name = "Meta-Llama-3-8B-Instruct"  # the paper's llama3-8b-instruct by its hub name
    add(here, "icl", GOOD, model=name, measured=measured)
    add(here, "icl", GOOD[:10], "comparison", model=name, measured=more)
    table, lines = made(here)
    assert cells_of(table)[1][-2:] == ["3", "300"] and "(paper 0.5" in table
    assert "retrievals per" not in table
    counted = {**more, "retrievals": 15, "model_calls": 25}
    add(here, "flare", GOOD[:10], "comparison", model=name, measured=counted)
    assert cells_of(made(here)[0])[2][-3:] == ["8", "500", "1.5"]
    costs = ("seconds", "prompt_tokens", "generated_tokens")
    assert [lines[1][f"{cost}_per_question"] for cost in costs] == ["0.5", "200", "3"]


def test_question_types_have_columns_and_no_text_from_data_does_harm(here):
    add(here, "prag", [1.0, 0.0, 0.5], "test", dataset="D")
    bad = "\t=two|<b>$x\n\x1b[31m\u202e[l](javascript:x) `c` *e* _e_ a_b \\"
    types = [bad, "one", bad]
    records = [{"question": f"q{i}", "type": t} for i, t in enumerate(types)]
    write_json(here / "data_aug/D/test.json", records)
    table, lines = made(here)
    shown = "=two&#124;&lt;b&gt;$x [31m [l]&#40;javascript:x) &#96;c&#96; &#42;e&#42; &#95;e&#95; "
    shown += "a_b &#92;"
    labels = ["test (n = 3)", f"test: {shown} (n = 2)", "test: one (n = 1)"]
    assert cells_of(table)[0][1:] == labels
    assert [line["f1"] for line in lines] == ["0.5", "0.75", "0"]
    assert lines[1]["question_type"] == "'=two|<b>$x [31m [l](javascript:x) `c` *e* _e_ a_b \\"
    assert harmless(bad) == lines[1]["question_type"][1:] and harmless("$", "plot") == r"\$"
    cells = " ".join(harmless(f"\r{sign}1", "csv") for sign in "+-@\uff1d1")
    assert cells == "'+1 '-1 '@1 '\uff1d1 11"


@pytest.mark.parametrize("name, old, new, problem", [
    ("predict", '"eval_predict": "one"', '"eval_predict": ""', "em 1 and not the 0 of its answer"),
    ("predict", '"f1": 1.0', '"f1": NaN', "has f1 nan"),
    ("predict", '"test_id": 0,', "", "config.json or predict.json is damaged"),
    ("config", '"icl"', '"prag"', "is not that of method icl"),
    ("predict", "", None, "is unfinished"),
])  # fmt: skip
def test_a_damaged_result_is_named_and_not_counted(here, name, old, new, problem, capsys):
    add(here, "prag", GOOD)
    file = add(here, "icl", GOOD) / f"{name}.json"
    put(file, None if new is None else file.read_text().replace(old, new, 1))
    table, lines = made(here)
    assert [line["method"] for line in lines] == ["prag"]
    (warning,) = capsys.readouterr().err.splitlines()
    assert "total is left out: " in warning and problem in warning and warning[9:] in table


def test_the_report_is_the_same_when_made_again_and_filters_select(here):
    add(here, "icl", BAD)
    for model in (MODEL, "m"):
        add(here, "prag", GOOD, dataset="popqa", model=model)
    made(here)
    folder = here / "output/report"
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(first) == {"table.md", "table.csv", "f1_by_method.png", "f1_by_method.pdf"}
    (folder / "f1_against_seconds.png").write_bytes(b"old")
    made(here)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first
    sys.argv += ["--dataset", "popqa", "--model_name", "x/m"]
    assert [line["model"] for line in made(here)[1]] == ["m"]


def test_what_an_older_version_has_written_is_read(here, capsys):
    shutil.copytree(REPOSITORY / "tests/data/made_by_4200079", here, dirs_exist_ok=True)
    table, lines = made(here)
    assert capsys.readouterr().err == ""
    assert all(name in table for name in ("closed_book", "icl", "prag_topk=1_scale=0.5"))
    whole = [line for line in lines if not line["question_type"]]
    methods = ["closed_book", "icl", "prag", "prag_topk=1_scale=0.5", "combine"]
    assert [(line["method"], line["group"]) for line in whole] == [(one, "1") for one in methods]
    for line in whole:
        text = (Path(line["folder"]) / "result.txt").read_text()
        assert f"f1\t{float(line['f1']):.4f}\n" in text
        assert float(line["prompt_tokens_per_question"]) > 5


def test_the_bars_are_the_means_and_no_text_covers_another(here, monkeypatch):
    models, datasets = (MODEL, "qwen2.5-1.5b-instruct"), (DATASET, "hotpotqa", "popqa")
    for model, dataset in itertools.product(models, datasets):
        for i, method in enumerate(["icl", "prag", "prag_topk=1_scale=0.5", "combine"]):
            measured = {"seconds": 8 + 5 * i, "questions": 20}
            measured |= {"prompt_tokens": 100, "generated_tokens": 10}
            f1 = [1.0] * (4 + i) + [0.0] * (16 - i)
            add(here, method, f1, dataset=dataset, model=model, measured=measured)
    drawn = []
    monkeypatch.setattr(plots, "Figure", lambda **how: drawn.append(Figure(**how)) or drawn[-1])
    lines = [line for line in made(here)[1] if line["dataset"] == DATASET]
    panel, scatter = drawn[0].axes[0], drawn[1]
    labels = [f"{line['model']}, {line['method']}" for line in lines]
    for texts in (panel.get_yticklabels(), scatter.legends[0].get_texts()):
        assert [text.get_text() for text in texts] == labels
    widths = [bar.get_width() for bar in panel.patches]
    assert widths == pytest.approx([float(line["f1"]) for line in lines], abs=1e-5)
    whiskers = [x for segment in panel.collections[0].get_segments() for x in segment[:, 0]]
    ends = [float(line[end]) for line in lines for end in ("f1_low", "f1_high")]
    assert whiskers == pytest.approx(ends, abs=1e-5)
    for figure in drawn:
        figure.draw_without_rendering()
        texts = [text for axis in figure.axes for text in (axis.title, *axis.texts)]
        texts += scatter.legends[0].get_texts() if figure is scatter else panel.get_yticklabels()
        boxes = [text.get_window_extent() for text in texts]
        for number, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[:number])
            assert (figure.bbox.min <= box.min).all() and (box.max <= figure.bbox.max).all()


def f1_scores(n, seed, shift=0.0):
    rng = np.random.default_rng(seed)
    return np.where(rng.random(n) < shift, 1.0, rng.choice(F1, n))


def scipy_p(a, b, **more):
    how = {"permutation_type": "samples", "rng": 0, **more}
    return stats.permutation_test((a, b), lambda x, y, axis: (x - y).mean(axis), **how).pvalue


def test_the_interval_is_scipys():
    scores = f1_scores(300, 2)
    how = {"n_resamples": 20_000, "method": "percentile", "batch": 1000, "rng": 0}
    low, high = stats.bootstrap((scores,), np.mean, **how).confidence_interval
    ours = bootstrap_interval(scores, 20_000)
    assert ours == pytest.approx((low, high), abs=0.03 * (high - low))
    assert bootstrap_interval([0.25] * 9) == (0.25, 0.25)
    assert bootstrap_interval(scores, 500, 7) == bootstrap_interval(scores[::-1], 500, 7)
    assert bootstrap_interval(scores, 500, 7) != bootstrap_interval(scores, 500, 8)


@pytest.mark.parametrize("shift", [0.0, 0.06, 0.15])
def test_the_p_value_is_scipys_on_random_flips(shift):
    a, b = f1_scores(200, 5), f1_scores(200, 6, shift)
    expected = scipy_p(a, b, n_resamples=9_999, batch=1000)
    error = 4 * (2 * expected * (1 - expected) / 10_000) ** 0.5 + 1e-3
    assert paired_test(a, b) == pytest.approx(expected, abs=error)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.sampled_from(F1), st.sampled_from(F1)), min_size=2, max_size=10))
def test_the_p_value_is_scipys_exact_one_on_small_samples(pairs):
    a, b = np.array(pairs).T
    p = paired_test(a, b)
    assert p == pytest.approx(scipy_p(a, b, n_resamples=np.inf), abs=0.025)
    assert paired_test(b, a) == p == paired_test(a, b) and 0 < p <= 1


def test_rounding_does_not_decide_and_what_cannot_be_averaged_or_paired_is_refused():
    assert paired_test([0.1, 0.9, 0.5], [0.1, 0.9, 0.5]) == 1.0
    # the differences are 0.2 and -0.2, but not in binary: each flip is as far as the observed one
    assert paired_test([0.3, 0.1], [0.1, 0.3]) == 1.0
    # a constant difference: only the two flips of all signs are as far
    assert paired_test([1.0] * 20, [0.0] * 20) == pytest.approx(1e-4, abs=1e-5)
    for scores in ([], [0.5, float("nan")], [[0.5]]):
        with pytest.raises(ValueError, match="finite numbers"):
            bootstrap_interval(scores)
    with pytest.raises(ValueError, match="of 2 and of 1 questions"):
        paired_test([0, 1], [1])


def reproduction(root) -> str:
    sys.argv.append("--reproduction")
    report.main()
    return (root / "output/report/reproduction.md").read_text()


def test_the_page_of_reproductions_holds_the_tables_of_the_published_figures(here):
    made = reproduction(here)
    page = (REPOSITORY / "docs/reproduction.md").read_text(encoding="utf-8")
    written = page.split("<!-- begin -->\n\n")[1].split("\n<!-- end -->")[0]
    assert made == written, "run `python src/report.py --reproduction`"
    averages = {tuple(row[:3]): row[3:] for row in cells_of(written.split("### Averages")[1])}
    # the two averages at 8B, and one that its paper prints
    assert averages["llama3-8b-instruct", "prag", "paper"] == ["0.411", "0.404"]
    assert averages["llama3-8b-instruct", "prag", "2509.01088"] == ["0.282", ""]
    assert averages["qwen2.5-1.5b-instruct", "icl", "2510.12668 (judged)"] == ["0.249", "0.241"]


def test_a_run_is_a_line_of_its_cell_among_those_of_others(here):
    more = {"seed": 3, "prompts": "99c03d4a6f7e", "provenance": {"git_commit": "957f8e43aaa3"}}
    add(here, "prag", GOOD, **more)
    add(here, "prag", BAD, data_type="inference", **more)
    add(here, "icl", BAD, dataset="own")
    table = reproduction(here).split("### 2wikimultihopqa")[1].split("###")[0]
    [mine] = [row for row in cells_of(table) if "yours" in row[2]]
    by = f"yours, rank=2_alpha=32, {TRAINING}, aug_model={MODEL}, seed 3, prompts 99c03d4a, "
    by += "commit 957f8e4"
    assert mine[:5] == [MODEL, "prag", by, "", ""] and mine[6] == ""
    assert re.fullmatch(r"0\.050 \[0\.\d+, 0\.\d+\] n 20", mine[5])
    assert mine[7].startswith("0.950 [")
    before = [row[1] for row in cells_of(table) if row[0] == MODEL].index("combine")
    assert cells_of(table)[before] == mine  # after the others' prag, before combine
