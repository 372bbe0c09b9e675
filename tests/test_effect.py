"""The demo's effect: controls, table and figures, on results made up here."""

import sys

import pandas as pd
import pytest
from conftest import REPOSITORY

from utils.running import InputError

sys.path.insert(0, str(REPOSITORY / "benchmarks"))
import effect_controls
import effect_plots
import effect_summary as effect


def record(number: int, passages: list[str], answer: str = "red") -> dict:
    pairs = [{"answer": answer} for answer in ("blue", "red", "green")]
    augment = [{"passage": passage, "m_qa": pairs} for passage in passages]
    return {"question": f"{number}?", "answer": answer, "passages": passages, "augment": augment}


def test_no_question_gets_its_own_passages():
    records = [record(n, [f"article {n // 2}", f"passage {n}"]) for n in range(20)]
    exchanged = effect_controls.with_passages_of_others(records, seed=0)
    for own, other in zip(records, exchanged, strict=True):
        assert own["question"] == other["question"] and own["answer"] == other["answer"]
        assert not set(own["passages"]) & set(other["passages"])
        assert [entry["passage"] for entry in other["augment"]] == other["passages"]
    assert sorted(r["passages"] for r in exchanged) == sorted(r["passages"] for r in records)
    with pytest.raises(InputError, match="take more questions"):
        effect_controls.with_passages_of_others([record(n, ["same"]) for n in range(4)], seed=0)


def test_coverage_looks_at_the_passage_with_the_answer():
    kinds = {"red": "asked in context", "green": "asked without context", "black": "not asked"}
    for answer, kind in kinds.items():
        assert effect._coverage(record(0, ["p", "o"], answer), "p") == kind
    assert effect._coverage(record(0, ["p", "o"]), "q") == "not retrieved"


def made_up() -> tuple[dict, pd.DataFrame]:
    names = [f"q{i}" for i in range(40)]
    questions = pd.DataFrame(
        {"type": ["single_hop"] * 30 + ["two_hop"] * 10, "qid": names}, index=names
    )
    level = {"closed_book": 0, "icl": 36, "prag": 20, "combine": 40}
    scores = {
        name: {
            seed: pd.Series([float((i * 7 + seed) % 40 < right) for i in range(40)], index=names)
            for seed in (0, 1)
        }
        for name, right in level.items()
    }
    return scores, questions


def test_the_summary_has_means_over_seeds_intervals_and_tests():
    scores, questions = made_up()
    for name in ("icl, gold passages", "prag, gold passages", "icl, eight passages"):
        scores[name] = scores["combine"]
    summary = effect.summary_of(scores, questions)
    prag = summary["prag"]["all"]
    assert prag["f1"] == pytest.approx(0.5) and prag["low"] < 0.5 < prag["high"]
    assert prag["n"] == 40 and summary["prag"]["two_hop"]["n"] == 10
    assert prag["seeds"] == {"0": 0.5, "1": 0.5}
    assert prag["p_icl"] < 0.05 and "p_prag" not in prag
    # with other passages the reference is what answers from the same ones
    gold, icl_gold = summary["prag, gold passages"]["all"], summary["icl, gold passages"]["all"]
    assert gold["p_icl"] == icl_gold["p_prag"] == 1 and gold["p_prag"] < 0.05
    assert icl_gold["p_icl"] == summary["combine"]["all"]["p_icl"] < 1
    assert "p_prag" not in summary["icl, eight passages"]["all"]
    assert all(effect.reference_of(name, "icl") in effect.CONDITIONS for name in effect.CONDITIONS)
    text = effect.table_of(summary, {"not asked": effect.describe(pd.Series([0.0, 1.0]))})
    assert "| `prag` | 0.500 [" in text and "†" in text and "0.500 / 0.500" in text


def test_coverage_counts_single_hop_questions_by_what_the_pairs_ask_for():
    scores, questions = made_up()
    kinds = pd.Series(["asked in context"] * 20 + ["not asked"] * 20, index=questions.index)
    coverage = {0: kinds, 1: kinds.replace("not asked", "asked without context")}
    summary = effect.coverage_summary(scores["prag"], coverage, questions["type"])
    counts = {kind: entry["n"] for kind, entry in summary.items()}
    assert counts == {"asked without context": 10, "asked in context": 20, "not asked": 10}
    assert summary["not asked"]["f1"] == pytest.approx(scores["prag"][0].iloc[20:30].mean())


def test_wrong_answers_of_the_subjects_own_name_are_counted():
    said = {"Ana Berg": 0, "Ana": 0, "Ana Cole": 0, "Dora Cole": 0, "": 0, "red": 1}
    rows = [
        {"question": "Who is Ana Berg's son?", "eval_predict": text, "em": em}
        for text, em in said.items()
    ]
    types = pd.Series(["single_hop"] * 6 + ["two_hop"])
    counts = effect.names_in_wrong_answers([*rows, rows[0]], types)
    assert counts == {"wrong": 5, "name": 2, "part": 1}


def test_the_figures_are_drawn(tmp_path):
    effect_plots.plot_conditions(effect.summary_of(*made_up()), tmp_path / "effect.png")
    rows = [
        {"method": method, "learning_rate": rate, "num_train_epochs": epochs}
        | {"f1": 0.3, "low": 0.2, "high": 0.4}
        for method in ("prag", "combine", "icl")
        for rate in (3e-4, 2e-3)
        for epochs in (1, 4)
    ]
    effect_plots.plot_sweep(rows, (2e-3, 4), tmp_path / "sweep.png")
    assert all((tmp_path / f"{name}.png").stat().st_size > 5000 for name in ("effect", "sweep"))
