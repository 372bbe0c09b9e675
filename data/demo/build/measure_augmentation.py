"""How good the demo model's own augmentation is: the world knows what is true.

    python data/demo/build/measure_augmentation.py

Every passage of the corpus is rewritten once and gets one question-answer list, with the settings
of `configs/demo.sh`. Prints, as JSON: lists that are valid at the first attempt; pairs that ask for
a fact of the passage; of these the right answers; facts of the passage that the rewrite states, and
statements of the rewrite that are not among the entity's facts.
"""

import argparse
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from make_world import build_world
from templates import FILLERS, LINKS, QUESTIONS, STATEMENTS
from world import LINK_ATTRIBUTE, Entity, Passage

sys.path.insert(0, str(Path(__file__).parents[3] / "src"))
from utils.arguments import new_parser, positive_integer
from utils.augmentation.records import parse_pairs
from utils.files import write_json
from utils.prompting import PromptEncoder, load_prompts
from utils.running import run_stage

NAME = "(?P<subject>.+?)"


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = new_parser(__doc__)
    parser.add_argument(
        "--model_name", default="data/demo/demo-model", help="model whose texts are measured"
    )
    parser.add_argument("--sample", type=int, default=-1, help="first N passages; -1 takes all")
    parser.add_argument("--temperature", type=float, default=0.3, help="sampling temperature")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sampling")
    parser.add_argument(
        "--batch_size", type=positive_integer, default=64, help="texts generated side by side"
    )
    parser.add_argument("--output", type=Path, help="JSON file for the result (not set: none)")
    return parser.parse_args()


@dataclass
class Counts:
    """What is counted over the passages."""

    passages: int = 0
    valid: int = 0  # lists with three pairs
    pairs: int = 0
    about: int = 0  # pairs that ask for a fact of their passage
    right: int = 0  # of these, with the right answer
    facts: int = 0  # of the passages
    kept: int = 0  # stated by the rewrite
    false: int = 0  # statements of a rewrite that are no facts of the entity

    def shares(self) -> dict[str, float]:
        """The shares that the numbers stand for."""
        return {
            "valid lists at the first attempt": self.valid / self.passages,
            "pairs about a fact of the passage": self.about / max(1, self.pairs),
            "right answers among these": self.right / max(1, self.about),
            "right answers among all pairs": self.right / max(1, self.pairs),
            "facts kept by the rewrite": self.kept / self.facts,
            "false statements for each fact": self.false / self.facts,
        }


def right_answers(entity: Entity, passage: Passage) -> dict[str, str]:
    """The questions about the passage that can be asked, each with its right answer."""
    answers = {
        template.format(s=entity.name): entity.facts[attribute]
        for attribute in passage.attributes
        for template in QUESTIONS[attribute]
    }
    if passage.has_link and entity.link:
        kind, name = entity.link
        for template in QUESTIONS[LINK_ATTRIBUTE[kind]]:
            answers[template.format(s=name)] = entity.name
    return answers


def stated_facts(entity: Entity, text: str) -> tuple[set[str], int]:
    """The attributes whose fact a sentence of `text` states, and the number of false statements.

    A sentence counts whatever it calls the subject by; fillers and links say nothing.
    """
    stated, false = set(), 0
    harmless = [*FILLERS[entity.kind], *(t for group in LINKS.values() for t in group)]
    for sentence in re.findall(r"[^.]+\.", text):
        sentence = sentence.strip()
        own = {a for a, value in entity.facts.items() if _says(sentence, a, re.escape(value))}
        stated |= own
        known = own or any(_matches(sentence, template, ".+") for template in harmless)
        false += not known
    return stated, false


def _says(sentence: str, attribute: str, value: str) -> bool:
    return any(_matches(sentence, template, value) for template in STATEMENTS[attribute])


def _matches(sentence: str, template: str, value: str) -> bool:
    pattern = re.escape(template).replace(r"\{s\}", NAME).replace(r"\{v\}", value)
    return re.fullmatch(pattern, sentence) is not None


def count(
    counts: Counts, entity: Entity, passage: Passage, rewrite: str, pairs: list[dict] | None
) -> None:
    """Add one passage with its rewrite and its list (None if it is not valid)."""
    counts.passages += 1
    counts.facts += len(passage.attributes)
    stated, false = stated_facts(entity, rewrite)
    counts.kept += len(stated & set(passage.attributes))
    counts.false += false
    if pairs is None:
        return
    counts.valid += 1
    answers = right_answers(entity, passage)
    for pair in pairs:
        counts.pairs += 1
        if (right := answers.get(pair["question"])) is not None:
            counts.about += 1
            counts.right += pair["answer"] == right


def main() -> None:
    """Write all texts once, compare them with the world, print."""
    options = parse_arguments()
    # torch takes seconds to import: not before the flags are known to be good
    from utils.generation import generate
    from utils.models import load_model, load_tokenizer
    from utils.provenance import provenance

    entities, _ = build_world()
    passages = [(entity, passage) for entity in entities for passage in entity.passages]
    passages = passages[: options.sample] if options.sample >= 0 else passages
    tokenizer = load_tokenizer(options.model_name)
    model = load_model(options.model_name, "auto", tokenizer)
    encoder = PromptEncoder(tokenizer, load_prompts("demo", "demo", False), False, 800)
    counts = Counts()
    for start in range(0, len(passages), options.batch_size):
        batch = passages[start : start + options.batch_size]
        seeds = [options.seed + start + row for row in range(len(batch))]
        texts = [
            generate(
                model,
                tokenizer,
                [encoder.request(kind, passage.text) for _, passage in batch],
                200,
                seeds,
                options.temperature,
            )
            for kind in ("rewrite", "question_answer_pairs")
        ]
        for (entity, passage), rewrite, pairs in zip(batch, *texts, strict=True):
            count(counts, entity, passage, rewrite.strip(), parse_pairs(pairs))
    shares = {name: round(value, 4) for name, value in counts.shares().items()}
    result = {**vars(counts), **shares}
    if options.output:
        write_json(options.output, {**result, **provenance()})
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    run_stage(main)
