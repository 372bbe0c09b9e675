"""Real questions for `configs/real.sh`: a dev and a test list of a published data set.

    python benchmarks/real_questions.py --dataset hotpotqa --data_path data/hotpotqa \
        --index_name hotpotqa --dev 40 --test 100

Writes `data/real/{dataset}.json`, `{"dev": [...], "test": [...]}`: the first questions of the data
set, then the next ones. Each has as its "type" whether a right answer is in the first three
passages that the index returns: where it is not, no method can find it there.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
from utils import layout
from utils.arguments import new_parser, positive_integer
from utils.files import relative, write_json
from utils.metrics import CLOSED_ANSWERS, answer_presence
from utils.questions import FIELDS, load_questions
from utils.retrieval import ENGINES, add_index_flags
from utils.running import InputError, run_stage

TOPK = 3


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = new_parser(__doc__)
    parser.add_argument("--dataset", required=True, help="a published data set")
    parser.add_argument("--data_path", required=True, help="folder of its raw files")
    parser.add_argument("--dev", type=positive_integer, default=40, help="questions to choose on")
    parser.add_argument("--test", type=positive_integer, default=100, help="questions to report")
    add_index_flags(parser, parser.add_argument_group("retrieval"))
    return parser.parse_args(arguments)


def kind_of(record: dict, hits: list[dict]) -> str:
    """Whether the retrieved passages hold a right answer; of yes and no nobody can say."""
    if record["answer"] in [*CLOSED_ANSWERS]:
        return "yes or no"
    found = any(answer_presence(hit["text"], record["answer"]) for hit in hits)
    return "answer retrieved" if found else "answer not retrieved"


def main() -> None:
    """Read, search, write."""
    options = parse_arguments()
    wanted = options.dev + options.test
    records = load_questions(options.dataset, options.data_path)["total"][:wanted]
    if len(records) < wanted:
        raise InputError(
            f"{options.data_path} has {len(records)} questions, fewer than --dev and --test "
            f"together ({wanted}); ask for fewer"
        )
    index = ENGINES[options.engine].open_index(options)
    found = index.search([record["question"] for record in records], TOPK)
    for record, hits in zip(records, found, strict=True):
        record["type"] = kind_of(record, hits)
    kept = [{name: one[name] for name in FIELDS if name in one} for one in records]
    path = layout.ROOT_DIR / "data/real" / f"{options.dataset}.json"
    write_json(path, {"dev": kept[: options.dev], "test": kept[options.dev :]})
    print(f"{options.dev} questions to choose on and {options.test} to report in {relative(path)}")


if __name__ == "__main__":
    run_stage(main)
