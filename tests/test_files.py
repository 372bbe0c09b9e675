"""Names, whole-or-nothing writes, the journal of finished pieces, readable errors."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from adapter_runs import room_for
from stage_runs import refused

from utils import files, layout
from utils.journal import Journal, first_difference, refuse_difference
from utils.running import InputError

SETTINGS = {"seed": 1, "model": "m", "nested": {"a": [1, 2]}}


@pytest.mark.parametrize("name", ["", "\\", "x" * 300, *"/ . .. a/.. ../ ___ ./.h x/...a/".split()])
def test_a_name_of_which_nothing_usable_is_left_or_that_hides_is_refused(name):
    refused("cannot be used as a folder name", layout.folder_name, name)
    for dataset in ("warmup", "x/warmup_cot", "base_weight"):  # folders of other things
        words = "a data set cannot be called .* another --dataset"
        refused(words, layout.augmented_file, dataset, "dev")


@pytest.mark.parametrize("name, folder", [
    ("Qwen/Qwen2.5-1.5B-Instruct", "Qwen2.5-1.5B-Instruct"),
    ("data/demo/demo-model/", "demo-model"), ("../../etc/passwd", "passwd"),
    ("C:\\models\\mine", "mine"), ("Frågor-日本", "Frågor-日本"), ("a;rm -rf *", "a_rm_-rf__"),
])  # fmt: skip
def test_a_name_becomes_its_last_part(name, folder):
    assert layout.folder_name(name) == folder


def test_a_file_appears_whole_or_the_old_one_is_left_and_nothing_else(tmp_path):
    path = tmp_path / "new" / "deep" / "a.json"
    files.write_json(path, {"é": [1]})
    assert path.read_text(encoding="utf-8") == '{\n  "é": [\n    1\n  ]\n}\n'
    assert path.stat().st_mode & 0o777 == 0o644
    files.write_text(path, "old")
    with pytest.raises(KeyboardInterrupt), files.writing_file(path) as temporary:
        temporary.write_text("ne")
        assert path.read_text() == "old"
        raise KeyboardInterrupt
    with pytest.raises(TypeError):
        files.write_json(path, object())
    assert path.read_text() == "old" and os.listdir(path.parent) == ["a.json"]


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
    for target in (path, "nowhere", "link"):  # in its place a link: to it, to nothing, to itself
        (link := tmp_path / "link").symlink_to(target)
        named = pytest.raises(InputError, match=f"link is a link to {target}: .*remove the link")
        with named, files.writing_folder(link):
            pass
        with named:
            files.remove_folder(link)
        link.unlink()
    assert os.listdir(path) == ["third"]


def test_a_folder_that_takes_no_file_is_named(tmp_path):
    (tmp_path / "data_aug").write_text("a file where a folder should be")
    file = tmp_path / "data_aug/demo/dev.json"
    refused(r"data_aug/demo/dev.json cannot be written \(Not a dir", files.write_json, file, [])
    refused("cannot be written", Journal, file.with_name(".dev.journal"), {})


def test_leftovers_of_a_killed_run_are_removed_and_those_of_a_living_one_stay(tmp_path):
    me, machine = os.getpid(), files._machine()
    dead = 2**22 + 1  # above the largest process id
    names = {  # and whether it stays
        f".a.json.{machine}-{dead}-0123abcd-xyz.tmp": False,
        f"..b.{machine}-{dead}-0123abcd-x.tmp.{machine}-{dead}-0123abcd-xyz.tmp": False,
        f".a.json.{machine}-{me}-0123abcd-xyz.tmp": False,  # an earlier process with our id
        f".a.json.{machine}-{me}-{files.RUN}-xyz.tmp": True,
        f".a.json.{machine}-{os.getppid()}-0123abcd-xyz.tmp": True,
        f".a.json.00000000-{dead}-0123abcd-xyz.tmp": True,  # another machine, just now
        f".old.00000000-{dead}-0123abcd-xyz.tmp": False,  # another machine, days ago
        ".mine.tmp": True,  # not ours
        f"a.json.{machine}-{dead}-0123abcd-xyz.tmp": True,
    }
    for name in names:
        place = tmp_path / name / ".tmpAb1" if "..b" in name else tmp_path / name
        place.parent.mkdir(exist_ok=True)
        place.write_text("half")
    os.utime(tmp_path / f".old.00000000-{dead}-0123abcd-xyz.tmp", (1, 1))
    with files.writing_file(tmp_path / "a.json") as temporary:
        left = {name for name in names if (tmp_path / name).exists()}
        assert left == {name for name, stays in names.items() if stays}
        with files.writing_folder(tmp_path / "folder") as other:
            assert temporary.exists() and other.exists()
    assert (tmp_path / "a.json").exists() and (tmp_path / "folder").is_dir()


@pytest.mark.parametrize("content, message", [
    (None, "the list .*a.json does not exist"),
    (b'{"a": 1,\n "b": ', "the list .*a.json is not valid JSON .*line 2 column .*mend it"),
    (b'{"a": "\xff"}', r"is not UTF-8 \(byte 7\); convert"),
    ("a.json", "the list .*a.json (is a link to nothing|cannot be read: .* symbolic links)"),
    (b"1" * 5000, r"not valid JSON \(Exceeds the limit .*5000 digits\); mend it"),
    (b'{"a": 1}\n{"a": 2}', r"may be JSON lines: put all values into one list \["),
])  # fmt: skip
def test_an_unreadable_file_is_named_with_its_cause(tmp_path, content, message):
    path = tmp_path / "a.json"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        path.symlink_to(content)
    refused(message, files.read_json, path, "the list")


def test_a_fingerprint_depends_on_values_only_and_never_changes(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf[1]")  # a byte order mark is no value
    assert files.read_json(tmp_path / "a.json", "the list") == [1]
    value = {"b": ["ü", 1.5, None], "a": True}
    assert files.hash_json(value) == files.hash_json(json.loads(json.dumps(value)))
    assert files.hash_json(value) == files.hash_json(dict(reversed(value.items())))
    assert files.hash_json(value) != files.hash_json({**value, "a": False})
    assert files.hash_json({"a": 1}) == "f9d86028c6e0d64e"  # it is in files that users keep


def test_a_path_is_shown_relative_to_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert files.relative(tmp_path / "a" / "b") == str(Path("a/b"))
    assert files.relative(Path("/elsewhere/b")) == "/elsewhere/b"


def test_output_that_is_cut_by_its_reader_ends_without_a_word():
    """As `python src/adapters.py list | head -1` does."""
    program = "from utils.running import run_stage; run_stage(lambda: print('line\\n' * 100_000))"
    command = f'"{sys.executable}" -c "{program}" | head -1; exit ${{PIPESTATUS[0]}}'
    source = files.__file__.rsplit("/", 2)[0]
    done = subprocess.run(["bash", "-c", command], cwd=source, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (141, b"line\n", b"")


def test_wherever_a_kill_cuts_the_file_the_whole_lines_stay_and_work_goes_on(tmp_path):
    path, own = tmp_path / "new" / ".work.journal", tmp_path / "new" / ".work.journal.0"
    items = [{"text": "line\nbreak \u2028 é"}, [2], "three", None]
    with Journal(path, SETTINGS) as journal:
        for item in items:
            journal.add(item)
        assert journal.items == items
        whole = own.read_bytes()  # no line waits for the end
    for length in range(len(whole) + 1):
        own.write_bytes(whole[:length])
        lines = whole[:length].count(b"\n")
        with Journal(path, SETTINGS) as journal:
            assert journal.items == items[: max(0, lines - 1)]
            for item in items[len(journal.items) :]:
                journal.add(item)
        assert own.read_bytes() == whole
    own.write_bytes(whole + bytes(500))  # a power failure can leave such an end
    assert Journal(path, SETTINGS).items == items


def test_a_journal_takes_a_line_as_a_whole_or_goes_on_without_it(tmp_path):
    path = tmp_path / "j"
    with Journal(path, SETTINGS) as journal:
        journal.add("a")
        with room_for(80):
            refused("cannot be written", journal.add, "b" * 100)
    assert (tmp_path / "j.0").stat().st_size == 80
    with Journal(path, SETTINGS) as again:
        assert again.items == ["a"]
        again.add("c")
    assert Journal(path, SETTINGS).items == ["a", "c"]


@pytest.mark.parametrize(("content", "message"), [
    (b"[]\n", "damaged in line 1"),
    (b"\x80\x00\xff\n\x13" * 9, "damaged in line 1"),
    (b'{"seed": 1}\n"a"\n\x00\x00\x00\n"c"\n', "damaged in line 3"),
    (b'{"seed": 1}\n"a"\n"b\n"c"\n', "damaged in line 3"),
    (b"[" * 100_000 + b"\n", "damaged in line 1"),
])  # fmt: skip
def test_a_damaged_journal_is_named_and_stays(tmp_path, content, message):
    path, own = tmp_path / "j", tmp_path / "j.0"
    own.write_bytes(content)
    refused(message + r"; remove it, or use --overwrite", Journal, path, {"seed": 1})
    assert own.read_bytes() == content


def test_work_of_other_settings_is_refused_and_stays_until_it_is_removed(tmp_path):
    path = tmp_path / "j"
    with Journal(path, SETTINGS) as journal:
        journal.add(1)
    before, other = (tmp_path / "j.0").read_bytes(), {**SETTINGS, "seed": 2}
    refused(r"made with seed = 1, .* seed = 2; .*--overwrite", Journal, path, other)
    refused(r"made with new = null, .* new = \"x\"", Journal, path, {**SETTINGS, "new": "x"})
    assert (tmp_path / "j.0").read_bytes() == before
    journal.remove()
    assert list(tmp_path.iterdir()) == []
    journal.remove()
    assert Journal(path, other).items == []
    Journal(tmp_path / "k", other, 1).close()
    refused(r"k\.1 was made with seed = 2", Journal, tmp_path / "k", SETTINGS)
    Journal(tmp_path / "k", {**SETTINGS, "seed": 3}, 1).close()  # nothing of it was lost


def test_an_absent_setting_has_the_recipes_default_and_any_other_is_a_difference():
    refuse_difference("it", {"a": 1, "b": [2]}, {"b": [2], "a": 1}, "do")
    words = r"^it was made with b = \[2\], .* b = null; do$"
    refused(words, refuse_difference, "it", {"a": 1, "b": [2]}, {"a": 1}, "do")
    old, new = {"seed": 1}, {"seed": 1, "objective": "lm", "merge_topk": None}
    assert first_difference(old, new) is None and first_difference(new, old) is None
    assert first_difference(old, {**new, "objective": "other"}) == "objective"
    assert first_difference({**new, "objective": "other"}, old) == "objective"


def test_processes_write_a_file_each_and_read_all(tmp_path):
    first, second = (Journal(tmp_path / "j", SETTINGS, part, True) for part in (0, 1))
    second.add("b")
    first.add("a")
    assert first.items == ["a"]
    first.reread()
    assert first.items == ["a", "b"]
    # alone, it would put together what is not finished
    refused(r"another run is writing .*j\.[01]", Journal, tmp_path / "j", SETTINGS, 2)
    first.close()
    second.close()
    with Journal(tmp_path / "j", SETTINGS, 10) as third:  # another number of processes goes on
        assert third.items == ["a", "b"]
        words = r"another run is writing .*j\.10; wait for it"
        refused(words, Journal, tmp_path / "j", SETTINGS, 10)
        third.add("c")
        third.reread()
        assert third.items == ["a", "b", "c"]
        third.remove()
    assert list(tmp_path.iterdir()) == []
