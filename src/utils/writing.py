"""Self-Augmentation: the model rewrites passages and writes question lists about them.

Each passage is written about once, however many questions found it (arXiv:2501.15915, section
3.2.1). Samples depend on the seed and the passage alone, never on what ran before or beside it.
"""

import argparse
from dataclasses import dataclass, field

from utils.augmented import parse_pairs
from utils.models import generate
from utils.paths import hash_json
from utils.prompting import PromptEncoder


@dataclass
class Writer:
    """Writes rewrites and question lists, each passage once, and counts what it takes."""

    model: object
    tokenizer: object
    encoder: PromptEncoder
    options: argparse.Namespace  # of augment.py: its flags of the group "writing", --batch_size
    done: dict[str, dict] = field(default_factory=dict)  # passage -> {"rewrite", "qa", "attempts"}

    def answer(self, prompts: list[list[int]], salts: list[str]) -> list[str]:
        """The model's answer to each prompt (token ids), in batches alike in length."""
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        answers = [""] * len(prompts)
        size = self.options.batch_size
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            texts = generate(
                self.model,
                self.tokenizer,
                [prompts[i] for i in batch],
                self.options.max_new_tokens,
                # a sample depends on the seed and on what it is for, never on its neighbours
                seeds=[int(hash_json([self.options.seed, salts[i]])[:15], 16) for i in batch],
                temperature=self.options.temperature,
                top_k=self.options.top_k_sampling,
            )
            for i, text in zip(batch, texts, strict=True):
                answers[i] = text.strip()
        return answers

    def write(self, passages: list[str]) -> None:
        """Fill `done` for `passages`; one without a valid question list gets `"qa": None`."""
        open_passages = [p for p in dict.fromkeys(passages) if p not in self.done]
        pairs: dict[str, list[dict] | None] = dict.fromkeys(open_passages)
        attempts = dict.fromkeys(open_passages, 0)
        for attempt in range(self.options.max_attempts):
            missing = [p for p in open_passages if pairs[p] is None]
            if not missing or (attempt > 0 and self.options.temperature == 0):
                break  # greedy decoding would only repeat itself
            texts = self.answer(
                [self.encoder.pairs_request(p) for p in missing],
                [f"qa {attempt} {p}" for p in missing],
            )
            for passage, text in zip(missing, texts, strict=True):
                pairs[passage] = parse_pairs(text)
                attempts[passage] += 1
        kept = [p for p in open_passages if pairs[p] is not None]
        rewrites = dict(
            zip(
                kept,
                self.answer(
                    [self.encoder.rewrite_request(p) for p in kept], [f"rewrite {p}" for p in kept]
                ),
                strict=True,
            )
        )
        for passage in open_passages:
            # a passage without a rewrite is dropped too
            self.done[passage] = {
                "rewrite": rewrites.get(passage),
                "qa": pairs[passage] if rewrites.get(passage) else None,
                "attempts": attempts[passage],
            }


def augment_block(questions: list[dict], topk: int, writer: Writer) -> list[dict]:
    """The records of `questions` (with their "candidates"), each with `topk` passages at most.

    A passage whose question list fails is dropped and the next candidate takes its place.
    """
    while True:
        chosen, wanted = [], []
        for question in questions:
            accepted = []
            for passage in question["candidates"]:
                result = writer.done.get(passage)
                if result is None or result["qa"] is not None:
                    accepted.append(passage)
                if len(accepted) == topk:
                    break
            chosen.append(accepted)
            wanted += [p for p in accepted if p not in writer.done]
        if not wanted:
            break
        writer.write(wanted)
    records = []
    for question, passages in zip(questions, chosen, strict=True):
        record = {key: value for key, value in question.items() if key != "candidates"}
        record["passages"] = passages
        record["augment"] = [
            {
                "pid": pid,
                "passage": p,
                "rewrite": writer.done[p]["rewrite"],
                "qa": writer.done[p]["qa"],
            }
            for pid, p in enumerate(passages)
        ]
        records.append(record)
    return records
