"""Load a model and its tokenizer."""

import logging

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from utils.model_files import failures_named, resolve_model
from utils.running import InputError

WEIGHT_FAULTS = {"missing_keys": "missing", "mismatched_keys": "of another shape"}
WEIGHT_FAULTS |= {"unexpected_keys": "unexpected"}


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
    """The tokenizer of `--model_name`, with a padding token that the model knows."""
    path = resolve_model(name)
    with failures_named("tokenizer", name, path):
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    known = getattr(_text_config(name, trust_remote_code), "vocab_size", None) or len(tokenizer)
    end, padding = tokenizer.eos_token_id, tokenizer.pad_token_id
    if end is None or end >= known:
        raise InputError(
            f"the tokenizer of --model_name {name} ({path}) has the end token {end}, but the "
            f"model's tokens are 0 to {known - 1}; name the right eos_token in its "
            "tokenizer_config.json"
        )
    if padding is None or padding >= known:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.model_max_length = 1 << 40  # prompts are shortened here: no warning of the library's
    return tokenizer


def context_length(name: str, trust_remote_code: bool = False) -> int:
    """The most tokens that the model of `--model_name` takes, prompt and answer together. With
    longrope (Phi-3.5, Phi-4-mini) as many as it learnt first: one longer row would rotate its whole
    batch by other angles, and an answer would depend on its neighbours."""
    config = _text_config(name, trust_remote_code)
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        return int(rope["original_max_position_embeddings"])
    return int(getattr(config, "max_position_embeddings", None) or 1 << 20)


def _text_config(name: str, trust_remote_code: bool) -> transformers.PreTrainedConfig:
    """Of a model that also sees or hears, the part that reads and writes text."""
    return _config(name, trust_remote_code).get_text_config(decoder=True)


def load_skeleton(name: str, trust_remote_code: bool = False) -> transformers.PreTrainedModel:
    """The model of `--model_name` without weights: its layers and their shapes, in no memory."""
    config = _config(name, trust_remote_code)
    with failures_named("model", name, resolve_model(name)), torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)


def _config(name: str, trust_remote_code: bool) -> transformers.PreTrainedConfig:
    path = resolve_model(name)
    with failures_named("model", name, path):
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
    logging.getLogger("transformers.modeling_utils").addFilter(_is_no_table)
    with failures_named("model", name, path):
        model, found = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=pick_dtype(dtype, device),
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            device_map=device_map,
            ignore_mismatched_sizes=True,  # so that they are named below
            output_loading_info=True,
        )
    found["missing_keys"] -= model.all_tied_weights_keys.keys()
    _refuse_other_weights(name, path, found)
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


def _is_no_table(record: logging.LogRecord) -> bool:
    """For the library's table of missing weights: here they are an error of one sentence."""
    return "LOAD REPORT" not in record.getMessage()


def _refuse_other_weights(name: str, path: str, found: dict[str, set]) -> None:
    """Raise `InputError` if the checkpoint is not whole: the rest of the model would be random.
    `found` says which weights were missing, unexpected or of another shape, tied ones aside."""
    words = []
    for kind, fault in WEIGHT_FAULTS.items():  # of another shape: the key with both shapes
        keys = sorted(key if isinstance(key, str) else key[0] for key in found[kind])
        words += [f"{len(keys)} {fault}, {keys[0]} first"] if keys else []
    if words:
        raise InputError(
            f"--model_name {name}: the weights in {path} are not those of the model that its "
            f"config.json describes ({'; '.join(words)}); fetch them again, or save the model "
            "itself and not what wraps it"
        )
