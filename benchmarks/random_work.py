"""Models of well-known shapes with random weights, and prompts of random tokens for them.

Speed depends on shapes and lengths, not on what weights and tokens say, so nothing is downloaded.
"""

import random

import torch
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)

# Llama 3.2's rotary embedding stretches the wavelengths of an 8192-token model
LLAMA32_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
ARCHITECTURES = {
    "llama3.2-1b": lambda: LlamaConfig(
        vocab_size=128_256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        max_position_embeddings=131_072,
        rms_norm_eps=1e-5,
        rope_parameters=LLAMA32_ROPE,
        tie_word_embeddings=True,
        bos_token_id=128_000,
        eos_token_id=128_009,
        pad_token_id=128_004,
    ),
    "qwen2.5-1.5b": lambda: Qwen2Config(
        vocab_size=151_936,
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        max_position_embeddings=32_768,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        tie_word_embeddings=True,
        bos_token_id=151_643,
        eos_token_id=151_645,
        pad_token_id=151_643,
    ),
    "llama3-8b": lambda: LlamaConfig(
        vocab_size=128_256,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        tie_word_embeddings=False,
        bos_token_id=128_000,
        eos_token_id=128_009,
        pad_token_id=128_001,
    ),
    # for the tests of the benchmark itself; the range gives weights that change answers
    "tiny": lambda: LlamaConfig(
        vocab_size=101,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        initializer_range=0.15,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    ),
}

# Tokens of each part of a prompt, lowest and highest: what Llama 3's tokenizer makes of a passage
# of 100 words, of the prompt set "default" with its chat template, and of the few-shot examples
FRAME = {"direct": 50, "cot": 60}
FEW_SHOT = {"direct": 0, "cot": 330}
PASSAGE = (145, 195)
REWRITE = (130, 190)
QUESTION = (12, 24)
ANSWER = {"direct": (2, 8), "cot": (18, 35)}
PAIRS = 3


class TokenNumbers:
    """In place of a tokenizer where there is no text: a token reads as its number."""

    def __init__(self, config: PreTrainedConfig):
        self.pad_token_id, self.eos_token_id = config.pad_token_id, config.eos_token_id

    def batch_decode(self, rows: torch.Tensor, skip_special_tokens: bool = True) -> list[str]:
        """Each row's tokens as text, without padding and end where that is asked for."""
        special = {self.pad_token_id, self.eos_token_id} if skip_special_tokens else set()
        return [" ".join(str(t) for t in row if t not in special) for row in rows.tolist()]


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

    A passage has the five prompts of section 5 of the contract: two questions with the passage and
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
