"""The published way of encoding and answering, as a plain loop to compare with.

Written for this purpose from its description, with `peft` alone: nothing here goes through the
toolkit's training or merging, so that what makes those faster cannot make this faster. One
adapter at a time in float32, each prompt padded to a fixed length, the model wrapped again for
every passage; one question at a time, its passages' adapters loaded from disk and merged.

Two of its failures do not occur: every passage starts from a saved base adapter, so no model is
wrapped twice, and this version of `peft` removes an unloaded adapter's configuration, because of
which later questions got the first passage's adapter alone.
"""

import gc
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase


def encode_passage(
    model: PreTrainedModel,
    base_folder: Path,
    prompts: list[list[int]],
    folder: Path,
    learning_rate: float,
    pad_id: int,
    padded_length: int | None,
) -> None:
    """Train a passage's adapter from that in `base_folder`, one prompt a step, into `folder`.

    `prompts` are token ids, padded on the right to `padded_length` (None: not at all).
    """
    wrapped = PeftModel.from_pretrained(model, base_folder, is_trainable=True)
    try:
        parameters = [p for p in wrapped.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=learning_rate)
        for prompt in prompts:
            missing = max(0, (padded_length or 0) - len(prompt))
            ids = torch.tensor([prompt + [pad_id] * missing], device=model.device)
            mask = torch.tensor([[1] * len(prompt) + [0] * missing], device=model.device)
            labels = ids.masked_fill(mask == 0, -100)
            loss = wrapped(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        # with the default, peft looks up the base model's vocabulary for every adapter
        wrapped.save_pretrained(folder, save_embedding_layers=False)
    finally:
        _unload(wrapped)


def answer_question(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folders: list[Path],
    prompt: list[int],
    max_new_tokens: int,
    weight: float = 1.0,
) -> str:
    """The greedy answer to `prompt` (token ids) with the adapters in `folders` merged.

    Each counts `weight` times; the published weight is 1.
    """
    names = [str(number) for number in range(len(folders))]
    wrapped = PeftModel.from_pretrained(model, folders[0], adapter_name=names[0])
    try:
        for name, folder in zip(names[1:], folders[1:], strict=True):
            wrapped.load_adapter(folder, adapter_name=name)
        weights = [weight] * len(names)
        wrapped.add_weighted_adapter(names, weights, "merged", combination_type="cat")
        wrapped.set_adapter("merged")
        ids = torch.tensor([prompt], device=model.device)
        with torch.no_grad():
            output = wrapped.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max_new_tokens,
                do_sample=False,
            )
        wrapped.delete_adapter("merged")
    finally:
        _unload(wrapped)
    return tokenizer.batch_decode(output[:, len(prompt) :], skip_special_tokens=True)[0]


def _unload(wrapped: PeftModel) -> None:
    """Take the adapters out of the model again and collect what they leave."""
    model = wrapped.unload()
    gc.collect()
    if model.device.type == "cuda":
        torch.cuda.empty_cache()
