"""The journal of finished pieces: order, cut-off lines, other settings."""

import pytest
from stage_runs import refused

from utils.journal import Journal, first_difference, refuse_difference
from utils.running import InputError

SETTINGS = {"seed": 1, "model": "m", "nested": {"a": [1, 2]}}


def test_items_come_back_in_the_order_of_their_writing(tmp_path):
    path = tmp_path / "new" / ".work.journal"
    items = [{"text": "line\nbreak \u2028 é"}, [2], "three", None]
    with Journal(path, SETTINGS) as first:
        for item in items[:3]:
            first.add(item)
        assert path.with_name(".work.journal.0").read_bytes().endswith(b'"three"\n')
    with Journal(path, SETTINGS) as second:
        assert second.items == items[:3]
        second.add(items[3])
        assert second.items == items
    assert Journal(path, SETTINGS).items == items


def test_wherever_a_kill_cuts_the_file_the_whole_lines_stay_and_work_goes_on(tmp_path):
    path, own, items = tmp_path / "j", tmp_path / "j.0", ["é", {"b": 2}]
    with Journal(path, SETTINGS) as journal:
        for item in items:
            journal.add(item)
    whole = own.read_bytes()
    for length in range(len(whole) + 1):
        own.write_bytes(whole[:length])
        lines = whole[:length].count(b"\n")
        with Journal(path, SETTINGS) as journal:
            assert journal.items == items[: max(0, lines - 1)]
            for item in items[len(journal.items) :]:
                journal.add(item)
        assert own.read_bytes() == whole


def test_work_of_other_settings_is_refused_and_stays(tmp_path):
    path = tmp_path / "j"
    with Journal(path, SETTINGS) as journal:
        journal.add(1)
    before = (tmp_path / "j.0").read_bytes()
    with pytest.raises(InputError, match=r"made with seed = 1, .* seed = 2; .*--overwrite"):
        Journal(path, {**SETTINGS, "seed": 2})
    refused(r"made with new = null, .* new = \"x\"", Journal, path, {**SETTINGS, "new": "x"})
    assert (tmp_path / "j.0").read_bytes() == before
    Journal(tmp_path / "k", {**SETTINGS, "seed": 2}, 1).close()
    refused(r"k\.1 was made with seed = 2", Journal, tmp_path / "k", SETTINGS)
    Journal(tmp_path / "k", {**SETTINGS, "seed": 3}, 1).close()  # nothing of it was lost


def test_an_absent_setting_has_the_recipes_default_and_any_other_is_a_difference():
    refuse_difference("it", {"a": 1, "b": [2]}, {"b": [2], "a": 1}, "do")
    with pytest.raises(InputError, match=r"^it was made with b = \[2\], .* b = null; do$"):
        refuse_difference("it", {"a": 1, "b": [2]}, {"a": 1}, "do")
    old, new = {"seed": 1}, {"seed": 1, "objective": "lm", "merge_topk": None}
    assert first_difference(old, new) is None and first_difference(new, old) is None
    assert first_difference(old, {**new, "objective": "other"}) == "objective"
    assert first_difference({**new, "objective": "other"}, old) == "objective"


def test_a_removed_journal_leaves_nothing_and_can_begin_again(tmp_path):
    journal = Journal(tmp_path / "j", SETTINGS)
    journal.add(1)
    journal.remove()
    assert list(tmp_path.iterdir()) == []
    journal.remove()
    assert Journal(tmp_path / "j", {"seed": 2}).items == []


def test_processes_write_a_file_each_and_read_all(tmp_path):
    first, second = (Journal(tmp_path / "j", SETTINGS, part, True) for part in (0, 1))
    second.add("b")
    first.add("a")
    assert first.items == ["a"]
    first.reread()
    assert first.items == ["a", "b"]
    with pytest.raises(InputError, match=r"another run is writing .*j\.[01]"):
        Journal(tmp_path / "j", SETTINGS, 2)  # alone, it would put together what is not finished
    first.close()
    second.close()
    with Journal(tmp_path / "j", SETTINGS, 10) as third:  # another number of processes goes on
        assert third.items == ["a", "b"]
        with pytest.raises(InputError, match=r"another run is writing .*j\.10; wait for it"):
            Journal(tmp_path / "j", SETTINGS, 10)
        third.add("c")
        third.reread()
        assert third.items == ["a", "b", "c"]
        third.remove()
    assert list(tmp_path.iterdir()) == []
