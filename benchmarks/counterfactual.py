"""A data type whose passages say something false: does an answer follow them, or what was known?

    python benchmarks/counterfactual.py --dataset demo --data_type test

Writes `data_aug/{dataset}/{data_type}_counterfactual.json` from the augmented file of the data
type. In all texts of a question (passages, rewrites, pairs) the right answer is replaced by that of
another question, of the data set or of a pair: of the same form (with digits, with a capital,
neither), absent from the passages, and of the question that is worded most alike. That is its right
answer then; the old one is kept as "original". A question whose answer no passage holds, or whose
texts keep a trace of it, is left out.
`encode.py` and `inference.py` take the data type as any other.
"""

import argparse
import random
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
from utils.arguments import new_parser, seed_number
from utils.augmentation.records import in_passage, read_augmented_file
from utils.controls import open_answers
from utils.files import hash_json, relative, write_json
from utils.layout import COUNTERFACTUAL, augmented_file
from utils.running import InputError, run_stage


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = new_parser(__doc__)
    parser.add_argument("--dataset", required=True, help="data set of the augmented file")
    parser.add_argument("--data_type", required=True, help="its data type")
    seed = "seed that decides between answers of questions that are worded equally alike"
    parser.add_argument("--seed", type=seed_number, default=0, help=seed)
    return parser.parse_args(arguments)


def counterfactual(records: list[dict], seed: int) -> list[dict]:
    """The records of an augmented file, in the form of `read_augmented_file`, with false answers;
    those that cannot have one are left out."""
    records = [record for record in records if record["question"] is not None]  # no corpus's
    made, pool = [], _pool(records)
    for did, record in enumerate(records):
        answers, passages = open_answers(record), [e["passage"] for e in record["augment"]]
        held = [one for one in answers if any(in_passage(one, text) for text in passages)]
        new = _other_answer(record, pool, hash_json([seed, did])) if held else None
        if new is None:
            continue
        entries = [_replaced(entry, answers, new) for entry in record["augment"]]
        if any(in_passage(one, text) for one in answers for text in _texts(entries)):
            continue  # it is written in another way too
        changed = {"answer": new, "original": record["answer"], "augment": entries}
        if "golden_passages" in record:
            changed["golden_passages"] = _replaced(record["golden_passages"], answers, new)
        made.append(record | changed | {"passages": [entry["passage"] for entry in entries]})
    return made


def _pool(records: list[dict]) -> list[tuple[set[str], str]]:
    """The words and the answer of each different question of the records and of their pairs."""
    entries = [entry for record in records for entry in record["augment"]]
    lists = [entry[name] for entry in entries for name in entry if name.endswith("_qa")]
    asked = [*records, *(pair for pairs in lists for pair in pairs)]
    answered = {one["question"]: open_answers(one)[:1] for one in reversed(asked)}
    return [(_frame(asked), own[0]) for asked, own in sorted(answered.items()) if own]


def _other_answer(record: dict, pool: list[tuple[set[str], str]], seed: str) -> str | None:
    """The answer in `pool` of the same form, but of another question: the one that shares most of
    its words with the record's, names left out; `seed` decides between equals."""
    own, words, draw = open_answers(record), _frame(record["question"]), random.Random(seed)
    read = [record["question"], *own, *(entry["passage"] for entry in record["augment"])]
    ranked = sorted(
        (-len(words & frame) / len(words | frame), draw.random(), answer)
        for frame, answer in pool
        if _form(answer) == _form(own[0])
    )
    fitting = (answer for *_, answer in ranked)
    return next((new for new in fitting if not any(in_passage(new, text) for text in read)), None)


def _frame(question: str) -> set[str]:
    """The words of a question that are no names."""
    words = enumerate(question.split())
    kept = [word for number, word in words if number == 0 or not word[:1].isupper()]
    return {word.lower().strip("?.,") for word in kept}


def _form(answer: str) -> str:
    return "digits" if re.search(r"\d", answer) else "name" if answer[:1].isupper() else "words"


def _replaced(value: object, answers: list[str], new: str) -> object:
    """A JSON value in whose texts `new` stands for each of `answers`, where they are whole words;
    names of hits ("id") stay."""
    if isinstance(value, dict):
        return {k: v if k == "id" else _replaced(v, answers, new) for k, v in value.items()}
    if isinstance(value, list):
        return [_replaced(one, answers, new) for one in value]
    if not isinstance(value, str):
        return value
    longest_first = "|".join(re.escape(one) for one in sorted(answers, key=len, reverse=True))
    capital = new[:1].upper() + new[1:]  # at the beginning of a sentence

    def text(found: re.Match) -> str:
        begins = found[0][:1].isupper() and found[0] not in answers
        return capital if begins else new

    return re.sub(rf"(?<!\w)(?:{longest_first})(?!\w)", text, value, flags=re.IGNORECASE)


def _texts(value: object) -> list[str]:
    """All texts in a JSON value, names of hits left out."""
    if isinstance(value, dict):
        value = [v for k, v in value.items() if k != "id"]
    if isinstance(value, list):
        return [text for one in value for text in _texts(one)]
    return [value] if isinstance(value, str) else []


def main() -> None:
    """Read, replace, write."""
    options = parse_arguments()
    source = augmented_file(options.dataset, options.data_type)
    records = read_augmented_file(source)
    made = counterfactual(records, options.seed)
    if not made:
        problem = f"no question of {relative(source)} has an answer that can be replaced"
        raise InputError(f"{problem}: none is in its passages, or no other is of its form")
    target = augmented_file(options.dataset, options.data_type + COUNTERFACTUAL)
    write_json(target, made)
    print(f"{len(made)} of {len(records)} questions have a false answer in {relative(target)}")


if __name__ == "__main__":
    run_stage(main)
