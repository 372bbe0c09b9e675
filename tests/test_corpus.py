"""A corpus as the data set: every passage of an index, from stage 1 to the adapters."""

import json

from augment_runs import instantly
from stage_runs import COMMON, run

import augment
import prep_elastic

ROWS = [(str(n), f"Fact number {n} is about the town {n * n}.", f"Town {n}") for n in range(8)]
CORPUS = [*COMMON, "--dataset", "mydocs", "--passages", "mydocs", "--max_attempts", "1"]


def index(root, rows) -> None:
    """The index of `rows`, which replaces the one that is there."""
    lines = ["\t".join(row) for row in [("id", "text", "title"), *rows]]
    (root / "corpus.tsv").write_text("\n".join(lines) + "\n")
    run(prep_elastic, "--data_path", str(root / "corpus.tsv"), "--index_name", "mydocs",
        "--overwrite")  # fmt: skip


def records(root) -> list[dict]:
    return json.loads((root / "data_aug/mydocs/corpus.json").read_text())


def test_every_passage_gets_texts_and_a_dropped_one_keeps_its_place(root, monkeypatch, capsys):
    index(root, ROWS[:4])
    asked = instantly(monkeypatch, bad={ROWS[1][1]})
    run(augment, *CORPUS)
    assert sorted(asked) == [text for _, text, _ in ROWS[:4]]
    written = records(root)
    for did, (record, (passage_id, text, title)) in enumerate(zip(written, ROWS, strict=False)):
        found = {"id": passage_id, "title": title}
        row = {"test_id": did, "question": None, **found, "passages": [text]}
        augmented = record.pop("augment")
        assert record == row
        if did == 1:
            assert augmented == []
            continue
        [entry] = augmented
        assert entry["pid"] == 0 and entry["passage"] == text and found.items() <= entry.items()
        assert entry["demo-model_rewrite"] == "rewritten " + text
    assert "corpus.json: 4 passages, 1 of them without texts" in capsys.readouterr().out
