"""Question lists in the wanted form from any model, and answers that are words of the passage.

The local model is held to a grammar of its passage by llguidance (https://github.com/guidance-ai/
llguidance): a token after which the text could not become a list of three pairs is drawn again. A
server is given the form as a JSON schema. A prompt set whose request shows the fields of a pair in
quotation marks decides their order; one that shows none (`demo`, whose model was trained on its
form) is not constrained.
"""

import json
import re
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from llguidance import LLMatcher
from llguidance.hf import from_tokenizer
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask
from transformers import PreTrainedTokenizerBase

from utils.augmentation.records import MOST_CHARACTERS, PAIRS
from utils.generation import RowProcessor, SeededSampling

MOST_WORDS = {"question": 24, "answer": 8, "full_answer": 30}
WORD = r'[^\s\x00-\x1f\x7f"\\{}\[\]<>|]+'
MARK = r'[^\s\x00-\x1f\x7f"\\{}\[\]<>|?\p{Lu}\p{Nd}]'  # a letter or a mark that needs no passage
PROBE = '[{"question": "Who, where?"}, 12]'
PIECES = re.compile(r"\w(?:\S*\w)?|\s+|[^\w\s]+")  # words without marks around them, spaces, marks


def list_grammar(order: Sequence[str], passage: str | None, openings: Sequence[str]) -> str:
    """The grammar of a list of three pairs for llguidance, in its Lark-like language. An answer is
    words of `passage`, or any (None); a question begins with one of the words `openings`, if there
    are any. A gap is a space, or a line break with its indentation."""
    members = ' "," gap? '.join(rf'"\"{field}\":" gap? "\"" {field} "\""' for field in order)
    pairs = ' "," gap? '.join(["pair"] * PAIRS)
    inside = f" & {_part_of(passage)}" if passage else ""
    return rf"""
start: gap? "[" gap? {pairs} gap? "]"
pair: "{{" gap? {members} gap? "}}"
gap: / |\n {{0,8}}/
answer: ANSWER
full_answer: FULL_ANSWER
ANSWER: {_words("answer", 1)} & /[^();]+/{inside}
FULL_ANSWER: {_words("full_answer", 1)}
{_question(passage, openings)}"""


def _words(field: str, least: int) -> str:
    """Words with single spaces between them: no escapes, no runs of spaces, nothing empty. Lengths
    are bounded, so that a list ends within the 512 tokens of --max_new_tokens."""
    return (
        f"/.{{1,{MOST_CHARACTERS[field]}}}/ "
        f"& /{WORD}( {WORD}){{{least - 1},{MOST_WORDS[field] - 1}}}/"
    )


def _question(passage: str | None, openings: Sequence[str]) -> str:
    """The rule of a question: any, or one that begins with one of `openings`. In it words with a
    capital or a digit are in `passage`, if one is given: a small model invents names, or takes them
    from its prompt."""
    if not openings:
        return rf"""
question: QUESTION
QUESTION: {_words("question", 3)} & /[^?\uff1f\u061f]+[?\uff1f\u061f]/
"""
    pieces = set(PIECES.findall(passage or ""))
    named = {piece for piece in pieces if piece != piece.lower() or re.search(r"\d", piece)}
    word = rf"/{MARK}{{1,24}}/" if passage else r'/[^\s\x00-\x1f\x7f"\\?]{1,24}/'
    if named:
        names = " | ".join(map(json.dumps, sorted(named)))
        word += rf" | /{MARK}{{0,8}}/ ({names}) /{MARK}{{0,8}}/"
    return f"""
question: OPENING NEXT_WORD{{2,{MOST_WORDS["question"] - 1}}} "?"
OPENING: {" | ".join(map(json.dumps, openings))}
NEXT_WORD: " " ({word})
"""


def _part_of(passage: str) -> str:
    """Words of `passage`, without the marks around the first and the last one. A word that is too
    long for an answer, as in languages without spaces, may be cut."""
    most = MOST_CHARACTERS["answer"]
    words = PIECES.findall(" ".join(passage.split()))
    pieces = [piece for word in words for piece in ([word] if len(word) <= most else word)]
    return rf'%regex {{"substring_chunks": {json.dumps(pieces)}}} & /\w(.*\w)?/'


class Held(RowProcessor):
    """Chooses the next tokens with `sampling` (None: the best), each row held to its matcher.

    A choice that the matcher allows is kept with its random numbers; one that it forbids is made
    again among the allowed tokens, with the row's own next random numbers. So a text that has the
    form already is the one that is written without a matcher, and a token is distributed as if all
    others had been forbidden beforehand. A row whose matcher is at its end or fails is left alone.
    """

    def __init__(
        self, matchers: Sequence[LLMatcher | None], tokens: int, sampling: SeededSampling | None
    ):
        """`tokens` are those that the matchers know; a model may have more, which mean nothing."""
        self.tokens, self.sampling = tokens, sampling
        self.matchers: list[LLMatcher | None] = []
        self.open: set[int] = set()
        for matcher in matchers:
            self.add(matcher)
        self.rows = range(len(matchers))

    def add(self, matcher: LLMatcher | None) -> None:
        """One more row, held to `matcher` (None: to nothing)."""
        if matcher and not matcher.is_error():
            self.open.add(len(self.matchers))
        self.matchers.append(matcher)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """`scores [rows, vocabulary]` -> scores whose highest of a row is its token."""
        chosen = self.sampling(input_ids, scores) if self.sampling else scores
        refused = self._refused(chosen, range(len(chosen)))
        if refused:
            rows = [self.rows[place] for place in refused]
            again = scores[refused].masked_fill(~self._allowed(rows, scores), -torch.inf)
            again = self.sampling.noisy(again, rows) if self.sampling else again
            chosen = chosen.clone()
            chosen[refused] = again.to(chosen.dtype)
            self.open -= {self.rows[place] for place in self._refused(chosen, refused)}
        return chosen

    def _refused(self, scores: torch.Tensor, places: Sequence[int]) -> list[int]:
        """Those `places` of open rows whose choice is forbidden; the others take it."""
        tokens = scores[list(places)].argmax(-1).tolist()
        return [
            place
            for place, token in zip(places, tokens, strict=True)
            if (row := self.rows[place]) in self.open and not self._takes(self.matchers[row], token)
        ]

    def _takes(self, matcher: LLMatcher, token: int) -> bool:
        # a token that it does not know would break the matcher
        return token < self.tokens and matcher.try_consume_tokens([token]) == 1

    def _allowed(self, rows: list[int], scores: torch.Tensor) -> torch.Tensor:
        """Which tokens may follow: `[rows, vocabulary]`, true or false."""
        mask = allocate_token_bitmask(len(rows), self.tokens)
        for place, row in enumerate(rows):
            fill_next_token_bitmask(self.matchers[row], mask, place)
        count = scores.shape[-1]
        bits = np.unpackbits(mask.view(np.uint8), axis=1, count=self.tokens, bitorder="little")
        bits = np.pad(bits, ((0, 0), (0, max(0, count - self.tokens))))[:, :count]
        return torch.from_numpy(bits.astype(bool)).to(scores.device)


class ListForm:
    """The form of question lists for one model: `held(passages)` is for one call of `generate`.
    `order` is that of a pair's fields; a question begins with one of the words `openings`, if there
    are any; `answers_inside`: an answer is words of the passage. Raises `ValueError` if the
    tokenizer is not a fast one, or its tokens do not spell the text that they are decoded to."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        stops: int | list[int],
        order: Sequence[str],
        openings: Sequence[str],
        answers_inside: bool,
    ):
        self.tokenizer = from_tokenizer(tokenizer, eos_token=stops)
        spelt = self.tokenizer.decode_str(tokenizer(PROBE, add_special_tokens=False)["input_ids"])
        if spelt.strip() != PROBE:
            raise ValueError(f"its tokens spell {spelt!r} in place of {PROBE!r}")
        self.order, self.openings, self.answers_inside = order, openings, answers_inside

    def matcher(self, passage: str | None) -> LLMatcher | None:
        """What holds a list about `passage` to the form; None if there is none to hold."""
        if passage is None:
            return None
        shown = passage if self.answers_inside else None
        grammar = list_grammar(self.order, shown, self.openings)
        return LLMatcher(self.tokenizer, LLMatcher.grammar_from_lark(grammar))

    def held(self, passages: list[str | None]) -> Callable[[SeededSampling | None], Held]:
        """What `generate` takes to write lists about `passages`, one each; None is another text."""
        return partial(Held, [self.matcher(one) for one in passages], self.tokenizer.vocab_size)
