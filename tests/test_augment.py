"""Stage 1 with the bundled index: passages taken and dropped, other models, your own data."""

import json
import shutil

import pytest
from adapter_runs import stopped
from augment_runs import PAIRS, QUESTIONS, hits_of, instantly, records_at
from stage_runs import AUGMENT, COMMON, MODEL, refused, run, stop_after, tree
from test_processes import launch

import augment
from utils.augmentation import files as augmented_files
from utils.augmentation import writing
from utils.augmentation.files import AugmentedFiles
from utils.augmentation.records import read_augmented
from utils.augmentation.sampling import Sampling
from utils.files import write_json
from utils.prompting import load_prompts, same_tokens
from utils.recipe import Recipe

pytest_plugins = ["augment_runs"]
ALL_TYPES = [flag for flag in AUGMENT if flag not in ("--data_type", "dev")]
# so few tokens that some lists are cut off: passages are dropped, and there are several waves
WAVES = [*ALL_TYPES, "--sample", "5", "--max_new_tokens", "96", "--max_attempts", "2"]
SETTINGS = ".dev.demo-model.settings"
PAIRS_READ = json.loads(PAIRS)


def test_a_passage_whose_lists_never_parse_is_replaced(indexed, demo_index, monkeypatch, capsys):
    hits = hits_of(demo_index, "dev", 0)
    asked = instantly(monkeypatch, bad={hits[1]["text"]})
    run(augment, *AUGMENT, "--sample", "1", "--max_attempts", "3")
    (record,) = records_at(indexed)
    assert asked.count(hits[1]["text"]) == 3
    assert "3 taken, 1 dropped for every method, 6 attempts" in capsys.readouterr().out
    for pid, (entry, hit) in enumerate(zip(record["augment"], hits[:1] + hits[2:4], strict=True)):
        passage = hit.pop("text")  # id, title and score are left
        texts = {"demo-model_rewrite": "rewritten " + passage, "demo-model_qa": PAIRS_READ}
        assert entry == {"pid": pid, "passage": passage, **hit, **texts}
    read = read_augmented("demo", "dev", "demo-model")[0]["augment"]
    assert read[0]["score"] == hits[0]["score"] > read[2]["score"]


def test_what_all_requests_for_a_kind_of_text_begin_with_is_read_once():
    """Also in lists with an example; in the demo's prompts nothing: its texts stay as they are."""
    for name in ("small", "demo"):
        prompts = load_prompts(name, "", with_cot=False)
        author = writing.LocalModel(Recipe(MODEL), prompts, Sampling.greedy(8), 4, print)
        for kind in ("rewrite", writing.LIST):
            one, other = (author.encoder.request(kind, text) for text in ("Ada Bel", "7 (May)"))
            same = same_tokens(one, other)
            assert author.beginnings.of(one)[0] == (same if name == "small" else 0)
            assert 20 < same < len(one) - 2 and (same > 250 or kind == "rewrite" or name == "demo")


def test_golden_passages_take_the_place_of_retrieval(root, monkeypatch, capsys):
    instantly(monkeypatch)
    golden = {"question": "Where?", "answer": "A", "golden_passages": ["one", "two", "one"]}
    write_json(root / "quiz.json", [golden, {"question": "Who?", "answer": "B"}])
    flags = ("--dataset", "quizzes", "--data_path", str(root / "quiz.json"), "--engine", "golden")
    run(augment, *COMMON, *flags)
    written = json.loads((root / "data_aug/quizzes/quiz.json").read_text())
    assert [record["passages"] for record in written] == [["one", "two"], []]
    assert "score" not in written[0]["augment"][0]
    assert "1 of 2 questions have no golden passage" in capsys.readouterr().out


def test_a_passage_that_several_questions_found_is_written_about_once(indexed, monkeypatch, capsys):
    asked = instantly(monkeypatch)
    run(augment, *ALL_TYPES, "--sample", "12")
    both = [p for t in ("dev", "test") for r in records_at(indexed, t) for p in r["passages"]]
    assert sorted(asked) == sorted(set(both)) and len(both) == 72
    said = capsys.readouterr().out
    saved = 72 - len(asked)
    assert f"72 wanted, {len(asked)} different, {saved} saved by sharing\n" in said and saved > 0
    assert f"{len(asked)} taken, 0 dropped for every method, {len(asked)} attempts" in said
    shutil.rmtree(indexed / "data_aug")
    asked.clear()  # now each question gets its own texts, as the published software has it
    for _ in range(2):
        run(augment, *AUGMENT, "--sample", "8", "--write_per_question")
        assert len(asked) == 24 > len(set(asked))
    assert "24 wanted, 24 different, 0 saved by sharing" in capsys.readouterr().out


def test_if_every_passage_is_dropped_nothing_is_saved(indexed, monkeypatch):
    """With the prompts of another model, say; unfinished work of other questions is kept."""
    instantly(monkeypatch)
    stopped(AugmentedFiles, "save", 1, augment, *AUGMENT)
    journal = indexed / "data_aug/demo/.demo-model.journal.0"
    write_json(indexed / "one.json", {"one": QUESTIONS["test"][:1]})
    flags = (*AUGMENT, "--data_path", str(indexed / "one.json"), "--data_type", "one")
    for unfinished in (True, False):
        with monkeypatch.context() as patch:
            patch.setattr(writing, "parse_pairs", lambda text: None)
            refused(r"none of 1. passages .* --prompts demo .*max_ne", run, augment, *flags)
        left = {"demo/" + journal.name} if unfinished else {"demo/dev.json", "demo/" + SETTINGS}
        assert tree(indexed / "data_aug").keys() == left
        asked = instantly(monkeypatch)
        run(augment, *AUGMENT)
        assert asked == [] and not journal.exists()


def test_a_file_that_this_stage_did_not_write_is_named(indexed):
    texts = {"passage": "p", "demo-model_rewrite": "r", "demo-model_qa": PAIRS_READ}
    whole = {"test_id": 0, "question": "Q", "answer": "A", "augment": [{"pid": 0, **texts}]}
    for record in ({"question": "Q", "augment": [{"pid": 0}]}, whole):
        write_json(indexed / "data_aug/demo/dev.json", [record])
        refused(r"data_aug/demo/dev\.json", run, augment, *AUGMENT)


def test_a_file_of_an_earlier_version_counts(indexed, monkeypatch, capsys):
    """Commit 4200079 kept no scores, and a hash of the questions among the settings."""
    instantly(monkeypatch)
    run(augment, *AUGMENT)
    settings = indexed / "data_aug/demo" / SETTINGS
    write_json(settings, json.loads(settings.read_text()) | {"questions": "69c4e128f8642712"})
    records = records_at(indexed)
    for entry in [entry for record in records for entry in record["augment"]]:
        del entry["id"], entry["title"], entry["score"]
    write_json(indexed / "data_aug/demo/dev.json", records)
    before = tree(indexed)
    run(augment, *AUGMENT)
    assert tree(indexed) == before
    assert "all 1 files exist already" in capsys.readouterr().out


def test_a_larger_sample_goes_on_to_the_same_bytes(indexed, demo_index, monkeypatch, capsys):
    bad = {hits_of(demo_index, "dev", 0)[1]["text"]}
    asked = instantly(monkeypatch, bad)
    flags = (*AUGMENT, "--max_attempts", "1")
    run(augment, *flags, "--sample", "9")
    at_once = tree(indexed / "data_aug")
    shutil.rmtree(indexed / "data_aug")
    run(augment, *flags, "--sample", "5")
    five = {passage for record in records_at(indexed) for passage in record["passages"]}
    asked.clear()
    run(augment, *flags, "--sample", "9")
    assert tree(indexed / "data_aug") == at_once
    assert asked and not (five | bad) & set(asked)  # a dropped passage is not tried again
    run(augment, *flags, "--sample", "5")
    assert "exist already" in capsys.readouterr().out
    assert tree(indexed / "data_aug") == at_once


def test_a_sample_does_not_grow_past_another_models_work_or_other_answers(indexed, monkeypatch):
    instantly(monkeypatch)
    run(augment, *AUGMENT)
    rows = [{**row, "answer": "another answer"} for row in QUESTIONS["dev"]]
    write_json(indexed / "questions.json", {"dev": rows})
    shutil.copytree(MODEL, indexed / "other-model")
    corrected = ("--data_path", str(indexed / "questions.json"))
    other = ("--model_name", str(indexed / "other-model"))
    words = "was not made by this stage with these questions and answers"
    before = tree(indexed / "data_aug")
    for flags in (corrected, [*other, "--sample", "9"]):
        refused(words, run, augment, *AUGMENT, *flags)
    assert tree(indexed / "data_aug") == before
    run(augment, *AUGMENT, *other)
    before = tree(indexed / "data_aug")
    refused(words, run, augment, *AUGMENT, "--sample", "9", "--overwrite")
    run(augment, *AUGMENT, "--sample", "2")
    assert tree(indexed / "data_aug") == before


@pytest.mark.parametrize("stop", range(1, 6))
def test_a_kill_between_two_saves_loses_nothing(indexed, demo_index, monkeypatch, stop):
    bad = {hits_of(demo_index, data_type, 0)[1]["text"] for data_type in ("dev", "test")}
    flags = (*ALL_TYPES, "--max_attempts", "2")
    asked = instantly(monkeypatch, bad)
    run(augment, *flags)
    whole = tree(indexed / "data_aug")
    shutil.rmtree(indexed / "data_aug")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(augmented_files.Journal, "remove", stop_after(1, None))
        write = stop_after(stop, augmented_files.write_json)  # the fifth write never comes
        patch.setattr(augmented_files, "write_json", write)
        run(augment, *flags)
    assert (indexed / "data_aug/demo/.demo-model.journal.0").exists()
    asked.clear()
    run(augment, *flags)
    assert tree(indexed / "data_aug") == whole and not asked


@pytest.mark.parametrize(("place", "call"), [("write_chunk", 2), ("write_json", 3)])
def test_an_interrupted_overwriting_goes_on_without_the_flag(indexed, monkeypatch, place, call):
    """The old texts are there until the new ones take their place, and never count as new."""
    instantly(monkeypatch)
    run(augment, *AUGMENT)
    before = tree(indexed / "data_aug")
    flags = (*AUGMENT, "--seed", "5", "--sample", "2")
    module = writing if place == "write_chunk" else augmented_files
    stopped(writing, "write_chunk", 1, augment, *flags, "--overwrite")  # nothing is new yet
    with monkeypatch.context() as patch:  # nor then
        patch.setattr(writing, "parse_pairs", lambda text: None)
        refused("none of .* got a valid list", run, augment, *flags, "--overwrite")
    assert tree(indexed / "data_aug") == before
    stopped(module, place, call, augment, *flags, "--overwrite")
    assert tree(indexed / "data_aug")["demo/dev.json"] == before["demo/dev.json"]
    refused("made with seed = 5", run, augment, *AUGMENT)
    run(augment, *flags)
    assert tree(indexed / "data_aug").keys() == before.keys()
    assert len(records_at(indexed)) == 2
    assert json.loads((indexed / "data_aug/demo" / SETTINGS).read_text())["seed"] == 5


def save_texts(model: str, passages: list[str], answer: str = "Vessland", **flags) -> None:
    results = {p: {"rewrite": p.upper(), "qa": PAIRS_READ} for p in passages}
    questions = {"quiz": [{"test_id": 0, "question": "Where?", "answer": answer}]}
    files = AugmentedFiles("quiz", model, questions, {"seed": 0}, **flags)
    files.save("quiz", [{p: {"text": p, "score": 1.5} for p in passages}], results, 3)


def passages_of(model: str) -> list[tuple[int, str]]:
    (record,) = read_augmented("quiz", "quiz", model)
    return [(entry["pid"], entry["passage"]) for entry in record["augment"]]


def test_each_model_reads_its_passages_in_the_order_in_which_they_were_found(root):
    """Though one model dropped the second passage, the other one the third."""
    save_texts("first", ["p3", "p9", "p0"], answer="Wrong")
    save_texts("first", ["p0", "p2", "p3"], overwrite=True)  # leaves nothing of the old work
    (record,) = json.loads((root / "data_aug/quiz/quiz.json").read_text())
    assert record["answer"] == "Vessland" and record["passages"] == ["p0", "p2", "p3"]
    save_texts("second", ["p0", "p1", "p3"])
    assert passages_of("first") == [(0, "p0"), (1, "p2"), (2, "p3")]  # adapters have these pids
    assert passages_of("second") == [(0, "p0"), (3, "p1"), (2, "p3")]
    save_texts("second", ["p1", "p2"], overwrite=True)
    assert passages_of("second") == [(3, "p1"), (1, "p2")]
    save_texts("third", ["p3", "p0"])  # with another index
    assert passages_of("third") == [(2, "p3"), (4, "p0")]
    assert passages_of("first") == [(0, "p0"), (1, "p2"), (2, "p3")]


@pytest.mark.slow
def test_two_processes_end_with_the_bytes_of_one(indexed, capsys):
    run(augment, *WAVES)
    assert " 0 dropped" not in capsys.readouterr().out
    whole = tree(indexed / "data_aug")
    shutil.rmtree(indexed / "data_aug")
    said = launch(indexed, 2, "augment.py", *WAVES)
    assert tree(indexed / "data_aug") == whole
    assert said.count("wanted") == 1  # only the main process speaks


def test_jobs_of_an_array_are_put_together(indexed, demo_index, monkeypatch, capsys):
    bad = {hits_of(demo_index, "dev", number)[number]["text"] for number in range(3)}
    asked = instantly(monkeypatch, bad)
    run(augment, *WAVES)
    whole = tree(indexed / "data_aug")
    shutil.rmtree(indexed / "data_aug")
    asked.clear()
    capsys.readouterr()
    for job in ("1/3", "0/3", "2/3"):
        run(augment, *WAVES, "--shard", job)
        part = f"part {job[0]} of 3 is done; when all parts are, the same command without --shard"
        assert part in capsys.readouterr().out
        assert not list((indexed / "data_aug/demo").glob("*.json"))
    in_jobs = len(asked)
    run(augment, *WAVES)
    # the jobs wrote the first wave, the last run what takes the place of dropped passages
    assert 0 < len(asked) - in_jobs < in_jobs
    assert tree(indexed / "data_aug") == whole
