"""Names, layouts, whole-or-nothing writes and readable errors."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils import paths
from utils.paths import InputError

TRAINING = ("some/M", 2, 32, "D", 3e-4, 1)


@given(st.text(max_size=200))
def test_no_name_leaves_its_folder(name):
    try:
        safe = paths.folder_name(name)
    except InputError:
        return
    assert safe not in ("", ".", "..") and not set(safe) & set("/\\\0\n ")
    assert os.path.normpath(f"/root/{safe}") == f"/root/{safe}"
    assert len(safe.encode()) <= 150  # room for suffixes below the usual limit of 255


@pytest.mark.parametrize("name", ["", "/", ".", "..", "a/..", "../", "\\", "___", "x" * 300])
def test_a_name_of_which_nothing_usable_is_left_is_refused(name):
    with pytest.raises(InputError, match="cannot be used as a folder name"):
        paths.folder_name(name)


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("llama3.2-1b-instruct", "llama3.2-1b-instruct"),
        ("Qwen/Qwen2.5-1.5B-Instruct", "Qwen2.5-1.5B-Instruct"),
        ("data/demo/demo-model/", "demo-model"),
        ("a/../b", "b"),
        ("../../etc/passwd", "passwd"),
        ("C:\\models\\mine", "mine"),
        ("my data set", "my_data_set"),
        ("Frågor-日本", "Frågor-日本"),
        ("a;rm -rf *", "a_rm_-rf__"),
    ],
)
def test_a_name_becomes_its_last_part(name, folder):
    assert paths.folder_name(name) == folder


def test_every_layout_is_that_of_the_original(root):
    adapters = paths.adapters_folder(*TRAINING, with_cot=True, augment_model="A", data_type="T")
    result = paths.result_folder(
        *TRAINING, with_cot=False, augment_model="A", method="prag", data_type="T"
    )
    shown = {
        path.relative_to(root).as_posix()
        for path in (
            paths.augmented_file("D", "T"),
            paths.rank_folder("some/M", 2, 32.0) / "base_weight",
            paths.passage_folder(adapters, 0, 1),
            result,
        )
    }
    assert shown == {
        "data_aug/D/T.json",
        "offline/M/rank=2_alpha=32/base_weight",
        "offline/M/rank=2_alpha=32/D/lr=0.0003_epoch=1_cot/aug_model=A/T/data_0/passage_1",
        "output/M/rank=2_alpha=32/D/lr=0.0003_epoch=1/aug_model=A/prag/T",
    }


@pytest.mark.parametrize(
    ("rate", "shown"), [(3e-4, "0.0003"), (1e-5, "1e-05"), (0.004, "0.004"), (1.0, "1.0")]
)
def test_a_learning_rate_stands_in_the_path_as_python_prints_it(root, rate, shown):
    folder = paths.adapters_folder("M", 2, 0.5, "D", rate, 12, False, "A", "T")
    assert folder.parts[-3] == f"lr={shown}_epoch=12"
    assert folder.parts[-5] == "rank=2_alpha=0.5"


def test_a_name_from_a_flag_cannot_lead_a_layout_elsewhere(root):
    outside = paths.adapters_folder("../M", 2, 32, "../../D", 1, 1, False, "/A", "../T")
    assert outside == root / "offline/M/rank=2_alpha=32/D/lr=1_epoch=1/aug_model=A/T"
    with pytest.raises(InputError):
        paths.augmented_file("D", "..")


def test_a_file_appears_whole_with_ordinary_permissions_and_no_leftover(tmp_path):
    path = tmp_path / "new" / "deep" / "a.json"
    paths.write_json(path, {"é": [1]})
    assert path.read_text(encoding="utf-8") == '{\n  "é": [\n    1\n  ]\n}\n'
    assert path.stat().st_mode & 0o777 == 0o644
    assert os.listdir(path.parent) == ["a.json"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    paths.write_text(path, "old")
    with pytest.raises(KeyboardInterrupt), paths.writing_file(path) as temporary:
        temporary.write_text("ne")
        assert path.read_text() == "old"
        raise KeyboardInterrupt
    with pytest.raises(TypeError):
        paths.write_json(path, object())
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_a_folder_is_replaced_as_a_whole_or_not_at_all(tmp_path):
    path = tmp_path / "passage_0"
    with paths.writing_folder(path) as temporary:
        (temporary / "first").write_text("1")
        assert not path.exists()
    with pytest.raises(RuntimeError), paths.writing_folder(path) as temporary:
        (temporary / "second").write_text("2")
        raise RuntimeError
    assert os.listdir(path) == ["first"] and os.listdir(tmp_path) == ["passage_0"]
    with paths.writing_folder(path) as temporary:
        (temporary / "third").write_text("3")
    assert os.listdir(path) == ["third"] and os.listdir(tmp_path) == ["passage_0"]
    assert path.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "the list .*a.json does not exist"),
        (b'{"a": 1,\n "b": ', "the list .*a.json is no valid JSON: .* in line 2, column"),
        (b"", "no valid JSON"),
        (b'{"a": "\xff"}', r"is not UTF-8 \(byte 7\)"),
    ],
)
def test_an_unreadable_file_is_named_with_its_cause(tmp_path, content, message):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        paths.read_json(path, "the list")


def test_a_folder_in_the_place_of_a_file_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match=r"cannot be read: Is a directory"):
        paths.read_text(tmp_path, "the list")


def test_a_byte_order_mark_is_skipped(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf[1]")
    assert paths.read_json(tmp_path / "a.json", "the list") == [1]


def test_a_fingerprint_depends_on_values_only_and_never_changes():
    value = {"b": ["ü", 1.5, None], "a": True}
    assert paths.hash_json(value) == paths.hash_json(json.loads(json.dumps(value)))
    assert paths.hash_json(value) == paths.hash_json(dict(reversed(value.items())))
    assert paths.hash_json(value) != paths.hash_json({**value, "a": False})
    assert paths.hash_json({"a": 1}) == "f9d86028c6e0d64e"  # stands in files that users keep


def test_a_path_is_shown_relative_to_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert paths.relative(tmp_path / "a" / "b") == str(Path("a/b"))
    assert paths.relative(Path("/elsewhere/b")) == "/elsewhere/b"


@pytest.mark.parametrize(
    ("raised", "shown"), [(InputError("no index"), "error: no index"), (KeyboardInterrupt, "again")]
)
def test_a_stage_ends_with_one_sentence_instead_of_a_traceback(raised, shown):
    def main():
        raise raised

    with pytest.raises(SystemExit, match=shown):
        paths.run_stage(main)
