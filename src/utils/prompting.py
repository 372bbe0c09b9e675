"""A prompt set and a tokenizer -> the token ids that the model is trained on and answers.

A prompt set is one JSON file under `src/prompts/` (or anywhere: `--prompts PATH`). Its texts hold
placeholders in braces, `{question}`, `{passages}` and so on, which are filled literally: braces in
a passage or in the JSON example of a prompt mean nothing. `all_prompt.md` shows every prompt as it
is sent.
"""

import re
from pathlib import Path

from utils.paths import InputError, hash_json, read_json

PROMPTS_FOLDER = Path(__file__).parents[1] / "prompts"

# text -> the placeholders it must hold, and those it may hold
PLACEHOLDERS = {
    "rewrite": ({"passage"}, set()),
    "question_answer_pairs": ({"passage"}, set()),
    "passage_line": ({"passage"}, {"number"}),
    "direct.with_passages": ({"passages", "question"}, set()),
    "direct.without_passages": ({"question"}, set()),
    "direct.opening": (set(), set()),
    "cot.example": ({"question", "answer"}, set()),
    "cot.with_passages": ({"passages", "question", "examples"}, set()),
    "cot.without_passages": ({"question", "examples"}, set()),
    "cot.opening": (set(), set()),
}


def fill(template: str, **values: str) -> str:
    """`template` with each `{name}` replaced by `values[name]`; other braces stay as they are."""
    names = "|".join(values)
    return re.sub(r"\{(" + names + r")\}", lambda match: values[match[1]], template)


def tidy_question(question: str) -> str:
    """The question stripped and ending in exactly one "?"."""
    return question.strip().rstrip("?").rstrip() + "?"


class PromptSet:
    """The texts of one prompt set, and the few-shot examples of a data set for CoT.

    `texts` is the JSON file's content, `name` its stem, `examples` a list of
    `{"question", "answer"}` (empty in direct mode).
    """

    def __init__(self, name: str, texts: dict, examples: list[dict] | None = None):
        self.name = name
        self.texts = texts
        self.examples = examples or []

    @property
    def fingerprint(self) -> str:
        """A hash of every text and example, to tell whether work was made with other prompts."""
        return hash_json([self.texts, self.examples])

    def rewrite_request(self, passage: str) -> str:
        """The user message that asks for a rewrite of `passage` (section 3.2.1 of the paper)."""
        return fill(self.texts["rewrite"], passage=passage)

    def pairs_request(self, passage: str) -> str:
        """The user message that asks for three question-answer pairs about `passage`."""
        return fill(self.texts["question_answer_pairs"], passage=passage)

    def user_message(self, question: str, passages: list[str], with_cot: bool) -> str:
        """The user message that asks `question`, with `passages` as context where there are any."""
        texts = self.texts["cot" if with_cot else "direct"]
        lines = "".join(
            fill(self.texts["passage_line"], number=str(number), passage=passage.strip())
            for number, passage in enumerate(passages, start=1)
        )
        examples = "".join(fill(texts["example"], **example) for example in self.examples if with_cot)
        template = texts["with_passages" if passages else "without_passages"]
        return fill(
            template, passages=lines, question=tidy_question(question), examples=examples
        )

    def opening(self, with_cot: bool) -> str:
        """What the assistant's answer begins with, in training and at inference."""
        return self.texts["cot" if with_cot else "direct"]["opening"]
