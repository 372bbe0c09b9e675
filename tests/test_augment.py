"""Stage 1 with the bundled model: passages taken and dropped, other models, data of one's own."""

import json
import shutil
from argparse import Namespace

import pytest
from conftest import REPOSITORY
from stage_runs import (
    ADAPTERS,
    AUGMENT,
    COMMON,
    DEV,
    MODEL,
    RESULTS,
    TRAIN,
    answer,
    run,
    stop_after,
    tree,
)

import augment
import encode
import inference
import prep_elastic
from utils.augmentation import files as augmented_files
from utils.augmentation import writing
from utils.augmentation.records import read_augmented
from utils.retrieval.embedded import open_retriever
from utils.running import InputError

DEMO_TYPES = [flag for flag in AUGMENT if flag not in ("--data_type", "dev")]
PAIRS = json.dumps([{"question": "Q?", "answer": "A", "full_answer": "A."}] * 3)


def records_at(root, data_type: str = "dev") -> list[dict]:
    return json.loads((root / f"data_aug/demo/{data_type}.json").read_text())


def passages_written(monkeypatch) -> list[str]:
    """The passages that are written about from now on, as often as they are."""
    written = []
    original = writing.write_chunk

    def write_chunk(chunk, **keywords):
        written.extend(chunk.values())
        return original(chunk, **keywords)

    monkeypatch.setattr(writing, "write_chunk", write_chunk)
    return written


def instantly(monkeypatch, bad: set[str] = frozenset()) -> None:
    """A model that needs no time, whose question lists about the passages `bad` are not valid."""

    def generate(model, tokenizer, prompts, *more, **keywords):
        shown = [tokenizer.decode(prompt) for prompt in prompts]
        passages = [text.split("Passage: ")[1].split("<|eot|>")[0] for text in shown]
        return [
            ("no" if passage in bad else PAIRS) if "JSON list" in text else "rewritten " + passage
            for text, passage in zip(shown, passages, strict=True)
        ]

    monkeypatch.setattr(writing, "generate", generate)


def test_a_passage_whose_questions_never_parse_is_replaced_after_bounded_attempts(
    copy, monkeypatch, capsys
):
    shutil.rmtree(copy / "data_aug")
    shutil.rmtree(copy / "offline")
    tries = []

    def generate(model, tokenizer, prompts, *more, **keywords):
        texts = []
        for prompt in prompts:
            shown = tokenizer.decode(prompt)
            is_pairs = "JSON list" in shown
            passage = shown.split("Passage: ")[1].split("<|eot|>")[0]
            if is_pairs and passage == bad_passage:
                tries.append(passage)
                texts.append("[{'question': 'only one'}")
            elif is_pairs:
                pair = {"question": "Q?", "answer": "A", "full_answer": "A."}
                texts.append(json.dumps([pair] * 3))
            else:
                texts.append("rewritten " + passage)
        return texts

    question = json.loads((REPOSITORY / "data/demo/questions.json").read_text())["dev"][0]
    hits = open_retriever("embedded", "demo").search([question["question"]], 5)[0]
    bad_passage = hits[1]["text"]
    monkeypatch.setattr(writing, "generate", generate)
    flags = ("--sample", "1", "--max_attempts", "3")
    run(augment, *AUGMENT, *flags, monkeypatch=monkeypatch)
    record = json.loads((copy / "data_aug/demo/dev.json").read_text())[0]
    assert len(tries) == 3
    assert record["passages"] == [hits[i]["text"] for i in (0, 2, 3)]
    assert "3 taken, 1 dropped, 6 attempts" in capsys.readouterr().out


def test_a_second_model_adds_its_texts_beside_the_first_ones(copy, monkeypatch):
    other = copy / "other-model"
    shutil.copytree(MODEL, other)
    before = json.loads((copy / "data_aug/demo/dev.json").read_text())
    flags = [*AUGMENT, "--model_name", str(other), "--temperature", "0"]
    run(augment, *flags, monkeypatch=monkeypatch)
    after = json.loads((copy / "data_aug/demo/dev.json").read_text())
    entry = after[0]["augment"][0]
    assert entry["demo-model_qa"] == before[0]["augment"][0]["demo-model_qa"]
    assert entry["other-model_rewrite"] and len(entry["other-model_qa"]) == 3
    flags = [*DEV, *TRAIN, "--augment_model", str(other)]
    run(encode, *COMMON, *flags, monkeypatch=monkeypatch)
    assert (copy / ADAPTERS.replace("aug_model=demo-model", "aug_model=other-model")).is_dir()
    answer("combine", "--augment_model", str(other), monkeypatch=monkeypatch)
    leaf = copy / RESULTS.replace("aug_model=demo-model", "aug_model=other-model") / "combine/dev"
    assert len(json.loads((leaf / "predict.json").read_text())) == 4


def test_what_another_model_adds_leaves_a_models_records_as_they_are(copy, monkeypatch):
    """Also where it drops a passage and takes another one: results that stand, stand."""
    mine = read_augmented("demo", "dev", "demo-model")
    shutil.copytree(MODEL, copy / "other-model")
    instantly(monkeypatch, {mine[0]["passages"][1]})
    other = ("--model_name", str(copy / "other-model"), "--max_attempts", "1")
    run(augment, *AUGMENT, *other, monkeypatch=monkeypatch)
    assert len(records_at(copy)[0]["passages"]) == 4
    assert read_augmented("demo", "dev", "demo-model") == mine
    before = tree(copy)
    answer("icl", monkeypatch=monkeypatch)
    assert tree(copy) == before


def texts_about(*passages: str, answer: str = "Vessland") -> list[dict]:
    """One record of a quiz, as `records_of` makes it."""
    pairs = json.loads(PAIRS)
    augment = [
        {"pid": pid, "passage": passage, "rewrite": passage.upper(), "qa": pairs}
        for pid, passage in enumerate(passages)
    ]
    record = {"test_id": 0, "question": "Where?", "answer": answer}
    return [{**record, "passages": list(passages), "augment": augment}]


def save_texts(model: str, records: list[dict], overwrite: bool = False) -> None:
    options = Namespace(
        model_name=model, dataset="quiz", overwrite=overwrite, write_per_question=False
    )
    files = augmented_files.AugmentedFiles(options, {"quiz": records}, {"seed": 0})
    files.save("quiz", records)


def passages_of(model: str) -> list[tuple[int, str]]:
    (record,) = read_augmented("quiz", "quiz", model)
    return [(entry["pid"], entry["passage"]) for entry in record["augment"]]


def test_each_model_reads_its_passages_in_the_order_in_which_they_were_found(root):
    """Though one model dropped the second passage, the other one the third."""
    save_texts("first", texts_about("p0", "p2", "p3"))
    save_texts("second", texts_about("p0", "p1", "p3"))
    assert passages_of("first") == [
        (0, "p0"),
        (1, "p2"),
        (2, "p3"),
    ]  # pids stay: adapters have them
    assert passages_of("second") == [(0, "p0"), (3, "p1"), (2, "p3")]
    save_texts("second", texts_about("p1", "p2"), overwrite=True)
    assert passages_of("second") == [(3, "p1"), (1, "p2")]
    with pytest.raises(InputError, match=r"record 0: another model's passages.*another order"):
        save_texts("third", texts_about("p3", "p0"))


def test_overwriting_leaves_nothing_of_the_old_passages_and_answers(root):
    save_texts("first", texts_about("p0", "p1"))
    save_texts("first", texts_about("p5", "p0", answer="Corrected"), overwrite=True)
    assert passages_of("first") == [(0, "p5"), (1, "p0")]
    (record,) = json.loads((root / "data_aug/quiz/quiz.json").read_text())
    assert record["answer"] == "Corrected" and record["passages"] == ["p5", "p0"]


def test_data_of_ones_own_goes_through_all_stages(copy, monkeypatch):
    corpus = copy / "mine.tsv"
    rows = ["Lake Orra lies in Vessland.", "Brun is the capital of Vessland.", "Tiro is a poet."]
    lines = [f"{i}\t{text}\tTitle {i}" for i, text in enumerate(rows)]
    corpus.write_text("id\ttext\ttitle\n" + "\n".join(lines) + "\n")
    questions = copy / "quiz.json"
    questions.write_text(
        json.dumps(
            [
                {"question": "Where is Lake Orra?", "answer": ["Vessland", "the Vessland"]},
                {"question": "What is the capital of Vessland?", "answer": "Brun"},
            ]
        )
    )
    pair = {"question": "Where is it?", "answer": "Vessland", "full_answer": "It is there."}
    monkeypatch.setattr(
        writing, "generate", lambda m, t, prompts, *a, **k: [json.dumps([pair] * 3)] * len(prompts)
    )
    index = ("--data_path", str(corpus), "--index_name", "mine")
    run(prep_elastic, *index, monkeypatch=monkeypatch)
    data = ("--dataset", "quizzes", "--data_path", str(questions), "--index_name", "mine")
    run(augment, *COMMON, *data, "--topk", "2", monkeypatch=monkeypatch)
    run(encode, *COMMON, "--dataset", "quizzes", *TRAIN, monkeypatch=monkeypatch)
    flags = ("--dataset", "quizzes", *TRAIN, "--inference_method", "combine")
    run(inference, *COMMON, *flags, monkeypatch=monkeypatch)
    leaf = copy / RESULTS.replace("/demo/", "/quizzes/") / "combine/quiz"
    assert len(json.loads((leaf / "predict.json").read_text())) == 2


def test_a_stopped_augmentation_goes_on_and_ends_with_the_same_bytes(finished, copy, monkeypatch):
    shutil.rmtree(copy / "data_aug")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "write_chunk", stop_after(2, writing.write_chunk))
        with pytest.raises(KeyboardInterrupt):
            run(augment, *AUGMENT, monkeypatch=patch)
    assert not (copy / "data_aug/demo/dev.json").exists()
    written = passages_written(monkeypatch)
    run(augment, *AUGMENT, monkeypatch=monkeypatch)
    distinct = {p for r in records_at(finished) for p in r["passages"]}
    assert 0 < len(written) < len(distinct)  # the finished chunk was not made again
    assert tree(copy / "data_aug") == tree(finished / "data_aug")


def test_golden_passages_take_the_place_of_retrieval(root, monkeypatch, capsys):
    pair = {"question": "Where is it?", "answer": "Vessland", "full_answer": "It is there."}
    monkeypatch.setattr(
        writing, "generate", lambda m, t, prompts, *a, **k: [json.dumps([pair] * 3)] * len(prompts)
    )
    questions = root / "quiz.json"
    records = [
        {"question": "Where?", "answer": "A", "golden_passages": ["one", "two", "one"]},
        {"question": "Who?", "answer": "B"},
    ]
    questions.write_text(json.dumps(records))
    flags = ("--dataset", "quizzes", "--data_path", str(questions), "--engine", "golden")
    run(augment, *COMMON, *flags, monkeypatch=monkeypatch)
    written = json.loads((root / "data_aug/quizzes/quiz.json").read_text())
    assert [record["passages"] for record in written] == [["one", "two"], []]
    assert "1 of 2 questions have no golden passage" in capsys.readouterr().out
    questions.write_text(json.dumps(records[1:]))
    with pytest.raises(InputError, match="no question of quizzes has golden_passages"):
        run(augment, *COMMON, *flags, "--overwrite", monkeypatch=monkeypatch)


def test_a_passage_that_several_questions_and_data_types_found_is_written_about_once(
    copy, monkeypatch, capsys
):
    instantly(monkeypatch)
    shutil.rmtree(copy / "data_aug")
    written = passages_written(monkeypatch)
    run(augment, *DEMO_TYPES, "--sample", "12", monkeypatch=monkeypatch)
    both = [p for t in ("dev", "test") for r in records_at(copy, t) for p in r["passages"]]
    assert sorted(written) == sorted(set(both)) and len(both) == 72
    said = capsys.readouterr().out
    saved = 72 - len(written)
    assert f"72 wanted, {len(written)} different, {saved} saved by sharing\n" in said and saved > 0
    assert f"{len(written)} taken, 0 dropped, {len(written)} attempts" in said


def test_texts_of_another_data_type_with_the_same_settings_are_used_again(
    copy, monkeypatch, capsys
):
    instantly(monkeypatch)
    questions = json.loads((REPOSITORY / "data/demo/questions.json").read_text())["dev"][:6]
    path = copy / "questions.json"
    path.write_text(json.dumps({"one": questions[:4], "two": questions[2:], "dev": questions}))
    flags = [*DEMO_TYPES, "--data_path", str(path), "--sample", "-1"]
    (copy / "data_aug/demo/dev.json").unlink()
    run(augment, *flags, "--data_type", "one", monkeypatch=monkeypatch)
    written = passages_written(monkeypatch)
    run(augment, *flags, "--data_type", "two", monkeypatch=monkeypatch)
    one, two = ({p for r in records_at(copy, t) for p in r["passages"]} for t in ("one", "two"))
    assert set(written) == two - one
    assert f"{len(one & two)} written before" in capsys.readouterr().out
    written.clear()
    run(augment, *flags, "--data_type", "dev", monkeypatch=monkeypatch)
    assert written == []
    run(
        augment, *flags, "--data_type", "two", "--seed", "1", "--overwrite", monkeypatch=monkeypatch
    )
    assert set(written) == two  # other settings


def test_a_larger_sample_goes_on_from_a_smaller_one(copy, monkeypatch, capsys):
    """And ends with the bytes of a run that asked for it at once."""
    instantly(monkeypatch)
    shutil.rmtree(copy / "data_aug")
    run(augment, *AUGMENT, "--sample", "9", monkeypatch=monkeypatch)
    at_once = tree(copy / "data_aug")
    shutil.rmtree(copy / "data_aug")
    run(augment, *AUGMENT, "--sample", "5", monkeypatch=monkeypatch)
    five = {passage for record in records_at(copy, "dev") for passage in record["passages"]}
    written = passages_written(monkeypatch)
    with pytest.MonkeyPatch.context() as patch:  # a stop on the way loses nothing
        patch.setattr(augment.AugmentedFiles, "save", stop_after(1, None))
        with pytest.raises(KeyboardInterrupt):
            run(augment, *AUGMENT, "--sample", "9", monkeypatch=patch)
    assert len(records_at(copy, "dev")) == 5
    run(augment, *AUGMENT, "--sample", "9", monkeypatch=monkeypatch)
    assert tree(copy / "data_aug") == at_once
    assert written and not five & set(written)
    capsys.readouterr()
    written.clear()
    run(augment, *AUGMENT, "--sample", "5", monkeypatch=monkeypatch)
    assert tree(copy / "data_aug") == at_once and not written
    assert "stand already" in capsys.readouterr().out
    for sample in ("5", "12"):
        with pytest.raises(InputError, match="topk = 3, but this run has topk = 2"):
            flags = ("--sample", sample, "--topk", "2")
            run(augment, *AUGMENT, *flags, monkeypatch=monkeypatch)
    assert tree(copy / "data_aug") == at_once


@pytest.mark.parametrize("writes", [1, 2, 3])
def test_a_stop_while_a_larger_sample_is_saved_loses_nothing(copy, monkeypatch, writes):
    """Of settings, file, settings: what the smaller sample had is not written again."""
    questions = json.loads((REPOSITORY / "data/demo/questions.json").read_text())["dev"]
    bad = {open_retriever("embedded", "demo").search([questions[0]["question"]], 2)[0][1]["text"]}
    instantly(monkeypatch, bad)
    shutil.rmtree(copy / "data_aug")
    flags = (*AUGMENT, "--max_attempts", "1")
    run(augment, *flags, "--sample", "9", monkeypatch=monkeypatch)
    at_once = tree(copy / "data_aug")
    shutil.rmtree(copy / "data_aug")
    run(augment, *flags, "--sample", "5", monkeypatch=monkeypatch)
    first = {passage for record in records_at(copy) for passage in record["passages"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(augmented_files, "write_json", stop_after(writes, augmented_files.write_json))
        written = passages_written(patch)
        with pytest.raises(KeyboardInterrupt):
            run(augment, *flags, "--sample", "9", monkeypatch=patch)
        assert written and not bad & set(written)  # a dropped passage is not tried again
    written = passages_written(monkeypatch)
    run(augment, *flags, "--sample", "9", monkeypatch=monkeypatch)
    assert not first & set(written) and tree(copy / "data_aug") == at_once


def test_a_stopped_overwriting_with_a_smaller_sample_goes_on(copy, monkeypatch):
    instantly(monkeypatch)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "write_chunk", stop_after(1, None))
        with pytest.raises(KeyboardInterrupt):
            run(augment, *AUGMENT, "--sample", "2", "--overwrite", monkeypatch=patch)
    assert len(records_at(copy)) == 4
    run(augment, *AUGMENT, "--sample", "2", monkeypatch=monkeypatch)
    assert len(records_at(copy)) == 2


def test_a_sample_does_not_grow_past_another_models_work_or_other_answers(copy, monkeypatch):
    instantly(monkeypatch)
    questions = json.loads((REPOSITORY / "data/demo/questions.json").read_text())
    path = copy / "questions.json"
    questions["dev"][1]["answer"] = "another answer"
    path.write_text(json.dumps(questions))
    before = tree(copy / "data_aug")
    for sample in ("2", "9"):
        flags = (*AUGMENT, "--sample", sample)
        with pytest.raises(InputError, match="holds 4 questions, not the"):
            run(augment, *flags, "--data_path", str(path), monkeypatch=monkeypatch)
    shutil.copytree(MODEL, copy / "other-model")
    other = ("--model_name", str(copy / "other-model"))
    for sample in ("2", "9"):
        with pytest.raises(InputError, match="holds 4 questions, not the"):
            run(augment, *AUGMENT, *other, "--sample", sample, monkeypatch=monkeypatch)
    assert tree(copy / "data_aug") == before
    run(augment, *AUGMENT, *other, monkeypatch=monkeypatch)
    before = tree(copy / "data_aug")
    with pytest.raises(InputError, match="holds 4 questions, not the 9"):
        run(augment, *AUGMENT, "--sample", "9", monkeypatch=monkeypatch)
    run(augment, *AUGMENT, "--sample", "2", monkeypatch=monkeypatch)
    assert tree(copy / "data_aug") == before


def test_where_every_passage_is_dropped_nothing_is_saved(copy, monkeypatch):
    """With the prompts of another model, say: the right ones go on without --overwrite."""
    shutil.rmtree(copy / "data_aug")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "parse_pairs", lambda text: None)
        with pytest.raises(
            InputError, match=r"none of \d+ passages .* --prompts demo .*max_new_tokens"
        ):
            flags = ("--sample", "3", "--max_attempts", "1")
            run(augment, *AUGMENT, *flags, monkeypatch=patch)
    assert not [p for p in (copy / "data_aug").rglob("*") if p.is_file()]
    run(augment, *AUGMENT, "--sample", "3", monkeypatch=monkeypatch)


def test_dropped_passages_leave_the_work_of_a_stopped_run(copy, monkeypatch):
    instantly(monkeypatch)
    shutil.rmtree(copy / "data_aug")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(augment.AugmentedFiles, "save", stop_after(1, None))
        with pytest.raises(KeyboardInterrupt):
            run(augment, *AUGMENT, monkeypatch=patch)
    journal = copy / "data_aug/demo/.demo-model.journal.0"
    held = len(journal.read_text().splitlines())
    records = json.loads((REPOSITORY / "data/demo/questions.json").read_text())["test"][:1]
    (copy / "one.json").write_text(json.dumps({"one": records}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "parse_pairs", lambda text: None)
        with pytest.raises(InputError, match="none of"):
            flags = ("--data_path", str(copy / "one.json"), "--data_type", "one")
            run(augment, *AUGMENT, *flags, monkeypatch=patch)
    assert len(journal.read_text().splitlines()) > held
    written = passages_written(monkeypatch)
    run(augment, *AUGMENT, monkeypatch=monkeypatch)
    assert written == []


def test_each_question_can_get_texts_of_its_own(copy, monkeypatch, capsys):
    """As the published software has it."""
    shutil.rmtree(copy / "data_aug")
    flags = (*AUGMENT, "--sample", "8", "--write_per_question")
    written = passages_written(monkeypatch)
    run(augment, *flags, monkeypatch=monkeypatch)
    assert len(written) == 24 > len(set(written))
    assert "24 wanted, 24 different, 0 saved by sharing" in capsys.readouterr().out
    texts: dict[str, set[str]] = {}
    for record in records_at(copy):
        for entry in record["augment"]:
            texts.setdefault(entry["passage"], set()).add(entry["demo-model_rewrite"])
    assert any(len(different) > 1 for different in texts.values())
    before = tree(copy)
    run(augment, *flags, monkeypatch=monkeypatch)
    assert tree(copy) == before
    with pytest.raises(InputError, match=r"write_per_question = true, but .* = null"):
        run(augment, *AUGMENT, "--sample", "8", monkeypatch=monkeypatch)


def test_a_kill_between_two_saves_loses_nothing(copy, monkeypatch, capsys):
    """Wherever it comes: before, between and after the writes of each file and the journal."""
    hits = open_retriever("embedded", "demo")
    questions = json.loads((REPOSITORY / "data/demo/questions.json").read_text())
    bad = {hits.search([rows[0]["question"]], 2)[0][1]["text"] for rows in questions.values()}
    flags = (*DEMO_TYPES, "--max_attempts", "2")
    shutil.rmtree(copy / "data_aug")
    instantly(monkeypatch, bad)
    run(augment, *flags, monkeypatch=monkeypatch)
    whole = tree(copy / "data_aug")
    for kill in range(1, 8):
        shutil.rmtree(copy / "data_aug")
        with monkeypatch.context() as patch:
            if kill == 7:
                patch.setattr(augmented_files.Journal, "remove", stop_after(1, None))
            else:
                patch.setattr(
                    augmented_files, "write_json", stop_after(kill, augmented_files.write_json)
                )
            with pytest.raises(KeyboardInterrupt):
                run(augment, *flags, monkeypatch=patch)
        assert (copy / "data_aug/demo/.demo-model.journal.0").exists()
        with monkeypatch.context() as patch:
            patch.setattr(writing, "generate", None)  # nothing is left to be written
            run(augment, *flags, monkeypatch=patch)
        assert tree(copy / "data_aug") == whole, kill


@pytest.mark.parametrize(
    ("place", "call"), [("write_chunk", 2), ("write_json", 2), ("write_json", 4)]
)
def test_an_interrupted_overwriting_goes_on_without_the_flag(copy, monkeypatch, place, call):
    """The old texts stand until the new ones take their place, and never count as new."""
    instantly(monkeypatch)
    before = tree(copy / "data_aug")
    flags = (*AUGMENT, "--seed", "5")
    with monkeypatch.context() as patch:
        module = writing if place == "write_chunk" else augmented_files
        patch.setattr(module, place, stop_after(call, getattr(module, place)))
        with pytest.raises(KeyboardInterrupt):
            run(augment, *flags, "--overwrite", monkeypatch=patch)
    stopped = tree(copy / "data_aug")
    assert (stopped["demo/dev.json"] == before["demo/dev.json"]) == (call == 2)
    with pytest.raises(InputError, match="made with seed = 5"):
        run(augment, *AUGMENT, monkeypatch=monkeypatch)
    run(augment, *flags, monkeypatch=monkeypatch)
    after = tree(copy / "data_aug")
    assert after.keys() == before.keys() and after["demo/dev.json"] != before["demo/dev.json"]
    assert {e["demo-model_rewrite"][:9] for r in records_at(copy) for e in r["augment"]} == {
        "rewritten"
    }


def test_unfinished_work_of_other_questions_is_kept_for_them(copy, monkeypatch):
    instantly(monkeypatch)
    shutil.rmtree(copy / "data_aug")
    with monkeypatch.context() as patch:
        patch.setattr(augmented_files, "write_json", stop_after(1, None))
        with pytest.raises(KeyboardInterrupt):
            run(augment, *DEMO_TYPES, monkeypatch=patch)
    written = passages_written(monkeypatch)
    run(augment, *AUGMENT, monkeypatch=monkeypatch)  # dev alone
    run(augment, *DEMO_TYPES, monkeypatch=monkeypatch)
    assert written == []
    assert not list((copy / "data_aug/demo").glob(".*journal*"))


@pytest.mark.parametrize(
    "content", [[1], {"a": 1}, [{"question": "Q"}], [{"question": "Q", "augment": [{"pid": 0}]}]]
)
def test_a_file_that_this_stage_did_not_write_is_named(copy, monkeypatch, content):
    (copy / "data_aug/demo/dev.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"data_aug/demo/dev\.json"):
        run(augment, *AUGMENT, monkeypatch=monkeypatch)
