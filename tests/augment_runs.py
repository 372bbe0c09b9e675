"""Runs of stage 1 with the index of the demo and a model that needs no time."""

import json
import shutil

import pytest
from conftest import REPOSITORY

from utils.augmentation import writing
from utils.retrieval.embedded import EmbeddedIndex, build_index

PAIRS = json.dumps([{"question": "Q?", "answer": "A", "full_answer": "A."}] * 3)
QUESTIONS = json.loads((REPOSITORY / "data/demo/questions.json").read_text())


@pytest.fixture(scope="session")
def demo_index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("index") / "demo"
    build_index(REPOSITORY / "data/demo/corpus.tsv", folder)
    return folder


@pytest.fixture
def indexed(demo_index, root):
    """A root with the index alone."""
    shutil.copytree(demo_index, root / "index/demo")
    return root


def hits_of(demo_index, data_type: str, number: int) -> list[dict]:
    question = QUESTIONS[data_type][number]["question"]
    return EmbeddedIndex(demo_index).search([question], 13)[0]


def instantly(monkeypatch, bad: set[str] = frozenset()) -> list[str]:
    """Write at once, no valid list about `bad`; the passages that lists are asked for come back."""
    asked = []

    def text(shown: str) -> str:
        passage = shown.split("Passage: ")[1].split("<|eot|>")[0]
        if "JSON list" not in shown:
            return "rewritten " + passage
        asked.append(passage)
        return "[{'question': 'only one'}" if passage in bad else PAIRS

    def generate(model, tokenizer, prompts, *_, more, **keywords):
        waiting = list(prompts)
        for row, prompt in enumerate(waiting):  # which grows
            if following := more(row, text(tokenizer.decode(prompt))):
                waiting.append(following[0])

    monkeypatch.setattr(writing, "load_model", lambda *_: None)
    monkeypatch.setattr(writing, "generate", generate)
    return asked


def records_at(root, data_type: str = "dev") -> list[dict]:
    return json.loads((root / f"data_aug/demo/{data_type}.json").read_text())
