"""Tiny random models and a project root of one's own for every test."""

import json
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)


WINDOW = 8  # tokens that a layer with a sliding window sees
GEMMA = {
    "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention"],
}  # fmt: skip
LONGROPE = {
    "rope_type": "longrope", "short_factor": [1.0, 1.1, 1.2], "long_factor": [2.0, 3.0, 4.0],
}  # fmt: skip
FAMILIES = {  # model type -> what its real models add to the common sizes
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "mistral": {"head_dim": 16, "sliding_window": WINDOW},
    "gemma3_text": GEMMA,
    "gemma3": {  # the text model beside one for images
        "mm_tokens_per_image": 4,
        "vision_config": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 2, "image_size": 16, "patch_size": 8},
    },
    "phi3": {  # gate_proj and up_proj in one; Phi-4-mini rotates a part of each head
        "partial_rotary_factor": 0.75,
        "original_max_position_embeddings": 512,
        "rope_scaling": LONGROPE,
    },
}  # fmt: skip


def tiny_model(family: str = "llama", tied: bool = True, seed: int = 0, vocabulary: int = 97):
    """A random model of two layers with grouped-query attention."""
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": tied,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if family == "gemma3":
        sizes = {"text_config": sizes | GEMMA, "tie_word_embeddings": tied}
    config = AutoConfig.for_model(family, **sizes, **FAMILIES[family])
    model = AutoModelForCausalLM.from_config(config).eval()
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
    """A root with a finished index, augmentation, adapters and all results; do not change."""
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


@pytest.fixture(scope="module")
def served(finished):
    """A server of the finished root: its port, worker and session."""
    from serve_runs import opened, server_of

    with server_of(opened(finished)) as server:
        yield server
