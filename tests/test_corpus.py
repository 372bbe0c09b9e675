"""A corpus as the data set: every passage of an index, from stage 1 to the adapters."""

import json
import shutil

import augment_runs
from adapter_runs import changes_of, killed_at
from augment_runs import instantly
from stage_runs import COMMON, MODEL, refused, run, tree, watched
from test_retrieval import write_corpus

import adapters
import augment
import encode
import inference
import prep_elastic
from utils.augmentation.records import read_augmented
from utils.experiment import Experiment
from utils.files import write_json
from utils.recipe import Recipe
from utils.retrieval.corpus import read_corpus
from utils.sources import trained as trained_source

ROWS = [(str(n), f"Fact number {n} is about the town {n * n}.", f"Town {n}") for n in range(8)]
CORPUS = [*COMMON, "--dataset", "mydocs", "--passages", "mydocs", "--max_attempts", "1"]


def index(root, rows) -> None:
    """The index of `rows`, which replaces the one that is there."""
    corpus = str(write_corpus(root / "corpus.tsv", rows))
    run(prep_elastic, "--data_path", corpus, "--index_name", "mydocs", "--overwrite")


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


ENCODE = [*COMMON, "--dataset", "mydocs", "--learning_rate", "4e-3", "--adapters_per_batch", "3"]
PLACE = "offline/demo-model/rank=2_alpha=32/mydocs/lr=0.004_epoch=1/aug_model=demo-model"


def made(root, monkeypatch, rows) -> int:
    """Index, augment, encode `rows`; how many adapters were trained."""
    index(root, rows)
    run(augment, *CORPUS)
    with monkeypatch.context() as patch:
        calls = watched(patch, trained_source, "train_as_fits")
        run(encode, *ENCODE)
    return sum(len(adapters) for *_, adapters in calls)


def weights(root) -> dict[str, bytes]:
    """The weights of each passage's adapter, by its text."""
    by_text = {}
    folder = root / PLACE / "corpus"
    for did, record in enumerate(records(root)):
        file = folder / f"data_{did}/passage_0/adapter_model.safetensors"
        by_text[record["passages"][0]] = file.read_bytes()
    assert len(list(folder.glob("data_*/*"))) == len(records(root))  # and no others
    return by_text


def test_a_corpus_that_grows_or_changes_trains_new_passages_alone(root, monkeypatch, capsys):
    asked = instantly(monkeypatch)
    assert made(root, monkeypatch, ROWS[:5]) == 5
    first = weights(root)
    asked.clear()
    assert made(root, monkeypatch, ROWS) == 3
    assert sorted(asked) == [text for _, text, _ in ROWS[5:]]
    grown = weights(root)
    assert first.items() <= grown.items() and len(set(grown.values())) == 8
    # one goes, one changes, one comes between, all others are elsewhere
    changed = [
        ("x", "A new fact.", "New"),
        ROWS[7],
        *ROWS[1:4],
        ("4", "Corrected.", ""),
        *ROWS[5:7],
    ]
    asked.clear()
    assert made(root, monkeypatch, changed) == 2
    assert sorted(asked) == ["A new fact.", "Corrected."]
    said = capsys.readouterr().out
    assert "8 adapters are of passages that the corpus has elsewhere" in said
    assert "corpus.json: 8 passages; 2 that the index has no more are left out" in said
    after = weights(root)
    assert {t: w for t, w in after.items() if t in grown} == {
        t: w for t, w in grown.items() if t in after
    }
    assert made(root, monkeypatch, changed[:3]) == 0
    assert weights(root) == {t: after[t] for _, t, _ in changed[:3]}
    run(adapters, "verify", *ENCODE[:-2])


def write(root, **texts) -> None:
    """Files of the folder `docs`, by their names with "__" for "/" and "_" for ".\"."""
    for name, text in texts.items():
        *folders, file = name.split("__")
        path = root.joinpath("docs", *folders, file.replace("_", "."))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())


def indexed_texts(root, *more: str) -> list[tuple]:
    run(prep_elastic, "--from_text", str(root / "docs"), "--index_name", "notes", *more)
    return list(read_corpus(root / "index/notes.tsv"))


def test_a_folder_of_texts_becomes_passages_of_100_words(root, capsys):
    words = [f"w{n}" for n in range(250)]
    markdown = (
        "\ufeffAbove.\r\n# Life  ##\n" + "\n".join(words) + "\n```\n# code\n```\n##\t\n\n# Empty\n"
    )
    write(root, b_md=markdown, a__z_TXT="# no heading\there", a__y_md="", **{"_hidden_md": "x"})
    write(root, B_txt="Capitals come first.", a_html="<p>", **{"a__img_png": b"\xff"})
    blocks = [" ".join(words[:100]), " ".join(words[100:200])]
    last = " ".join([*words[200:], "```", "#", "code", "```"])
    expected = [
        ("B", "Capitals come first."),
        ("z", "# no heading here"),
        ("b", "Above."),
        *(("b: Life", text) for text in [*blocks, last]),
    ]
    rows = indexed_texts(root)
    assert rows == [(str(n), text, title) for n, (title, text) in enumerate(expected)]
    said = capsys.readouterr()
    assert (
        "next: python src/augment.py --model_name MODEL --dataset notes --passages notes"
        in said.out
    )
    assert "1 files without text are left out: " in said.err and "y.md" in said.err
    write(root, c_txt="More.")
    refused("exists already, of another corpus", indexed_texts, root)
    assert indexed_texts(root, "--overwrite") == [*rows, (str(len(rows)), "More.", "c")]


def test_a_folder_without_usable_texts_is_refused(root):
    refused("does not exist; give a folder of", indexed_texts, root)
    (root / "docs").write_text("")
    refused("is not a folder", indexed_texts, root)
    (root / "docs").unlink()
    write(root, a_pdf="x")
    refused("holds no .md or .txt file", indexed_texts, root)
    write(root, a_txt=" \n", b_md="# Heading alone")
    refused("holds 2 .md and .txt files without text", indexed_texts, root)
    write(root, c_txt="Ärger".encode("latin-1"))
    refused(r"the document \S*c\.txt is not UTF-8 \(byte 0\); convert it", indexed_texts, root)
    assert not (root / "index").exists()


def test_a_corpus_answers_nothing_and_its_neighbours_are_a_plan(root, monkeypatch):
    found = augment_runs.PAIRS.replace("Q?", "Which fact is about the town?")
    monkeypatch.setattr(augment_runs, "PAIRS", found)
    instantly(monkeypatch)
    index(root, ROWS[:4])
    run(augment, *CORPUS)
    beside = [*ENCODE, "--neighbours", "1", "--index_name", "mydocs"]
    run(encode, *beside)
    run(adapters, "verify", *ENCODE[:-2], "--neighbours", "1")
    method = ["--inference_method", "prag"]
    refused("corpus of mydocs has passages but no questions", run, inference, *ENCODE[:-2], *method)
    index(root, ROWS[:5])
    run(augment, *CORPUS)
    refused("was trained with other neighbours.* --overwrite", run, encode, *beside)
    run(encode, *beside, "--overwrite")
    run(adapters, "export", *ENCODE[:-2], "--neighbours", "1", "--all", "--output",
        str(root / "exported"))  # fmt: skip
    assert sorted(f.name for f in (root / "exported").iterdir()) == [
        f"corpus_{n}" for n in range(5)
    ]
    run(adapters, "pack", *ENCODE[:-2], "--neighbours", "1")
    run(adapters, "list")


def test_texts_of_another_corpus_are_kept(root, monkeypatch):
    instantly(monkeypatch)
    index(root, ROWS[:4])
    run(augment, *CORPUS)
    before = tree(root / "data_aug")
    run(augment, *CORPUS, "--sample", "2")
    index(root, ROWS[1:5])
    refused("4 passages: --sample 3 would cut it off", run, augment, *CORPUS, "--sample", "3")
    refused("was made with seed = 0", run, augment, *CORPUS, "--seed", "1")
    index(root, ROWS[5:])
    refused("holds none of this index's passages", run, augment, *CORPUS)
    assert tree(root / "data_aug") == before
    index(root, ROWS[:4])
    run(encode, *ENCODE)
    shutil.rmtree(root / "data_aug")
    run(augment, *CORPUS, "--seed", "1")
    monkeypatch.setattr(augment_runs, "PAIRS", augment_runs.PAIRS.replace("Q?", "R?"))
    shutil.rmtree(root / "data_aug")
    run(augment, *CORPUS, "--seed", "1")
    refused("made with data", run, encode, *ENCODE)  # no adapter is of a text that is there now


def test_a_changed_corpus_ends_alike_after_kills_and_in_jobs(root, tmp_path_factory, monkeypatch):
    """Passages that are elsewhere, and a new one: killed at any change of the disk, or in parts."""
    instantly(monkeypatch)
    made(root, monkeypatch, ROWS[:5])
    index(root, [ROWS[3], ("n", "New.", ""), *ROWS[:2], ROWS[4]])
    before = tmp_path_factory.mktemp("before")
    shutil.copytree(root, before, dirs_exist_ok=True)

    def again() -> None:
        shutil.rmtree(root)
        shutil.copytree(before, root)

    def work(*more: str) -> None:
        run(augment, *CORPUS)
        run(encode, *ENCODE, *more)

    changes = changes_of(work)
    whole = tree(root)
    assert len(weights(root)) == 5
    for step in range(2, changes, changes // 6):
        again()
        assert killed_at(step, work)
        work()
        assert tree(root) == whole, step
    again()
    for job in ("1/2", "0/2"):
        work("--shard", job)
    work()
    assert tree(root) == whole


def test_two_models_write_about_one_corpus(root, monkeypatch):
    shutil.copytree(MODEL, root / "other-model")
    other = [*CORPUS, "--model_name", str(root / "other-model")]
    index(root, ROWS[:3])
    instantly(monkeypatch)
    run(augment, *CORPUS)
    instantly(monkeypatch, bad={ROWS[1][1]})
    run(augment, *other)
    asked = instantly(monkeypatch)
    renamed = [ROWS[3], *((f"new-{number}", text, "T") for number, text, _ in ROWS[:3])]
    index(root, renamed)
    run(augment, *CORPUS)
    assert asked == [ROWS[3][1]]
    run(augment, *other)  # what it has dropped looks like what it has not come to
    assert sorted(asked[1:]) == sorted([ROWS[1][1], ROWS[3][1]])
    for model in ("demo-model", "other-model"):
        read = read_augmented("mydocs", "corpus", model)
        entries = [entry for record in read for entry in record["augment"]]
        assert [(e["id"], e["passage"], e["title"], e["pid"]) for e in entries] == [
            (*row, 0) for row in renamed
        ]


def test_inference_answers_the_data_types_that_have_questions(root, monkeypatch):
    instantly(monkeypatch)
    index(root, ROWS[:4])
    run(augment, *CORPUS)
    write_json(root / "quiz.json", [{"question": "Which town is number 2?", "answer": "4"}])
    run(augment, *COMMON, "--dataset", "mydocs", "--data_path", str(root / "quiz.json"),
        "--index_name", "mydocs")  # fmt: skip
    experiment = Experiment(Recipe(model_name=MODEL, prompts="demo", dataset="mydocs"))
    assert list(experiment.records) == ["corpus", "quiz"] and experiment.corpora == ["corpus"]
    assert experiment.leave_out_corpora() == "without questions, left out: corpus"
    assert list(experiment.records) == ["quiz"] and experiment.leave_out_corpora() == ""
    passages = [one for question in experiment.passages("quiz") for one in question]
    assert len(passages) == 3
