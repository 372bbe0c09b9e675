"""From a generated text to its answer, and from an answer to exact match and F1."""

import re
import string
from collections import Counter
from statistics import fmean

from utils.running import InputError

COMPARED = ("em", "f1", "prec", "recall")  # of the extracted answer
METRICS = (*COMPARED, "answer_presence")
# what the rounds of a question cost that retrieves while it is answered
COUNTS = ("retrievals", "model_calls", "prompt_tokens", "generated_tokens")
CLOSED_ANSWERS = {"yes", "no", "noanswer"}  # no credit for words shared with a longer answer
REMOVE_PUNCTUATION = str.maketrans("", "", string.punctuation)
SENTENCE_MARKS = ".,;:!?\"'()"  # around a word of an answer that is kept as it is


def extract_answer(text: str, with_cot: bool, cut: str = "mark") -> str:
    """The short answer in a generated `text`, possibly empty.

    With CoT it follows the first "the answer is", if that is there. It ends at the first full stop,
    comma or newline; with `cut` "none" at the newline, so that "U.S. Army" and "1,000" stay whole.
    """
    if with_cot:
        before, marker, after = text.partition("the answer is")
        text = after if marker else before
    marks = r"\n" if cut == "none" else r"[.\n,]"
    return re.split(marks, text.strip(), maxsplit=1)[0].strip()


def is_answered(text: str, with_cot: bool, cut: str) -> bool:
    """Whether `extract_answer` of `text` is what it will be, whatever comes after."""
    answers = (extract_answer(one, with_cot, cut) for one in (text, f"{text} the answer is x"))
    return len(set(answers)) == 1


def normalize(text: str) -> str:
    """`text` in lower case, without ASCII punctuation and articles, with single spaces."""
    bare = text.lower().translate(REMOVE_PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def _both(text: str, answer: str) -> tuple[str, str]:
    """`text` and a right `answer` as they are compared: normalised, or in lower case alone if that
    would leave nothing of the answer ("A", "The", "...")."""
    right = normalize(answer)
    return (normalize(text), right) if right else (_kept(text), _kept(answer))


def _kept(text: str) -> str:
    """`text` in lower case with single spaces; a word loses the marks around it, if it has more."""
    return " ".join(word.strip(SENTENCE_MARKS) or word for word in text.lower().split())


def score(prediction: str, answer: str | list[str]) -> dict[str, float]:
    """Exact match, F1, precision and recall of `prediction`, each between 0 and 1.

    Of a list of right answers exact match looks at all, the other three come from the one with the
    highest F1 (the first, if several tie). An empty prediction is never right.
    """
    answers = [answer] if isinstance(answer, str) else answer
    if not answers:
        return dict.fromkeys(COMPARED, 0.0)
    compared = [_compare(*_both(prediction, one)) for one in answers]
    best = max(compared, key=lambda scores: scores["f1"])
    return {**best, "em": max(scores["em"] for scores in compared)}


def answer_presence(text: str, answer: str | list[str]) -> float:
    """1.0 if a right answer is in the whole `text`, as whole words of both normalised, else 0.0."""
    answers = [answer] if isinstance(answer, str) else answer
    compared = (_both(text, one) for one in answers)
    return float(any(right and f" {right} " in f" {words} " for words, right in compared))


def _compare(prediction: str, answer: str) -> dict[str, float]:
    """The scores of one normalised prediction against one normalised answer."""
    if prediction == answer != "":
        return dict.fromkeys(COMPARED, 1.0)
    nothing = dict.fromkeys(COMPARED, 0.0)
    if prediction in CLOSED_ANSWERS or answer in CLOSED_ANSWERS:
        return nothing
    predicted, right = prediction.split(), answer.split()
    shared = (Counter(predicted) & Counter(right)).total()
    if shared == 0:
        return nothing
    return {
        "em": 0.0,
        "f1": 2 * shared / (len(predicted) + len(right)),
        "prec": shared / len(predicted),
        "recall": shared / len(right),
    }


def mean_scores(predictions: list[dict]) -> dict[str, float]:
    """The mean of each metric over `predictions` (rows of predict.json)."""
    if not predictions:
        raise InputError("there is no prediction to average; answer at least one question")
    try:
        return {metric: fmean(row[metric] for row in predictions) for metric in METRICS}
    except (TypeError, KeyError):
        raise InputError(
            f"a prediction has no number for each of {', '.join(METRICS)}; answer again with "
            "inference.py --overwrite"
        ) from None
