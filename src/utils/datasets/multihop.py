"""Raw data sets whose records name the paragraphs that support their answers: 2WikiMultihopQA and
HotpotQA, MuSiQue, StrategyQA, IIRC."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from utils.files import parse_json, read_json, relative
from utils.forms import read_lines, read_records, texts
from utils.running import InputError

LOST = "lack supporting paragraphs in their context; if these are many, it is another file than "
LOST += "that of {source}"
SPANS = "have several answer spans, each of which counts as right alone"


def load_hotpot(questions: Path, aliases: Path | None = None) -> list[dict]:
    """2WikiMultihopQA (2011.01060) or HotpotQA (1809.09600), which share one record shape."""
    entries = read_lines(aliases, "the alias file") if aliases else []
    names = {str(entry["Q_id"]): entry for entry in entries}
    records = []
    for index, raw in enumerate(read_records(questions)):
        support = list(_support(raw, f"record {index} of {relative(questions)}"))
        entry, answer = names.get(str(raw.get("answer_id")), {"aliases": []}), raw.get("answer")
        alternatives = [*entry["aliases"], *texts(entry.get("demonyms") or [])]
        record = {
            "question": raw.get("question"),
            "answer": texts(entry["aliases"]) or answer,
            "all_answers": texts([answer, *alternatives]) if alternatives else None,
            "qid": raw.get("_id", raw.get("id")),
            "type": raw.get("type"),
            "golden_passages": [whole for whole, _ in support if whole],
            "evidence": [sentences for _, sentences in support if sentences],
            "remark": None if support and all(whole for whole, _ in support) else LOST,
        }
        records.append({field: value for field, value in record.items() if value is not None})
    return records


def _support(raw: dict, place: str) -> Iterator[tuple[str, str]]:
    """Each supporting paragraph of a record: its text, and its supporting sentences alone.

    They come in the order of their first mention, `title: sentence …` the latter. A few facts of
    the raw data have a title or a place that the context does not: these give "".
    """
    paragraphs = dict(_titled(raw.get("context"), place))
    wanted: dict[str, list] = {}  # title -> places of its supporting sentences
    for title, number in _titled(raw.get("supporting_facts"), place):
        wanted.setdefault(title, []).append(number)
    for title, places in wanted.items():
        sentences = paragraphs.get(title, [])
        chosen = [s.strip() for i, s in enumerate(sentences) if i in places and s.strip()]
        yield _paragraph(sentences), f"{title}: {' '.join(chosen)}" if chosen else ""


def _paragraph(sentences: list) -> str:
    """The sentences as one text: a golden passage is the same wherever it comes from."""
    return " ".join(sentence.strip() for sentence in texts(sentences))


def hotpot_contexts(questions: Path, _aliases: Path | None = None) -> Iterator[tuple[str, str]]:
    """Title and text of each paragraph of each record; one without any text is left out."""
    for index, raw in enumerate(read_records(questions)):
        place = f"record {index} of {relative(questions)}"
        if not (paragraphs := _titled(raw.get("context"), place)):
            raise InputError(f"{place} has no context")
        yield from _passages(paragraphs)


def _passages(paragraphs: Iterable[tuple[Any, list]]) -> Iterator[tuple[str, str]]:
    """Titles with texts, of titles with sentences; without those that have no text."""
    for title, sentences in paragraphs:
        if not isinstance(title, str):
            raise TypeError(title)
        if text := _paragraph(sentences):
            yield title, text


def _titled(value: Any, place: str) -> list:
    """Pairs of a title and another value; the hub has objects, or JSON as a text, instead."""
    value = parse_json(value, place) if isinstance(value, str) else value or []
    if isinstance(value, dict):
        [other] = value.keys() - {"title"}  # "sentences", "content", "sent_id"
        return list(zip(value["title"], value[other], strict=True))
    return [[one.pop("title"), *one.values()] if isinstance(one, dict) else one for one in value]


def _supported(record: dict, support: Iterable[tuple[Any, list]], wanted: int) -> dict:
    """`record` with its supporting paragraphs, of which the data set names `wanted`: each a title
    with its sentences."""
    found = list(dict.fromkeys(_passages(support)))
    fields = {"golden_passages": [text for _, text in found]}
    fields["evidence"] = [f"{title}: {text}" for title, text in found]
    fields |= {field: value for field, value in record.items() if value is not None}
    return fields | ({"remark": LOST} if len(found) < wanted else {})


def load_musique(questions: Path) -> list[dict]:
    """MuSiQue-Ans (2108.00573): the answer or an alias is right; a type for each number of hops.
    The supporting paragraphs come in the order of the steps; unanswerable questions are left out.
    """
    records = []
    for raw in read_records(questions):
        shown = {one["idx"]: one for one in raw["paragraphs"]}
        places = dict.fromkeys(
            step["paragraph_support_idx"] for step in raw["question_decomposition"]
        )
        right = texts([raw["answer"], *raw["answer_aliases"]]) if raw["answerable"] else None
        record = {"question": raw["question"], "answer": right, "qid": raw["id"]}
        record["type"] = str(raw["id"])[:4]  # "3hop" of "3hop1__…"
        support = [_musique_paragraph(shown[place]) for place in places if place in shown]
        records.append(_supported(record, support, len(places)))
    return records


def _musique_paragraph(raw: dict) -> tuple[Any, list]:
    return raw["title"], [raw["paragraph_text"]]


def musique_contexts(questions: Path) -> Iterator[tuple[str, str]]:
    """Title and text of each paragraph of each record, distractors included."""
    for raw in read_records(questions):
        yield from _passages(map(_musique_paragraph, raw["paragraphs"]))


def load_strategyqa(questions: Path, paragraphs: Path) -> list[dict]:
    """StrategyQA (2101.02235): "yes" or "no". The supporting paragraphs are those of one annotator
    after the other, in the order of the steps; the evidence is the data set's own facts."""
    known, records = read_json(paragraphs, "the paragraphs"), []
    for raw in read_records(questions):
        record = {"question": raw["question"], "answer": {True: "yes", False: "no"}[raw["answer"]]}
        record |= {"qid": raw["qid"], "evidence": texts(raw["facts"])}
        # a step is a list of lists of ids, and of "operation" or "no_evidence"
        steps = [step for annotator in raw["evidence"] for step in annotator]
        lists = [one for step in steps for one in step if isinstance(one, list)]
        names = dict.fromkeys(name for one in lists for name in one)
        support = [_strategyqa_paragraph(known[name]) for name in names if known.get(name)]
        records.append(_supported(record, support, len(names)))
    return records


def _strategyqa_paragraph(raw: dict) -> tuple[Any, list]:
    return raw["title"], [raw["content"]]


def strategyqa_contexts(_questions: Path, paragraphs: Path) -> Iterator[tuple[str, str]]:
    """Title and text of each paragraph that is evidence for a question."""
    yield from _passages(map(_strategyqa_paragraph, read_json(paragraphs, "them").values()))


def load_iirc(questions: Path) -> list[dict]:
    """IIRC (2011.07127). Right is each span of a span, the value of a value or binary (yes, no);
    what cannot be answered (none) is left out. Supporting are the paragraph that the question was
    asked about, then of each linked article what the annotator marked in it."""
    records = []
    for passage in read_records(questions):
        for raw in passage["questions"]:
            kind, right = raw["answer"]["type"], []
            if kind == "span":
                right = texts([span["text"].strip() for span in raw["answer"]["answer_spans"]])
            elif kind in ("value", "binary"):
                right = texts([raw["answer"]["answer_value"]])
            record = {"question": raw["question"], "answer": right, "qid": raw.get("qid")}
            marked: dict[str, list] = {}
            for piece in raw["context"]:
                if piece["passage"] != "main":
                    marked.setdefault(piece["passage"], []).append(piece["text"])
            support = [(passage["title"], [passage["text"]]), *marked.items()]
            record |= {"remark": SPANS} if len(right) > 1 else {}
            records.append(_supported(record, support, len(support)))
    return records
