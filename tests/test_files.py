"""Names, layouts, whole-or-nothing writes and readable errors."""

import json
import os
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import encode
from utils import files, layout, running
from utils.flags import adapters_of, results_of
from utils.running import InputError


def flags(*more: str):
    """The flags of encode.py for a model M and a data set D."""
    given = ["--model_name", "some/M", "--dataset", "D", "--augment_model", "A"]
    return encode.parse_arguments([*given, *more])


@given(st.text(max_size=200))
def test_no_name_leaves_its_folder(name):
    try:
        safe = layout.folder_name(name)
    except InputError:
        return
    assert safe not in ("", ".", "..") and not set(safe) & set("/\\\0\n ")
    assert os.path.normpath(f"/root/{safe}") == f"/root/{safe}"
    assert len(safe.encode()) <= 150  # room for suffixes below the usual limit of 255


@pytest.mark.parametrize("name", ["", "/", ".", "..", "a/..", "../", "\\", "___", "x" * 300])
def test_a_name_of_which_nothing_usable_is_left_is_refused(name):
    with pytest.raises(InputError, match="cannot be used as a folder name"):
        layout.folder_name(name)


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
    assert layout.folder_name(name) == folder


def test_every_layout_is_that_of_the_original(root):
    shown = {
        path.relative_to(root).as_posix()
        for path in (
            layout.augmented_file("D", "T"),
            layout.rank_folder("some/M", 2, 32.0) / "base_weight",
            layout.passage_folder(adapters_of(flags("--with_cot"), "T"), 0, 1),
            results_of(flags(), "prag", "T"),
            layout.warmup_folder("some/M", 2, 32, True),
        )
    }
    assert shown == {
        "data_aug/D/T.json",
        "offline/M/rank=2_alpha=32/base_weight",
        "offline/M/rank=2_alpha=32/D/lr=0.0003_epoch=1_cot/aug_model=A/T/data_0/passage_1",
        "output/M/rank=2_alpha=32/D/lr=0.0003_epoch=1/aug_model=A/prag/T",
        "offline/M/rank=2_alpha=32/warmup_cot",
    }


@pytest.mark.parametrize(
    ("more", "name"),
    [
        (["--learning_rate", "3e-4"], "lr=0.0003_epoch=1"),
        (["--learning_rate", "1e-5", "--num_train_epochs", "12"], "lr=1e-05_epoch=12"),
        (["--learning_rate", "1"], "lr=1.0_epoch=1"),
        (["--with_cot", "--init_adapter", "warmup"], "lr=0.0003_epoch=1_cot_warmup"),
        (["--init_adapter", "else/my start"], "lr=0.0003_epoch=1_init=my_start"),
        (["--augment_parts", "qa,rewrite"], "lr=0.0003_epoch=1"),
        (["--augment_parts", "none"], "lr=0.0003_epoch=1_parts=none"),
        (
            ["--init_adapter", "warmup", "--augment_parts", "qa"],
            "lr=0.0003_epoch=1_warmup_parts=qa",
        ),
    ],
)
def test_how_adapters_are_trained_stands_in_the_path(root, more, name):
    assert adapters_of(flags(*more), "T").parts[-3] == name


def test_a_name_from_a_flag_cannot_lead_a_layout_elsewhere(root):
    options = flags("--model_name", "../M", "--dataset", "../../D", "--augment_model", "/A")
    options.init_adapter = "../.."
    with pytest.raises(InputError):
        adapters_of(options, "T")
    options.init_adapter = "random"
    outside = adapters_of(options, "../T")
    assert outside == root / "offline/M/rank=2_alpha=32/D/lr=0.0003_epoch=1/aug_model=A/T"
    with pytest.raises(InputError):
        layout.augmented_file("D", "..")


def test_a_file_appears_whole_with_ordinary_permissions_and_no_leftover(tmp_path):
    path = tmp_path / "new" / "deep" / "a.json"
    files.write_json(path, {"é": [1]})
    assert path.read_text(encoding="utf-8") == '{\n  "é": [\n    1\n  ]\n}\n'
    assert path.stat().st_mode & 0o777 == 0o644
    assert os.listdir(path.parent) == ["a.json"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    with pytest.raises(KeyboardInterrupt), files.writing_file(path) as temporary:
        temporary.write_text("ne")
        assert path.read_text() == "old"
        raise KeyboardInterrupt
    with pytest.raises(TypeError):
        files.write_json(path, object())
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_a_folder_is_replaced_as_a_whole_or_not_at_all(tmp_path):
    path = tmp_path / "passage_0"
    with files.writing_folder(path) as temporary:
        (temporary / "first").write_text("1")
        assert not path.exists()
    with pytest.raises(RuntimeError), files.writing_folder(path) as temporary:
        (temporary / "second").write_text("2")
        raise RuntimeError
    assert os.listdir(path) == ["first"] and os.listdir(tmp_path) == ["passage_0"]
    with files.writing_folder(path) as temporary:
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
        files.read_json(path, "the list")


def test_a_folder_in_the_place_of_a_file_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match=r"cannot be read: Is a directory"):
        files.read_text(tmp_path, "the list")


def test_a_byte_order_mark_is_skipped(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf[1]")
    assert files.read_json(tmp_path / "a.json", "the list") == [1]


def test_a_fingerprint_depends_on_values_only_and_never_changes():
    value = {"b": ["ü", 1.5, None], "a": True}
    assert files.hash_json(value) == files.hash_json(json.loads(json.dumps(value)))
    assert files.hash_json(value) == files.hash_json(dict(reversed(value.items())))
    assert files.hash_json(value) != files.hash_json({**value, "a": False})
    assert files.hash_json({"a": 1}) == "f9d86028c6e0d64e"  # stands in files that users keep


def test_a_path_is_shown_relative_to_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert files.relative(tmp_path / "a" / "b") == str(Path("a/b"))
    assert files.relative(Path("/elsewhere/b")) == "/elsewhere/b"


def test_a_stage_ends_with_one_sentence_instead_of_a_traceback():
    def main():
        raise InputError("no index")

    with pytest.raises(SystemExit, match="error: no index"):
        running.run_stage(main)


def test_a_folder_in_which_a_thread_still_writes_is_removed(tmp_path):
    def write(folder):
        with suppress(OSError):  # it is gone
            for number in range(10_000):
                (folder / str(number)).write_text("")

    with pytest.raises(RuntimeError), files.writing_folder(tmp_path / "whole") as temporary:
        thread = threading.Thread(target=write, args=(temporary,))
        thread.start()
        raise RuntimeError
    thread.join()
    assert list(tmp_path.iterdir()) == []


def test_output_that_is_cut_by_its_reader_ends_without_a_word():
    """As `python src/adapters.py list | head -1` does."""
    program = "from utils.files import run_stage; run_stage(lambda: print('line\\n' * 100_000))"
    command = f'"{sys.executable}" -c "{program}" | head -1; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(
        ["bash", "-c", command], cwd=files.__file__.rsplit("/", 2)[0], capture_output=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (141, b"line\n", b"")


def test_a_closed_output_is_no_error():
    program = "from utils.files import run_stage; run_stage(lambda: None)"
    done = subprocess.run(
        ["bash", "-c", f'"{sys.executable}" -c "{program}" >&-'],
        cwd=files.__file__.rsplit("/", 2)[0],
        capture_output=True,
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_misspelt_flag_is_named_beside_the_one_that_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["encode.py", "--modle_name=x", "--dataset", "D"])
    with pytest.raises(SystemExit) as end:
        encode.parse_arguments()
    assert end.value.code == 2
    assert "required: --model_name; there is no --modle_name\n" in capsys.readouterr().err
