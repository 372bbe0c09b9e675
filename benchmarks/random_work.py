"""Models of well-known shapes with random weights, and prompts of random tokens for them.

Speed depends on shapes and lengths, not on what weights and tokens say, so nothing is downloaded.
"""

import random

import torch
from architectures import ARCHITECTURES
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

# Tokens of each part of a prompt, lowest and highest: what Llama 3's tokenizer makes of a passage
# of 100 words, of the prompt set "default" with its chat template, and of the few-shot examples
FRAME = {"direct": 50, "cot": 60}
FEW_SHOT = {"direct": 0, "cot": 330}
PASSAGE = (145, 195)
REWRITE = (130, 190)
QUESTION = (12, 24)
ANSWER = {"direct": (2, 8), "cot": (18, 35)}
PAIRS = 3


def config_of(architecture: str) -> PreTrainedConfig:
    """The configuration of one of the `ARCHITECTURES`."""
    return AutoConfig.for_model(**ARCHITECTURES[architecture])


def skeleton_of(architecture: str) -> PreTrainedModel:
    """A model of that shape without weights."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config_of(architecture))


class TokenNumbers:
    """In place of a tokenizer, as there is no text: a token reads as its number."""

    def __init__(self, config: PreTrainedConfig):
        self.pad_token_id, self.eos_token_id = config.pad_token_id, config.eos_token_id

    def batch_decode(self, rows: list[list[int]], skip_special_tokens: bool = True) -> list[str]:
        """Each row's tokens as text, without padding and end if that is asked for."""
        special = {self.pad_token_id, self.eos_token_id} if skip_special_tokens else set()
        return [" ".join(str(int(t)) for t in row if int(t) not in special) for row in rows]


def random_model(
    config: PreTrainedConfig, dtype: torch.dtype, device: torch.device
) -> PreTrainedModel:
    """A frozen model of `config` with random weights, the same in every dtype up to rounding."""
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.generation_config = GenerationConfig(
        eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    return model.to(dtype).eval().requires_grad_(False)


def random_prompts(
    config: PreTrainedConfig, mode: str, passages: int, questions: int
) -> tuple[list[list[list[int]]], list[list[int]]]:
    """The training prompts of each passage, and each question's prompt, as token ids.

    A passage has the five prompts of the paper's section 3.2.2: two questions with the passage and
    with its rewrite as context, a third without. Equal parts of prompts are equal tokens.
    """
    chosen = random.Random(0)
    lowest = 3 if config.vocab_size < 1000 else 1000  # above any special token of a small one
    highest = min(config.vocab_size, 100_000)  # below the special tokens of a large one

    def tokens(fewest: int, most: int | None = None) -> list[int]:
        count = chosen.randint(fewest, most or fewest)
        return [chosen.randrange(lowest, highest) for _ in range(count)]

    before = tokens(FRAME[mode]) + tokens(FEW_SHOT[mode])
    examples = []
    for _ in range(passages):
        contexts, own = [tokens(*PASSAGE), tokens(*REWRITE)], []
        for pair in range(PAIRS):
            asked = tokens(*QUESTION) + tokens(*ANSWER[mode])
            own += [before + text + asked for text in (contexts if pair < 2 else [[]])]
        examples.append(own)
    return examples, [before + tokens(*QUESTION) for _ in range(questions)]
