"""Whatever a file, a name or a model's output holds: a value or an `InputError`, never more."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from utils import files, layout
from utils.augmentation.records import read_augmented
from utils.journal import Journal
from utils.prompting import load_prompts
from utils.questions import DATASETS, load_questions
from utils.recipe import Recipe
from utils.retrieval.corpus import read_corpus
from utils.running import InputError
from utils.warmup import read_warmup_data

HEADER = "id\ttext\ttitle\n"
KEYS = "question answer answers aliases augment passage pid test_id type context supporting_facts "
KEYS += "m_qa m_rewrite full_answer dataset answer_id _id golden_passages direct cot rewrite"
KEYS = st.sampled_from(KEYS.split())
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=6),
    max_leaves=25,
)
BYTES = st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-16"))
CONTENT = BYTES | JSON.map(lambda value: json.dumps(value).encode())
how = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
often = settings(max_examples=60, **how)


def never_raises(function, *arguments) -> object:
    """What `function` gives, None where it refuses in words that name something."""
    try:
        return function(*arguments)
    except InputError as error:
        assert str(error).strip()
        assert "Traceback" not in str(error)
        return None


@often
@given(CONTENT, st.sampled_from([*DATASETS, "own"]))
def test_any_file_is_questions_or_refused(tmp_path_factory, content, dataset):
    folder = tmp_path_factory.mktemp("data")
    for name in (file for data in DATASETS.values() for file in data.files):
        (folder / name).write_bytes(content)
    if dataset == "popqa":
        head = b"id\tquestion\tobj\to_aliases\n1\tWho?\tOrr\t"
        (folder / "popQA.tsv").write_bytes(head + content)
    path = folder if dataset in DATASETS else folder / "dev.json"
    loaded = never_raises(load_questions, dataset, path)
    for records in (loaded or {}).values():
        assert records
        for record in records:
            assert record["question"].strip() and record["answer"]
        files.hash_json(records)
        json.dumps(records, ensure_ascii=False).encode()


@often
@given(CONTENT)
def test_any_file_is_an_augmentation_or_refused(tmp_path_factory, content):
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("root")
        patch.setattr(layout, "ROOT_DIR", root)
        (root / "data_aug/d").mkdir(parents=True)
        for name in ("total", "t"):
            (root / f"data_aug/d/{name}.json").write_bytes(content)
        for name in ("total", "t"):
            for record in never_raises(read_augmented, "d", name, "m") or []:
                for entry in record["augment"]:
                    assert {"pid", "passage", "rewrite", "qa"} <= set(entry)


@often
@given(CONTENT, st.booleans())
def test_any_file_is_warm_up_data_prompts_a_journal_or_refused(tmp_path_factory, content, with_cot):
    path = tmp_path_factory.mktemp("any") / "any.json"
    path.write_bytes(content)
    path.with_name("any.json.0").write_bytes(content)
    never_raises(read_warmup_data, path, with_cot)
    never_raises(load_prompts, str(path), "demo", with_cot)
    if journal := never_raises(Journal, path, {}):
        journal.close()


@often
@given(BYTES | st.lists(st.sampled_from([b"\t", b"\n", b'"', b"a", b"\r", b"\x00"])).map(b"".join))
@example(b'"\n"')
def test_any_corpus_is_rows_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("corpus") / "c.tsv"
    for head in (b"", HEADER.encode()):
        path.write_bytes(head + content)
        for row in never_raises(lambda: list(read_corpus(path))) or []:
            assert len(row) == 3 and row[0].strip() and row[1].strip()
    gzipped = path.with_suffix(".gz")
    gzipped.write_bytes(content)
    never_raises(lambda: list(read_corpus(gzipped)))


@often
@given(st.text(max_size=100), st.text(max_size=100), st.text(max_size=100))
def test_no_name_leads_a_layout_out_of_its_root(dataset, data_type, model):
    recipe = Recipe(model, dataset=dataset, init_adapter=data_type, inference_method="prag")
    layouts = [
        (layout.augmented_file, (dataset, data_type)), (layout.rank_folder, (model, 2, 32.0)),
        (layout.results_folder, (recipe, data_type)), (layout.adapters_folder, (recipe, data_type)),
        (layout.warmup_folder, (model, 2, 32.0, True)),
    ]  # fmt: skip
    for place, arguments in layouts:
        path = never_raises(place, *arguments)
        if path is not None:
            tops = [layout.ROOT_DIR / top for top in ("data_aug", "offline", "output")]
            normal = Path(os.path.normpath(path))
            assert not set(path.relative_to(layout.ROOT_DIR).as_posix()) & set("\\\0\n ")
            assert normal == path and any(normal.is_relative_to(top) for top in tops)
            assert all(len(part.encode()) < 250 for part in path.parts)
