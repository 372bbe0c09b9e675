"""A prompt set and a tokenizer -> the token ids that the model is trained on and answers.

A prompt set is one JSON file. Its texts hold placeholders in braces, which are filled literally:
braces in a passage or in the JSON example of a prompt mean nothing.
"""

import datetime
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from utils.files import hash_json, read_json, relative
from utils.layout import folder_name
from utils.lora.examples import Example
from utils.running import InputError
from utils.thoughts import closing_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROMPTS_FOLDER = Path(__file__).parents[1] / "prompts"
# Prompts depend on nothing but their text: what templates read beside the message
TEMPLATE_OPTIONS = {"date_string": "26 Jul 2024", "enable_thinking": False, "thinking": False}
TEMPLATE_DATE = datetime.datetime(2024, 7, 26)
PROBE = "Is the template whole?"
Fitted = tuple[list[int], list[str]]  # token ids, and the passages in them

# text -> the placeholders it must hold, and those it may hold
PLACEHOLDERS = {
    "rewrite": ({"passage"}, set()),
    "question_answer_pairs": ({"passage"}, set()),
    "passage_line": ({"passage"}, {"number"}),
    "augmented_passage": ({"passage", "rewrite", "pairs"}, set()),
    "augmented_pair": ({"question", "answer"}, {"full_answer"}),
    "direct.with_passages": ({"passages", "question"}, set()),
    "direct.without_passages": ({"question"}, set()),
    "direct.opening": (set(), set()),
    "cot.example": ({"question", "answer"}, set()),
    "cot.with_passages": ({"passages", "question", "examples"}, set()),
    "cot.without_passages": ({"question", "examples"}, set()),
    "cot.opening": (set(), set()),
}
JUDGE = "judge"  # a text that a set may have; no answer depends on it, nor does the fingerprint
MAY_HAVE = {JUDGE: ({"question", "answers", "given"}, set())}


def fill(template: str, **values: str) -> str:
    """`template` with each `{name}` replaced by `values[name]`; other braces stay as they are."""
    names = "|".join(values)
    return re.sub(r"\{(" + names + r")\}", lambda match: values[match[1]], template)


def room_for_prompt(context_length: int, max_new_tokens: int) -> int:
    """The tokens that a prompt may have beside its answer; `InputError` if none are left."""
    if max_new_tokens >= context_length:
        raise InputError(
            f"--max_new_tokens {max_new_tokens} leaves no room for a prompt: the model takes "
            f"{context_length} tokens, prompt and answer together; give a smaller number"
        )
    return context_length - max_new_tokens


def same_tokens(one: Sequence[int], other: Sequence[int]) -> int:
    """With how many equal tokens both begin."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def tidy_question(question: str) -> str:
    """The question stripped and ending in exactly one "?"."""
    return question.strip().rstrip("? \t\n") + "?"


@dataclass
class PromptSet:
    """A prompt set's file: its stem and its content; for CoT a data set's few-shot examples."""

    name: str
    texts: dict
    examples: list[dict] = field(default_factory=list)  # {"question", "answer"}

    @property
    def fingerprint(self) -> str:
        """A hash of every text and example, to tell whether work was made with other prompts."""
        texts = {name: text for name, text in self.texts.items() if name != JUDGE}
        return hash_json([texts, self.examples])

    @property
    def pair_order(self) -> list[str]:
        """The fields of a question-answer pair in the order in which the request for a list shows
        them in quotation marks; [] if it does not show all three."""
        shown = re.findall(r'"(question|answer|full_answer)"', self.texts["question_answer_pairs"])
        order = list(dict.fromkeys(shown))
        return order if len(order) == 3 else []

    def request(self, kind: str, passage: str) -> str:
        """The user message that asks for a text about `passage` (section 3.2.1 of the paper).
        `kind` is "rewrite" or "question_answer_pairs", of which three are asked for."""
        return fill(self.texts[kind], passage=passage)

    def user_message(self, question: str, passages: list[str], with_cot: bool) -> str:
        """The user message that asks `question`, with `passages`, if any, as context."""
        texts = self.texts["cot" if with_cot else "direct"]
        lines = "".join(
            fill(self.texts["passage_line"], number=str(number), passage=passage.strip())
            for number, passage in enumerate(passages, start=1)
        )
        examples = "".join(fill(texts["example"], **one) for one in self.examples if with_cot)
        template = texts["with_passages" if passages else "without_passages"]
        return fill(template, passages=lines, question=tidy_question(question), examples=examples)

    def augmented_passage(self, passage: str, rewrite: str, pairs: list[dict]) -> str:
        """A passage with its augmentation as one text for the context (the paper's DA-RAG)."""
        lines = "".join(fill(self.texts["augmented_pair"], **pair) for pair in pairs)
        return fill(self.texts["augmented_passage"], passage=passage, rewrite=rewrite, pairs=lines)

    def judgement(self, question: str, answers: list[str], given: str) -> str:
        """The user message that asks whether `given` answers `question` rightly, yes or no."""
        lines = "".join(f"- {answer}\n" for answer in answers)
        return fill(self.texts[JUDGE], question=tidy_question(question), answers=lines, given=given)

    def opening(self, with_cot: bool) -> str:
        """What the assistant's answer begins with, in training and at inference."""
        return self.texts["cot" if with_cot else "direct"]["opening"]


def load_prompts(name_or_path: str, dataset: str, with_cot: bool) -> PromptSet:
    """The prompt set `src/prompts/{name}.json` or your own file, checked.

    With CoT the few-shot examples of `dataset` come along. Raises `InputError` if a text is
    missing or lacks a placeholder, or if CoT has no examples for the data set.
    """
    own = Path(name_or_path)
    path = own if own.suffix == ".json" else PROMPTS_FOLDER / f"{folder_name(name_or_path)}.json"
    if not path.is_file():
        known = sorted(p.stem for p in PROMPTS_FOLDER.glob("*.json"))
        raise InputError(
            f"--prompts {name_or_path}: there is no file {relative(path)}; "
            f"give a path that ends in .json or one of {', '.join(known)}"
        )
    texts = read_json(path, "the prompt set")
    _check_texts(texts, path)
    return PromptSet(path.stem, texts, _load_examples(dataset) if with_cot else [])


def load_judge(name_or_path: str) -> PromptSet:
    """The prompt set, as `load_prompts` has it; `InputError` if it has no text for a judge."""
    prompts = load_prompts(name_or_path, "", with_cot=False)
    if JUDGE not in prompts.texts:
        problem = f"the prompt set {prompts.name!r} has no text {JUDGE!r}, which asks a judge"
        raise InputError(f"{problem}; add one like that of default, or give --prompts default")
    return prompts


def _check_texts(texts: object, path: Path) -> None:
    there = texts if isinstance(texts, dict) else {}
    own = {place: form for place, form in MAY_HAVE.items() if place in there}
    for place, (required, allowed) in (PLACEHOLDERS | own).items():
        text = texts
        for key in place.split("."):
            text = text.get(key) if isinstance(text, dict) else None
        held = set(re.findall(r"\{(\w+)\}", text)) if isinstance(text, str) else None
        if held is None or not required <= held <= required | allowed:
            names = ", ".join(f"{{{name}}}" for name in sorted(required | allowed))
            raise InputError(
                f"the prompt set {relative(path)} needs a text {place!r} with "
                f"{names or 'no placeholder'}; add it, or correct its placeholders"
            )
    openings = texts.get("question_openings", [])
    if not (isinstance(openings, list) and all(isinstance(one, str) and one for one in openings)):
        raise InputError(
            f"question_openings in the prompt set {relative(path)} must be a list of words with "
            "which a question may begin; correct or remove it"
        )


def _load_examples(dataset: str) -> list[dict]:
    path = PROMPTS_FOLDER / "fewshot" / f"{folder_name(dataset)}.json"
    form = '[{"question": "...", "answer": "... So the answer is ..."}, ...]'
    if not path.is_file():
        raise InputError(
            f"--with_cot needs few-shot examples for {dataset!r}: write {relative(path)} as "
            f"{form}, or drop --with_cot"
        )
    examples = read_json(path, "the few-shot examples")
    try:
        chosen = [{key: one[key] for key in ("question", "answer")} for one in examples]
        if chosen and all(isinstance(text, str) for one in chosen for text in one.values()):
            return chosen
    except (KeyError, TypeError):
        pass
    raise InputError(f"the few-shot examples {relative(path)} must be a list {form}; correct it")


def without_clock(template: str) -> str:
    """A chat template whose `strftime_now(format)` is a fixed date: adapters of today must be those
    of tomorrow. (transformers puts its own function over one that is given.)"""
    if "strftime_now" not in template:
        return template
    codes = "aAbBcdHIjmMpSUwWxXyYZ"
    fixed = "".join(f"|replace('%{c}', '{TEMPLATE_DATE.strftime('%' + c)}')" for c in codes)
    # "+": the line break after it is the template's own
    return "{% macro strftime_now(format) %}{{ format" + fixed + " }}{% endmacro +%}" + template


class PromptEncoder:
    """Turns requests, questions and training examples into token ids for one tokenizer.

    `max_length` is the most tokens a prompt may have; a longer one has its passages shortened,
    never its question or answer, and `shortened` counts how often that happened.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        prompts: PromptSet,
        with_cot: bool,
        max_length: int,
    ):
        if not tokenizer.chat_template:
            raise InputError(
                f"the tokenizer of {tokenizer.name_or_path!r} has no chat template; "
                "use an instruction-tuned model, or add a chat_template.jinja to its folder"
            )
        self.tokenizer, self.prompts, self.with_cot = tokenizer, prompts, with_cot
        self.max_length, self.shortened = max_length, 0
        self.closing: str | None = ""  # of a thought that the template opens
        try:
            self.template = without_clock(tokenizer.get_chat_template())
            _, shown, after = self._chat(PROBE).partition(PROBE)
            if not shown:
                raise ValueError("it leaves out the user's message")
            self.closing = closing_of(after)
            if self.closing is None:
                raise ValueError(f"it opens a thought that nothing here can close: {after!r}")
        except Exception as error:  # a template is a program of the model's
            raise InputError(
                f"the chat template of {tokenizer.name_or_path!r} fails ({error}); mend its "
                "chat_template.jinja, or fetch the model again"
            ) from None

    def shortened_words(self, limit: str) -> str:
        """A sentence if passages were shortened to fit into `limit`, else ""."""
        if not self.shortened:
            return ""
        return f"{self.shortened} prompts did not fit into {limit}: passages shortened"

    def request(self, kind: str, passage: str) -> list[int]:
        """`PromptSet.request`, ready to be answered."""
        asked = self.prompts.request
        return self._fitting(lambda shown: self._chat(asked(kind, shown[0])), [passage])[0]

    def question(self, question: str, passages: list[str]) -> list[int]:
        """A question with its context, up to and including the answer's opening."""
        return self._asked(question, passages, self.prompts.opening(self.with_cot))[0]

    def example(self, question: str, passages: list[str], answer: str) -> Example:
        """A training prompt: the question with its context and its answer, without an end token."""
        opening = self.prompts.opening(self.with_cot)
        gap = "" if not opening or opening[-1].isspace() else " "
        ending = gap + answer.strip().rstrip(".").rstrip() + "."
        ids, shown = self._asked(question, passages, opening + ending)
        before = self._tokens(self._text(question, shown, opening))
        return Example(ids, max(1, same_tokens(ids, before)))

    def passage_examples(
        self, passage: str, rewrite: str, pairs: list[dict], parts: str, teachers: bool = False
    ) -> list[Example]:
        """All training prompts of one passage (paper, section 3.2.2), in their fixed order.

        Each of the first half of the pairs (rounded up) is asked with the passage as context and
        then with the rewrite, each of the others without context. `parts` (`--augment_parts`, the
        paper's figure 3) may leave out the rewrite; without "qa" the texts alone are prompts. With
        `teachers` an example without context has the one with the passage as its teacher.
        """
        texts = [passage, rewrite] if "rewrite" in parts else [passage]
        if "qa" not in parts:
            return [Example(self._plain(text)) for text in texts]
        examples = []
        with_context = (len(pairs) + 1) // 2
        for index, pair in enumerate(pairs):
            answer = pair["full_answer" if self.with_cot else "answer"]
            if index < with_context:
                examples += [self.example(pair["question"], [text], answer) for text in texts]
                continue
            teacher = self.example(pair["question"], [passage], answer) if teachers else None
            alone = self.example(pair["question"], [], answer)
            examples.append(replace(alone, teacher=teacher))
        return examples

    def _plain(self, text: str) -> list[int]:
        """A text by itself, with the tokens that the model expects around one, cut to fit."""
        ids = self.tokenizer(text)["input_ids"]
        self.shortened += len(ids) > self.max_length
        return ids[: self.max_length]

    def _chat(self, message: str) -> str:
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": message}],
            chat_template=self.template,
            tokenize=False,
            add_generation_prompt=True,
            **TEMPLATE_OPTIONS,
        )
        return text + self.closing

    def _tokens(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _text(self, question: str, passages: list[str], ending: str) -> str:
        return self._chat(self.prompts.user_message(question, passages, self.with_cot)) + ending

    def _asked(self, question: str, passages: list[str], ending: str) -> Fitted:
        return self._fitting(lambda shown: self._text(question, shown, ending), passages)

    def _fitting(self, text: Callable[[list[str]], str], passages: list[str]) -> Fitted:
        """The tokens of `text(passages)` and the passages in it. The longest passages are cut at
        their end until the text fits."""
        ids = self._tokens(text(passages))
        if len(ids) <= self.max_length:
            return ids, passages
        self.shortened += 1
        passages = list(passages)
        for longest in sorted(range(len(passages)), key=lambda i: -len(passages[i])):
            passage, fits, too_long = passages[longest], 0, len(passages[longest])
            while fits + 1 < too_long:  # the most characters with which the prompt fits
                middle = (fits + too_long) // 2
                passages[longest] = passage[:middle]
                if len(self._tokens(text(passages))) <= self.max_length:
                    fits = middle
                else:
                    too_long = middle
            passages[longest] = passage[:fits]
            ids = self._tokens(text(passages))
            if len(ids) <= self.max_length:
                return ids, passages
        raise InputError(
            f"the prompt {text(passages)[-200:]!r} has {len(ids)} tokens without any passage, but "
            f"only {self.max_length} are allowed (--max_length, or what the model's context has "
            "left); shorten the question, or use fewer few-shot examples or another model"
        )
