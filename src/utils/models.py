"""Load a model and its tokenizer; batched generation, greedy or sampled."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from utils import layout
from utils.files import read_json
from utils.running import InputError

DTYPES = ("auto", "float32", "bfloat16", "float16")
SHORT_NAMES = Path(__file__).parents[2] / "configs" / "models.json"


def resolve_model(name: str) -> str:
    """What `from_pretrained` takes for `--model_name`: a short name's hub id, a folder, a hub id.

    Raises `InputError` where a name that looks like a folder has no `config.json`.
    """
    known = read_json(SHORT_NAMES, "the list of models")
    if name in known:
        return known[name]
    for folder in (Path(name), layout.ROOT_DIR / name):
        if folder.is_dir():
            if not (folder / "config.json").is_file():
                raise InputError(f"--model_name {name}: the folder holds no config.json")
            return str(folder)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise InputError(
            f"--model_name {name}: there is no such folder; give a folder, a hub id such as "
            f"owner/name, or one of {', '.join(known)}"
        )
    return name


def model_identity(name: str) -> str:
    """What tells one model from another: its folder name and, for a local one, its files.

    Of a weights file the size and both ends are read, which is quick for any size.
    """
    path = Path(resolve_model(name))
    if not path.is_dir():
        return str(path)
    digest = hashlib.sha256((path / "config.json").read_bytes())
    for file in sorted(path.glob("*.safetensors")):
        with file.open("rb") as weights:
            size = file.stat().st_size
            digest.update(f"{file.name} {size}".encode() + weights.read(1 << 20))
            weights.seek(max(0, size - (1 << 20)))
            digest.update(weights.read())
    return f"{path.resolve().name}@{digest.hexdigest()[:16]}"


def pick_device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of `--dtype`; "auto" is bfloat16 on a GPU that has it and float32 elsewhere."""
    if name == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if fast else torch.float32
    return getattr(torch, name)


def dtype_name(name: str) -> str:
    """The name of what `--dtype` stands for on this machine, for the settings of a run."""
    return str(pick_dtype(name, pick_device())).removeprefix("torch.")


def load_tokenizer(name: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of `--model_name`, with a padding token.

    Raises `InputError` where it cannot be loaded.
    """
    path = resolve_model(name)
    with _failures_named("tokenizer", name, path):
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def context_length(name: str, trust_remote_code: bool = False) -> int:
    """The most tokens that the model of `--model_name` takes, prompt and answer together."""
    return int(getattr(_config(name, trust_remote_code), "max_position_embeddings", 1 << 20))


def load_skeleton(name: str, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model of `--model_name` without weights: its layers and their shapes, in no memory.

    Raises `InputError` where its configuration cannot be loaded.
    """
    config = _config(name, trust_remote_code)
    with _failures_named("model", name, resolve_model(name)), torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)


def _config(name: str, trust_remote_code: bool) -> PreTrainedConfig:
    path = resolve_model(name)
    with _failures_named("model", name, path):
        return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)


def load_model(
    name: str,
    dtype: str,
    tokenizer: PreTrainedTokenizerBase,
    trust_remote_code: bool = False,
    device_map: str | None = None,
) -> PreTrainedModel:
    """The model of `--model_name` on the best device, frozen, from safetensors only.

    With `device_map` "auto" its layers are spread over all GPUs. Its generation settings are
    reduced to its stop tokens, so that no sampling option that a model ships with reaches a run.
    Raises `InputError` where it cannot be loaded.
    """
    path = resolve_model(name)
    device = pick_device()
    logging.disable_progress_bar()  # a stage has one bar, its own
    with _failures_named("model", name, path):
        model = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=pick_dtype(dtype, device),
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            device_map=device_map,
        )
    stops = model.generation_config.eos_token_id
    stops = stops if isinstance(stops, list) else [stops]
    stops = {stop for stop in [*stops, tokenizer.eos_token_id] if stop is not None}
    model.generation_config = GenerationConfig(
        eos_token_id=sorted(stops), pad_token_id=tokenizer.pad_token_id
    )
    if device_map is None:
        model.to(device)
    elif any(parameter.is_meta for parameter in model.parameters()):
        raise InputError(
            f"--model_name {name}: the GPUs together do not hold the model, parts of it would lie "
            "on the disk; use more GPUs, or --dtype bfloat16"
        )
    model.eval().requires_grad_(False)
    with torch.inference_mode():
        logits = model(torch.zeros((1, 1), dtype=torch.long, device=model.device)).logits
    if not logits.isfinite().all():
        raise InputError(
            f"--model_name {name}: the model's output is not finite, its weights ({path}) are "
            "damaged or too large for --dtype; fetch them again, or use --dtype float32"
        )
    return model


@contextmanager
def _failures_named(what: str, name: str, path: str) -> Iterator[None]:
    """Make an `InputError` of whatever transformers raises on a model that it cannot load."""
    try:
        yield
    except (InputError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # it documents none, and a bad configuration makes it raise many
        if isinstance(error, RuntimeError) and "memory" in str(error):
            raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        remedy = "check the name, the network and your access, or download it and give its folder"
        if Path(path).is_dir():
            remedy = "check its files (config.json, tokenizer, safetensors), or fetch them again"
        raise InputError(
            f"the {what} of --model_name {name} ({path}) cannot be loaded: "
            f"{lines[0].rstrip(' .:')}; {remedy}"
        ) from None


class SeededSampling(LogitsProcessor):
    """Sampling whose random numbers belong to the row, not to the batch it happens to be in.

    Each row's scores are divided by the temperature, all but the `top_k` highest removed, and
    Gumbel noise from the row's own seed added: the greedy choice that follows is then an exact
    sample from the softmax (the Gumbel-max trick).
    """

    def __init__(self, seeds: list[int], temperature: float, top_k: int, length: int):
        self.temperature, self.top_k, self.step = temperature, top_k, 0
        uniform = [
            torch.rand(length, top_k, generator=torch.Generator().manual_seed(seed))
            for seed in seeds
        ]
        tiny = torch.finfo(torch.float32).tiny
        self.noise = -torch.log(-torch.log(torch.stack(uniform).clamp_min(tiny)))

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """`scores [rows, vocabulary]` of the next token -> noisy scores of the same shape."""
        top_k = min(self.top_k, scores.shape[-1])
        best, places = torch.topk(scores.float() / self.temperature, top_k)  # [rows, top_k]
        noise = self.noise[:, self.step, :top_k].to(scores.device)
        self.step += 1
        result = torch.full_like(scores, -torch.inf, dtype=torch.float32)
        return result.scatter(-1, places, best + noise)


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    max_new_tokens: int,
    seeds: list[int] | None = None,
    temperature: float = 0.0,
    top_k: int = 50,
) -> list[str]:
    """The continuation of each prompt (token ids) as text, without special tokens, as one batch.

    Greedy at temperature 0; above it sampled, with one seed per prompt. Prompts are padded on the
    left. Whatever adapters the model's bank holds are used, one row group each.
    """
    length = max(map(len, prompts))
    ids = torch.full((len(prompts), length), tokenizer.pad_token_id)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt) :] = torch.tensor(prompt)
        mask[row, length - len(prompt) :] = 1
    processors = LogitsProcessorList()
    if temperature > 0:
        processors.append(SeededSampling(seeds, temperature, top_k, max_new_tokens))
    output = model.generate(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        logits_processor=processors,
    )
    return tokenizer.batch_decode(output[:, length:], skip_special_tokens=True)
