r"""Question lists by a model: how many are valid, how many pairs are good, and how fast.

    python benchmarks/lists.py --model_name models/SmolLM2-135M-Instruct.Q4_1.gguf --prompts small \
        --corpus index/hotpotqa.tsv index/2wikimultihopqa.tsv --passages 100 --constrained on

The passages are the first ones of each corpus that have at least 20 words. Lists are written with
the settings of `augment.py`, answers are always checked, no passage is rewritten. Adds a row to the
JSON file `--out`: counts, seconds, and every 10th passage with its pairs.
"""

import argparse
import sys
import time
from functools import partial
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
from utils.arguments import new_parser, positive_integer
from utils.augmentation.records import parse_pairs
from utils.augmentation.sampling import Sampling, add_sampling_flags
from utils.augmentation.writing import COUNTS, LIST, LocalModel, Next, Request, write_chunk
from utils.files import read_json, write_json
from utils.prompting import load_prompts
from utils.recipe import Recipe, add_flags, parse_recipe
from utils.retrieval.corpus import read_corpus
from utils.running import run_stage

LEAST_WORDS = 20


def parse_arguments(arguments: list[str] | None = None) -> tuple[argparse.Namespace, Recipe]:
    """The command line."""
    parser = new_parser(__doc__)
    add_flags(parser, "model")
    parser.add_argument("--corpus", type=Path, nargs="+", required=True, help="corpora as TSV")
    parser.add_argument("--passages", type=positive_integer, default=100, help="of each corpus")
    parser.add_argument("--batch_size", type=positive_integer, default=32, help="lists at once")
    parser.add_argument("--out", type=Path, default="lists.json", help="the table")
    add_sampling_flags(parser)
    return parse_recipe(parser, arguments)


class Lists(LocalModel):
    """Writes lists alone, and counts those that have the form, and their tokens."""

    asked = valid = tokens = 0

    def write(self, requests: list[Request], then: Next) -> None:
        """See `Author`; a rewrite takes no time and says nothing."""

        def counted(request: Request, text: str) -> Request | None:
            self.asked += 1
            self.valid += parse_pairs(text) is not None
            self.tokens += len(self.tokenizer(text)["input_ids"])
            following = then(request, text)
            if following and following.kind != LIST:
                then(following, "-")
                following = None
            return following

        super().write(requests, counted)


def measured(author: Lists, passages: list[str]) -> dict:
    """What came out about these passages, and how long it took."""
    began, results = time.monotonic(), {}
    chunks = author.cut({passage: passage for passage in passages})
    for done in author.each(partial(write_chunk, author=author), chunks):
        results |= done["results"]
        print(f"{len(results)} of {len(passages)}", flush=True)
    counts = {name: sum(result[name] for result in results.values()) for name in COUNTS}
    return {
        "passages": len(passages),
        "lists": author.asked,
        "valid_lists": author.valid,
        **counts,
        "passages_with_three_pairs": sum(bool(result["qa"]) for result in results.values()),
        "tokens": author.tokens,
        "seconds": round(time.monotonic() - began, 1),
        "examples": [{"passage": p, "qa": results[p]["qa"]} for p in passages[::10]],
    }


def main() -> None:
    """Load, write, count."""
    options, recipe = parse_arguments()
    options.check_answers = "on"
    rows = (
        (text for _, text, _ in read_corpus(path, "reading") if len(text.split()) >= LEAST_WORDS)
        for path in options.corpus
    )
    passages = [text for corpus in rows for text in islice(corpus, options.passages)]
    prompts = load_prompts(recipe.prompts, "", with_cot=False)
    sampling = Sampling.of(options, prompts)
    author = Lists(recipe, prompts, sampling, options.batch_size, print)
    row = {"prompts": recipe.prompts, **vars(sampling), **measured(author, passages)}
    table = read_json(options.out, "the table") if options.out.exists() else []
    write_json(options.out, [*table, row])
    print({name: value for name, value in row.items() if name != "examples"})


if __name__ == "__main__":
    run_stage(main)
