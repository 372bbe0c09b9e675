"""Tiny random models and a project root of one's own for every test."""

import json
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)


def tiny_model(architecture: str = "llama", tied: bool = True, seed: int = 0):
    """A random model of two layers with grouped-query attention and a vocabulary of 97."""
    config_class, model_class = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
        "phi3": (Phi3Config, Phi3ForCausalLM),  # gate_proj and up_proj in one
    }[architecture]
    torch.manual_seed(seed)
    config = config_class(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = model_class(config).eval()
    with torch.no_grad():  # the library's initial weights are so small that nothing would show
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(5)
    return model


def use_root(folder: Path, monkeypatch) -> None:
    """Make `folder` the `ROOT_DIR` of all code that runs in the test's own process."""
    from utils import layout

    monkeypatch.setattr(layout, "ROOT_DIR", folder)


@contextmanager
def edited(path: Path):
    """The JSON value in a file, which is written back when it is changed."""
    value = json.loads(path.read_text())
    yield value
    path.write_text(json.dumps(value))


def put(path: Path, content: str | None) -> None:
    """Write `content`, or with None remove the file."""
    path.unlink() if content is None else path.write_text(content)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A fresh folder as `ROOT_DIR`."""
    use_root(tmp_path, monkeypatch)
    return tmp_path


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A root with a finished index, augmentation, adapters and all four results; do not change."""
    from stage_runs import AUGMENT, ENCODE, answer, run

    import augment
    import encode
    import prep_elastic
    from utils.recipe import METHODS

    root = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        use_root(root, patch)
        corpus = str(REPOSITORY / "data/demo/corpus.tsv")
        run(prep_elastic, "--data_path", corpus, "--index_name", "demo")
        run(augment, *AUGMENT)
        run(encode, *ENCODE)
        for method in METHODS:
            answer(method)
    return root


@pytest.fixture
def copy(finished, root):
    """The finished root's content in this test's own root."""
    shutil.copytree(finished, root, dirs_exist_ok=True)
    return root
