"""What is kept about a run, and what must not be."""

import json
import sys

import pytest

from utils.provenance import provenance


def test_it_names_date_commit_versions_and_device():
    made = provenance()
    assert made["date"].endswith("+00:00") and made["device"]
    assert {"python", "torch", "transformers", "peft"} <= made["versions"].keys()
    assert made["git_commit"] is None or len(made["git_commit"].removesuffix("-dirty")) == 40


@pytest.mark.parametrize("words", [
    ["--es_password", "sec ret"], ["--es_password=sec ret"], ["--es_api_key", "sec ret"],
    ["--es_url", "https://me:sec ret@host:9200"], ["--api_base", "https://me:sec ret@host/v1"],
])  # fmt: skip
def test_no_secret_of_the_command_line_is_kept(words, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["src/augment.py", "--topk", "3", *words])
    shown = json.dumps(provenance())
    assert "augment.py --topk 3" in shown
    assert "sec" not in shown.replace("secs", "") and "ret" not in provenance()["command"]
