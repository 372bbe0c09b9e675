"""Load a model and its tokenizer; batched generation, greedy or sampled."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import transformers
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from utils import layout
from utils.files import read_json
from utils.running import InputError

SHORT_NAMES = Path(__file__).parents[2] / "configs" / "models.json"


def resolve_model(name: str) -> str:
    """What `from_pretrained` takes for `--model_name`, a short name, a folder or a hub id."""
    known = read_json(SHORT_NAMES, "the list of models")
    if name in known:
        return known[name]
    for folder in (Path(name), layout.ROOT_DIR / name):
        if (folder / "config.json").is_file():
            return str(folder)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise InputError(
            f"--model_name {name}: there is no such folder, or no config.json in it; give a folder,"
            f" a hub id such as owner/name, or one of {', '.join(known)}"
        )
    return name


def model_identity(name: str) -> str:
    """What tells one model from another: its name and, in a folder, its configuration and weights.
    Of a weights file the size and both ends are read, which is quick for any size."""
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
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of `--dtype`; "auto" is bfloat16 on a GPU that has it and float32 elsewhere."""
    if name == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if fast else torch.float32
    return getattr(torch, name)


def dtype_name(name: str) -> str:
    """The name of what `--dtype` means on this machine, for the settings of a run."""
    return str(pick_dtype(name, pick_device())).removeprefix("torch.")


def load_tokenizer(name: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of `--model_name`, with a padding token."""
    path = resolve_model(name)
    with _failures_named("tokenizer", name, path):
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def context_length(name: str, trust_remote_code: bool = False) -> int:
    """The most tokens that the model of `--model_name` takes, prompt and answer together."""
    return int(getattr(_config(name, trust_remote_code), "max_position_embeddings", 1 << 20))


def load_skeleton(name: str, trust_remote_code: bool = False) -> transformers.PreTrainedModel:
    """The model of `--model_name` without weights: its layers and their shapes, in no memory."""
    config = _config(name, trust_remote_code)
    with _failures_named("model", name, resolve_model(name)), torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)


def _config(name: str, trust_remote_code: bool) -> transformers.PreTrainedConfig:
    path = resolve_model(name)
    with _failures_named("model", name, path):
        return transformers.AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)


def load_model(
    name: str,
    dtype: str,
    tokenizer: PreTrainedTokenizerBase,
    trust_remote_code: bool = False,
    device_map: str | None = None,
) -> transformers.PreTrainedModel:
    """The model of `--model_name` on the best device, frozen, from safetensors only.

    With `device_map` "auto" its layers are spread over all GPUs. Of the generation settings that a
    model ships with only the stop tokens are kept: no sampling option may reach a run.
    """
    path = resolve_model(name)
    device = pick_device()
    transformers.utils.logging.disable_progress_bar()  # a stage has one bar, its own
    with _failures_named("model", name, path):
        model = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=pick_dtype(dtype, device),
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            device_map=device_map,
        )
    shipped = model.generation_config.eos_token_id
    stops = {*(shipped if isinstance(shipped, list) else [shipped]), tokenizer.eos_token_id}
    model.generation_config = transformers.GenerationConfig(
        eos_token_id=sorted(stops - {None}), pad_token_id=tokenizer.pad_token_id
    )
    if device_map is None:
        model.to(device)
    elif any(parameter.is_meta for parameter in model.parameters()):
        raise InputError(
            f"--model_name {name}: all GPUs together do not hold it; use more, or --dtype bfloat16"
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
    except Exception as error:  # it documents none, and a bad configuration makes it raise many
        if isinstance(error, MemoryError | RuntimeError) and "memory" in f"{error!r}".lower():
            raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        remedy = "check the name, the network and your access, or download it and give its folder"
        if Path(path).is_dir():
            remedy = "check its files (config.json, tokenizer, safetensors), or fetch them again"
        raise InputError(
            f"the {what} of --model_name {name} ({path}) cannot be loaded: "
            f"{lines[0].rstrip(' .:')}; {remedy}"
        ) from None


class SeededSampling(transformers.LogitsProcessor):
    """Sampling whose random numbers belong to the row, not to the batch it happens to be in.

    To the `top_k` highest scores, divided by the temperature, Gumbel noise from the row's own seed
    is added: the greedy choice that follows is an exact sample from the softmax.
    """

    def __init__(self, seeds: list[int], temperature: float, top_k: int, length: int):
        self.temperature, self.top_k, self.step = temperature, top_k, 0
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        uniform = torch.stack([torch.rand(length, top_k, generator=one) for one in generators])
        self.noise = -torch.log(-torch.log(uniform.clamp_min(torch.finfo(torch.float32).tiny)))

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
    model: transformers.PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    max_new_tokens: int,
    seeds: list[int] | None = None,
    temperature: float = 0.0,
    top_k: int = 50,
    watch: transformers.LogitsProcessor | None = None,
) -> list[str]:
    """The continuation of each prompt (token ids) as text, without special tokens, as one batch.
    Greedy at temperature 0; above it sampled, with one seed per prompt. `watch` sees each step."""
    rows = [torch.tensor(prompt, dtype=torch.long) for prompt in prompts]
    ids = pad_sequence(rows, True, tokenizer.pad_token_id, "left")
    mask = pad_sequence([torch.ones_like(row) for row in rows], True, 0, "left")
    sampling = [SeededSampling(seeds, temperature, top_k, max_new_tokens)] if temperature else []
    output = model.generate(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        logits_processor=transformers.LogitsProcessorList([watch] * bool(watch) + sampling),
    )
    return tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)
