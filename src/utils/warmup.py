"""The warm-up: which records may be used, what a reasoning must be, its prompts and its layout.

The warm-up trains a base adapter on questions from the latter part of each data set, so that no
question in it is ever evaluated. Direct data are questions with their first answer; data with
chain of thought (CoT) carry a reasoning that a model wrote from the supporting sentences.
"""

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from utils.files import read_json, relative
from utils.layout import augmented_file, folder_name
from utils.metrics import extract_answer, normalize, score
from utils.prompting import PromptEncoder, PromptSet, fill, tidy_question
from utils.questions import (
    TYPES,
    load_questions,
    load_supporting_sentences,
    raise_problems,
    read_records,
    take_sample,
)
from utils.running import InputError

DIRECT_DATASETS = ("popqa", "complexwebquestions")
COT_DATASETS = ("2wikimultihopqa", "hotpotqa")
SMOOTHED_STEPS = 50  # the smoothed loss is the mean over as many steps
QUESTIONS_FILE = "questions.json"  # in the adapter's folder: what it was trained on
MARKER = "the answer is"  # where `extract_answer` begins
REQUEST_PLACEHOLDERS = ("question", "answer", "passages", "examples")

# ------------------------------------------------------------------------------------------------
# Layout


def warmup_file(dataset: str | None, cot_model: str | None = None) -> Path:
    """The warm-up's data: `data_aug/warmup/direct.json`, or `{model}/cot.json` with `cot_model`.

    CoT data belong to the model that wrote them. Those of one `dataset` alone stand in
    `data_aug/warmup/{dataset}/`, those of the paper's data sets together (None) above it.
    """
    folder = augmented_file("warmup", "direct").parent
    if dataset:
        folder /= folder_name(dataset)
    return folder / folder_name(cot_model) / "cot.json" if cot_model else folder / "direct.json"


# ------------------------------------------------------------------------------------------------
# Which records


@dataclass
class Source:
    """A data set that warm-up records are taken from.

    `records` are in the data set's own order, with "evidence" (a list of texts) where CoT data
    can be made of them. `past` is the index after the last evaluated one among them, `evaluated`
    holds every evaluated question of the data set as `question_key` gives it.
    """

    dataset: str
    records: list[dict]
    past: int
    evaluated: set[str]


def question_key(question: str) -> str:
    """What two questions share that differ in case, punctuation, articles or spaces alone."""
    return normalize(tidy_question(question))


def open_source(dataset: str, data_path: Path, data_type: str | None, sample: int) -> Source:
    """The data set `dataset`, of which the first `sample` questions of each type are evaluated.

    Of one's own JSON file with several data types, `data_type` names the one to take records
    from; all questions of the others count as evaluated. Raises `InputError` where the data
    cannot be read or `sample` leaves nothing to take.
    """
    questions = load_questions(dataset, data_path)
    if dataset in TYPES:
        if data_type:
            raise InputError(f"--data_type {data_type} is for a JSON file of one's own; drop it")
        records = questions["total"]
        if dataset in COT_DATASETS:
            evidence = load_supporting_sentences(dataset, data_path)
            records = [
                {**record, "evidence": texts}
                for record, texts in zip(records, evidence, strict=True)
            ]
        evaluated = [r for chosen in take_sample(questions, sample).values() for r in chosen]
    else:
        if data_type is None and len(questions) == 1:
            data_type = next(iter(questions))
        if data_type not in questions:
            raise InputError(
                f"--data_type {data_type}: {relative(data_path)} has {', '.join(questions)}; "
                "name the one to take warm-up records from"
            )
        records = [{**r, "evidence": r.get("golden_passages", [])} for r in questions[data_type]]
        others = [r for name, chosen in questions.items() if name != data_type for r in chosen]
        evaluated = [*others, *(records if sample == -1 else records[:sample])]
    if sample == -1 or sample >= len(records):
        raise InputError(
            f"--sample {sample}: all {len(records)} questions of {dataset} are evaluated, none is "
            "left for the warm-up; give a smaller number, and the same to the stages"
        )
    past = past_evaluated(records, TYPES.get(dataset, ()), sample)
    return Source(dataset, records, past, {question_key(r["question"]) for r in evaluated})


def past_evaluated(records: list[dict], types: Iterable[str], sample: int) -> int:
    """The index after the last record among the first `sample` of `records` and of each type."""
    places = list(range(len(records)))[:sample]
    for name in types:
        places += [i for i, record in enumerate(records) if record.get("type") == name][:sample]
    return max(places, default=-1) + 1


def warmup_candidates(
    source: Source, skip: int, evaluated: set[str], with_cot: bool, seed: int
) -> tuple[list[dict], int]:
    """The records that may be used, shuffled, and how many others were dropped as evaluated.

    Direct data begin after the first `skip` records (and after all evaluated ones), CoT data
    `skip` records past the last evaluated one. A record whose question is among `evaluated` is
    dropped wherever it stands. For CoT a record also needs evidence, and an answer that scoring
    can read from a text (no comma or full stop in it).
    """
    first = source.past + skip if with_cot else max(skip, source.past)
    candidates, dropped = [], 0
    for index, record in enumerate(source.records[first:], start=first):
        if question_key(record["question"]) in evaluated:
            dropped += 1
            continue
        answer = record["answer"] if isinstance(record["answer"], str) else record["answer"][0]
        candidate = {
            "dataset": source.dataset,
            "index": index,
            "question": record["question"],
            "answer": answer,
        }
        if with_cot:
            if not record["evidence"] or not _is_right(f"{MARKER} {answer}", answer):
                continue
            candidate["evidence"] = record["evidence"]
        candidates.append(candidate)
    random.Random(f"{seed} {source.dataset}").shuffle(candidates)
    return candidates, dropped


# ------------------------------------------------------------------------------------------------
# The reasoning


class ReasoningRequest:
    """Takes a prompt set's place in `PromptEncoder.question`: asks why a known answer is right.

    The model then writes what follows the opening of a CoT answer. Raises `InputError` where the
    prompt set has no such request.
    """

    def __init__(self, prompts: PromptSet, answer: str):
        self.prompts, self.answer = prompts, answer
        self.request = prompts.texts["cot"].get("reasoning_request")
        lacking = [n for n in REQUEST_PLACEHOLDERS if f"{{{n}}}" not in (self.request or "")]
        if lacking:
            raise InputError(
                f"the prompt set {prompts.name} has no text 'cot.reasoning_request' with "
                f"{{{'}, {'.join(lacking)}}}, which asks for the warm-up's reasoning; add it, or "
                "leave out --model_name to make the direct data alone"
            )

    def user_message(self, question: str, passages: list[str], with_cot: bool) -> str:
        """The user message for `question`, with `passages` as the facts to reason from."""
        texts = self.prompts.texts
        lines = [
            fill(texts["passage_line"], number=str(number), passage=passage.strip())
            for number, passage in enumerate(passages, start=1)
        ]
        examples = [fill(texts["cot"]["example"], **e) for e in self.prompts.examples]
        return fill(
            self.request,
            question=tidy_question(question),
            answer=self.answer,
            passages="".join(lines),
            examples="".join(examples),
        )

    def opening(self, with_cot: bool) -> str:
        """What the model's answer begins with, as in training."""
        return self.prompts.opening(True)


def usable_reasoning(text: str, answer: str) -> tuple[str | None, str | None]:
    """The reasoning in a generated `text` up to its answer, or None and why it cannot be used.

    It must have a reasoning, then "the answer is" and an answer that matches exactly.
    """
    before, marker, _ = text.partition(MARKER)
    if not marker:
        return None, f'without "{MARKER}"'
    if not _is_right(text, answer):
        return None, "with another answer"
    if normalize(before) in ("", "so"):
        return None, "without a reasoning"
    return " ".join(f"{before} {MARKER} {extract_answer(text, True)}".split()), None


def _is_right(text: str, answer: str) -> bool:
    return score(extract_answer(text, True), answer)["em"] == 1


# ------------------------------------------------------------------------------------------------
# Reading


def read_warmup_data(path: Path, with_cot: bool) -> list[dict]:
    """The records at `path`: "question" and "answer", for CoT "dataset" and "full_answer" too.

    Raises `InputError` where the file is missing or a record lacks one of them.
    """
    if not path.is_file():
        raise InputError(
            f"{relative(path)} does not exist; run src/get_warmup_data.py first"
            + (" (with --model_name, for --with_cot)" if with_cot else "")
        )
    records = read_records(path)
    fields = ("question", "dataset", "full_answer") if with_cot else ("question", "answer")
    problems = [
        f"record {index} has no text {field!r}"
        for index, record in enumerate(records)
        for field in fields
        if not isinstance(record.get(field), str) or not record[field].strip()
    ]
    raise_problems(path, problems, "make it with src/get_warmup_data.py, or add what is missing")
    return records


def refuse_trained_questions(folder: Path, questions: Iterable[str]) -> None:
    """Raise `InputError` where one of `questions` is among those that the adapter was trained on.

    `folder` is a warm-up adapter; one made by something else holds no list and passes.
    """
    path = folder / QUESTIONS_FILE
    trained = set(read_json(path, "the list of questions")) if path.is_file() else set()
    if leaked := [question for question in questions if question_key(question) in trained]:
        raise InputError(
            f"the warm-up adapter {relative(folder)} was trained on {len(leaked)} of the questions "
            f"to answer, such as {leaked[0]!r}; use the --sample that get_warmup_data.py had, or "
            "make warm-up data for this one"
        )


# ------------------------------------------------------------------------------------------------
# Training


def encode_records(
    records: list[dict], prompts: dict, tokenizer, with_cot: bool, block_size: int
) -> list[list[int]]:
    """Each record as token ids: the question without context, its answer, the end-of-text token.

    `prompts` are the prompt sets by data set, all under "" without CoT. Raises `InputError` where
    a prompt has more than `block_size` tokens.
    """
    encoders = {
        name: PromptEncoder(tokenizer, prompt_set, with_cot, 1 << 30)
        for name, prompt_set in prompts.items()
    }
    encoded = []
    for index, record in enumerate(records):
        encoder = encoders[record["dataset"] if with_cot else ""]
        answer = record["full_answer" if with_cot else "answer"]
        ids = [*encoder.example(record["question"], [], answer), tokenizer.eos_token_id]
        if len(ids) > block_size:
            raise InputError(
                f"record {index} makes a prompt of {len(ids)} tokens, more than --block_size "
                f"{block_size}; raise it, or remove the record"
            )
        encoded.append(ids)
    return encoded


def steps_of(count: int, epochs: int, batch_size: int, seed: int) -> list[list[int]]:
    """The indices of each step's records; every epoch has all of them in an order of its own."""
    steps = []
    for epoch in range(epochs):
        order = list(range(count))
        random.Random(f"{seed} {epoch}").shuffle(order)
        steps += [order[start : start + batch_size] for start in range(0, count, batch_size)]
    return steps


def smoothed(losses: list[float]) -> list[float]:
    """For each step the mean over the last `SMOOTHED_STEPS` losses, or as many as there are."""
    windows = (losses[max(0, i - SMOOTHED_STEPS) : i] for i in range(1, len(losses) + 1))
    return [math.fsum(window) / len(window) for window in windows]
