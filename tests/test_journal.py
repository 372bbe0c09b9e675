"""The journal of finished pieces: order, cut-off and damaged lines, a full disk, other settings."""

import pytest
from adapter_runs import room_for
from stage_runs import refused

from utils.journal import Journal, first_difference, refuse_difference

SETTINGS = {"seed": 1, "model": "m", "nested": {"a": [1, 2]}}


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
