"""The warm-up: which records it may use, what a reasoning must be, its prompts and its files.

Its questions are from the latter part of each data set, so that none is ever evaluated. Direct data
have the first answer, data with chain of thought (CoT) a reasoning that a model wrote.
"""

import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from utils import layout
from utils.datasets import DATASETS
from utils.files import read_json, read_object, relative
from utils.forms import read_records
from utils.lora.examples import Example
from utils.metrics import extract_answer, normalize, score
from utils.prompting import PromptEncoder, PromptSet, fill, tidy_question
from utils.questions import load_questions, load_supporting_sentences
from utils.running import InputError
from utils.thoughts import without_thoughts

DIRECT, COT = "direct", "CoT"  # the kinds of data
SMOOTHED_STEPS = 50  # the smoothed loss is the mean over as many steps
QUESTIONS_FILE = "questions.json"  # in the adapter's folder: what it was trained on
MARKER = "the answer is"  # where `extract_answer` begins
REQUEST_PLACEHOLDERS = ("{question}", "{answer}", "{passages}", "{examples}")


def warmup_file(dataset: str | None, cot_model: str | None = None) -> Path:
    """`data_aug/warmup/[{dataset}/]direct.json`, with `cot_model` `…/{cot_model}/cot.json`."""
    names = [layout.dataset_folder(dataset)] if dataset else []
    names += [layout.folder_name(cot_model)] if cot_model else []
    file = "cot.json" if cot_model else "direct.json"
    return layout.ROOT_DIR.joinpath("data_aug", "warmup", *names, file)


def question_key(question: str) -> str:
    """What two questions share that differ in case, punctuation, articles or spaces alone."""
    return normalize(tidy_question(question))


@dataclass
class Source:
    """A data set that warm-up records are taken from."""

    dataset: str
    records: list[dict]  # in its own order, each with "evidence", a list of texts
    past: int  # the index after the last evaluated record
    evaluated: set[str]  # the `question_key` of every evaluated question
    kinds: tuple[str, ...] = (DIRECT, COT)


def open_source(dataset: str, data_path: Path, data_type: str | None, sample: int) -> Source:
    """The data set `dataset`, of which the first `sample` questions of each type are evaluated.

    A published data set gives CoT data if it has evidence, else direct data; your own JSON file
    gives both, from its `data_type`, and all questions of its other types count as evaluated.
    """
    questions, published = load_questions(dataset, data_path), DATASETS.get(dataset)
    if published:
        questions = {"total": questions["total"]}
    if data_type is None and len(questions) == 1:
        [data_type] = questions
    if data_type not in questions:
        raise InputError(
            f"--data_type {data_type}: {relative(data_path)} has {', '.join(questions)}; "
            "name the one to take warm-up records from"
        )
    records = questions.pop(data_type)
    if sample >= len(records):
        raise InputError(
            f"--sample {sample} leaves none of the {len(records)} questions of {dataset} for the "
            "warm-up; give a smaller number, and the same to the stages"
        )
    places = list(range(sample))
    for name in published.types if published else ():
        places += [i for i, record in enumerate(records) if record.get("type") == name][:sample]
    evaluated = sum(questions.values(), [records[place] for place in places])
    keys = {question_key(record["question"]) for record in evaluated}
    if published and published.evidence:
        kinds, evidence = (COT,), load_supporting_sentences(dataset, data_path)
    else:
        kinds = (DIRECT,) if published else (DIRECT, COT)
        evidence = [record.get("golden_passages", []) for record in records]
    records = [{**r, "evidence": texts} for r, texts in zip(records, evidence, strict=True)]
    return Source(dataset, records, max(places, default=-1) + 1, keys, kinds)


def collect(sources: list[Source], kind: str, skip: int, seed: int) -> dict[str, list[dict]]:
    """The records of each data set that data of this `kind` can be made of, shuffled.

    Direct data begin after the first `skip` records (and after all evaluated ones), CoT data
    `skip` records past the last evaluated one. No question that any source evaluates is taken. For
    CoT a record needs evidence, and an answer that scoring can read (no comma or full stop in it).
    """
    evaluated, collected = set().union(*(source.evaluated for source in sources)), {}
    for source in sources:
        if kind not in source.kinds:
            continue
        first, found = source.past + skip if kind == COT else max(skip, source.past), []
        for index, record in enumerate(source.records[first:], start=first):
            question, answer = record["question"], record["answer"]
            answer = answer if isinstance(answer, str) else answer[0]
            one = {"dataset": source.dataset, "index": index}
            one |= {"question": question, "answer": answer}
            if kind == COT:
                one["evidence"] = record["evidence"]
            readable = kind == DIRECT or _is_right(f"{MARKER} {answer}", answer)
            if readable and one.get("evidence", True) and question_key(question) not in evaluated:
                found.append(one)
        random.Random(f"{seed} {source.dataset}").shuffle(found)
        collected |= {source.dataset: found} if found else {}
        number = f"{len(found)} of {len(source.records)}"
        print(f"{kind} data, {source.dataset}: {number} records can be used")
    return collected


class ReasoningRequest(PromptSet):
    """`prompts`, but with passages it asks why the known `answer` to a question is right."""

    def __init__(self, prompts: PromptSet, answer: str):
        request = str(prompts.texts["cot"].get("reasoning_request"))
        if not all(name in request for name in REQUEST_PLACEHOLDERS):
            raise InputError(
                f"the prompt set {prompts.name} has no text 'cot.reasoning_request' with "
                f"{', '.join(REQUEST_PLACEHOLDERS)}; add it, or make no CoT data (no --model_name)"
            )
        cot = {**prompts.texts["cot"], "with_passages": fill(request, answer=answer)}
        super().__init__(prompts.name, {**prompts.texts, "cot": cot}, prompts.examples)


def usable_records(candidates: list[dict], texts: list[str]) -> list[dict]:
    """CoT records of the candidates whose text has a reasoning and then the right answer."""
    records = []
    for one, text in zip(candidates, map(without_thoughts, texts), strict=True):
        before, marker, _ = text.partition(MARKER)
        if marker and _is_right(text, one["answer"]) and normalize(before) not in ("", "so"):
            record = {key: one[key] for key in one if key != "evidence"}
            words = f"{before} {MARKER} {extract_answer(text, True)}".split()
            records.append({**record, "full_answer": " ".join(words)})
    return records


def _is_right(text: str, answer: str) -> bool:
    return score(extract_answer(text, True), answer)["em"] == 1


def read_warmup_data(path: Path, with_cot: bool) -> list[dict]:
    """The records at `path`: "question" and "answer", for CoT "dataset" and "full_answer" too."""
    if not path.is_file():
        more = " with --model_name" if with_cot else ""
        raise InputError(f"{relative(path)} does not exist; run src/get_warmup_data.py{more} first")
    records = read_records(path)
    for index, record in enumerate(records):
        for field in ("question", "dataset", "full_answer") if with_cot else ("question", "answer"):
            if not isinstance(record.get(field), str) or not record[field].strip():
                place = f"{relative(path)}: record {index} has no text {field!r}"
                raise InputError(f"{place}; add it, or make the file with src/get_warmup_data.py")
    return records


def refuse_trained_questions(folder: Path, questions: Iterable[str]) -> None:
    """Raise `InputError` if the adapter in `folder` is a warm-up's and saw one of `questions`."""
    path = folder / QUESTIONS_FILE
    trained = read_json(path, "the list of questions") if path.is_file() else []
    record = folder / "training_config.json"  # of a warm-up's adapter it names the file of records
    made_here = record.is_file() and "data_file" in read_object(record, "the record of an adapter,")
    if not isinstance(trained, list) or (made_here and not trained):
        raise InputError(
            f"{relative(path)} does not say which questions the warm-up was trained on; put it "
            "back, or train again: warmup_lora.py with --overwrite"
        )
    trained = set(map(str, trained))
    if leaked := [question for question in questions if question_key(question) in trained]:
        raise InputError(
            f"the warm-up adapter {relative(folder)} was trained on {len(leaked)} of the questions "
            f"to answer, such as {leaked[0]!r}; use get_warmup_data.py's --sample, or make new data"
        )


def encode_records(
    records: list[dict], encoders: dict[str, PromptEncoder], with_cot: bool, block_size: int
) -> list[Example]:
    """Each record as an example: the question without context, its answer, the end-of-text token.

    `encoders` are those of each data set for CoT, else a single one, "". Raises `InputError` if an
    example has more than `block_size` tokens.
    """
    examples = []
    for index, record in enumerate(records):
        encoder = encoders[record["dataset"] if with_cot else ""]
        answer = record["full_answer" if with_cot else "answer"]
        example = encoder.example(record["question"], [], answer)
        ids = [*example.ids, encoder.tokenizer.eos_token_id]
        if len(ids) > block_size:
            raise InputError(
                f"record {index} makes a prompt of {len(ids)} tokens, more than --block_size "
                f"{block_size}; raise it, or remove the record"
            )
        examples.append(replace(example, ids=ids))
    return examples


def smoothed(losses: list[float]) -> list[float]:
    """For each step the mean over the last `SMOOTHED_STEPS` losses, or as many as there are."""
    ends = range(1, len(losses) + 1)
    return [fmean(losses[max(0, end - SMOOTHED_STEPS) : end]) for end in ends]
