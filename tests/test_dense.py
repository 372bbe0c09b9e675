"""The dense engine, with a tiny random BERT."""

import shutil
import sys
from argparse import Namespace

import numpy
import pytest
import torch
from stage_runs import refused, stop_after
from test_retrieval import PASSAGES, ids, rows_of, write_corpus
from transformers import BertConfig, BertModel, BertTokenizerFast

from utils.retrieval import dense

library = pytest.importorskip("sentence_transformers")
WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] the cat dog river london in of a capital england".split()


def encoder_in(folder, seed=0):
    """A random encoder of one layer, saved in `folder`; its name for the flag."""
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    BertTokenizerFast(vocab={w: i for i, w in enumerate(WORDS)}).save_pretrained(folder / "bert")
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(**sizes, initializer_range=1.0)).save_pretrained(folder / "bert")
    modules = [Transformer(str(folder / "bert")), Pooling(16, "mean")]
    library.SentenceTransformer(modules=modules, device="cpu").save(str(folder))
    return str(folder)


@pytest.fixture
def options(root):
    return Namespace(index_name="d", overwrite=False, dense_model=encoder_in(root / "e" / "tiny"))


def build(root, options, passages):
    assert dense.build(write_corpus(root / "corpus.tsv", passages), options)[0] == len(passages)
    files = {file.name: file.read_bytes() for file in (root / "index/d").iterdir()}
    return dense.open_index(options), files


def test_the_best_passages_are_those_of_a_naive_computation(root, options, monkeypatch):
    words = numpy.random.default_rng(0).choice(WORDS[5:], (700, 9))
    passages = [(f"p{i}", " ".join(text), "cats"[: i % 2 * 4]) for i, text in enumerate(words)]
    monkeypatch.setattr(dense, "SCORES", 1000)  # several blocks of questions
    questions = ["a cat in London", "the \ud800 river", "capital of England"]
    index, _ = build(root, options, passages)
    assert rows_of(index) == passages
    found = index.search(questions, topk=20)
    model = library.SentenceTransformer(options.dense_model)
    vectors = model.encode([f"{title}\n{text}" if title else text for _, text, title in passages])
    asked = model.encode([question.replace("\ud800", "?") for question in questions])
    for cosines, hits in zip(library.util.cos_sim(asked, vectors).tolist(), found, strict=True):
        best = pytest.approx(sorted(cosines)[:-21:-1], abs=1e-5)
        rows = [passages.index((hit["id"], hit["text"], hit["title"])) for hit in hits]
        assert [hit["score"] for hit in hits] == best and [cosines[row] for row in rows] == best
    # a text appears once, and ties come in the order of the corpus
    options.overwrite = True
    passages = [(f"d{i}", "dog dog dog", "") for i in range(300)]
    passages += [(f"u{i}", f"zebra{i} cat", "") for i in range(600)]  # unknown words are alike
    dogs, cats = build(root, options, passages)[0].search(["dog dog dog", "zebra cat"], topk=4)
    assert (ids(dogs), ids(cats)) == (["d0", "u0", "u1", "u2"], ["u0", "u1", "u2", "u3"])


def test_an_index_is_whole_or_not_there_and_the_same_after_a_stop(root, options, monkeypatch):
    monkeypatch.setattr(dense, "BATCH", 2)
    _, files = build(root, options, PASSAGES)
    assert dense.build(root / "corpus.tsv", options)[0] == 0  # it is there already
    refused(r"exists already, of another corpus.*--overwrite", build, root, options, PASSAGES[1:])
    shutil.rmtree(root / "index/d")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(dense, "_unit_vectors", stop_after(2, dense._unit_vectors))
        build(root, options, PASSAGES)
    assert not list(root.glob("index/*"))
    assert build(root, options, PASSAGES)[1] == files


def test_a_different_or_missing_encoder_is_refused(root, options, monkeypatch):
    build(root, options, PASSAGES)
    changed = encoder_in(root / "e" / "new" / "tiny", seed=1)
    for name, message in [
        (None, "needs --dense_model"),
        (changed, f"its encoder: .*--engine dense --dense_model {changed} --data_path"),
        (encoder_in(root / "e" / "other"), "its dense_model: 'tiny', not 'other'"),
    ]:
        options.dense_model = name
        refused(message, dense.open_index, options)
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    refused(r"sentence_transformers.*pip install", dense.open_index, options)
