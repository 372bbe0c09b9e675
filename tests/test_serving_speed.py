"""The benchmark of the server: every answer is counted, and where two lines cross."""

import json
import sys

import pytest
from conftest import REPOSITORY, use_root
from serve_runs import FLAGS
from stage_runs import run

sys.path.insert(0, str(REPOSITORY / "benchmarks"))
import serving
import serving_soak


def test_clients_and_the_crossover_are_measured(served, finished, tmp_path, monkeypatch, capsys):
    use_root(finished, monkeypatch)
    file, url = tmp_path / "serving.json", f"http://127.0.0.1:{served.port}"
    amounts = "--clients 2 --lengths 5 9 --batches 2 --repetitions 1".split()
    run(serving, *FLAGS, *amounts, "--url", url, "--json", str(file))
    result = json.loads(file.read_text())
    assert [row["method"] for row in result["clients"]] == list(serving.METHODS)
    for row in result["clients"]:
        assert len(row["rounds"][0]["each"]) == serving.LEAST and 0 < row["p50"] <= row["p95"]
    [found] = result["crossover"]
    assert found["batch"] == 2 and found["prag"] > 0 and len(found["icl"]) == 2
    assert capsys.readouterr().out.count("2 clients") == 4


@pytest.mark.parametrize("prag, crossing", [
    (0.5, "below the shortest"), (2.5, 150.0), (9.0, "above the longest"),
])  # fmt: skip
def test_the_crossover_is_between_two_lengths(prag, crossing):
    assert serving.meeting([50, 100, 200], [1.0, 2.0, 3.0], prag) == crossing


def test_the_address_is_found_behind_what_a_server_says_before(tmp_path, monkeypatch):
    (tmp_path / "src").mkdir()
    said = "2 passages have more than one adapter\nm at http://127.0.0.1:7/"
    program = f"import time\nprint({said!r}, flush=True)\ntime.sleep(60)"
    (tmp_path / "src/serve.py").write_text(program)
    monkeypatch.setattr(serving_soak, "REPOSITORY", tmp_path)
    with serving_soak.started([]) as (address, process):
        assert address == "http://127.0.0.1:7/"
    assert process.returncode is not None
