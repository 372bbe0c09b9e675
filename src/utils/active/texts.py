"""Token ids as text: what each token adds to it, its words, its sentences."""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise

from nltk.tokenize.punkt import PunktSentenceTokenizer
from transformers import PreTrainedTokenizerBase

SENTENCES = PunktSentenceTokenizer()  # without training, as the software of FLARE has it


@dataclass
class Sentence:
    """The tokens `start` to `end` (exclusive) of a look-ahead; a `final` one ends the answer."""

    start: int
    end: int
    final: bool


@dataclass
class Ahead:
    """What a model would write next: `tokens`, which add the `pieces` to the text; the probability
    of each and the entropy (in nats) of the distribution that it was taken from. `question` and
    `before` are the pieces of the question and of the text so far, `context` the tokens of both."""

    question: list[str]
    before: list[str]
    context: list[int]
    tokens: list[int]
    pieces: list[str]
    probabilities: list[float]
    entropies: list[float]
    sentences: list[Sentence]


def pieces_of(tokenizer: PreTrainedTokenizerBase, tokens: list[int], after: list[int]) -> list[str]:
    """What each of `tokens` adds to the text that `after` ends. Of a character made of several
    tokens all but the last add nothing; special tokens never do."""

    def text(count: int) -> str:
        ids = [*after[-1:], *tokens[:count]]
        how = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        return tokenizer.decode(ids, **how).rstrip("\ufffd")

    texts = [text(count) for count in range(len(tokens) + 1)]
    return [now[len(was) :] for was, now in pairwise(texts)]


def words_of(pieces: list[str]) -> Iterator[tuple[str, range]]:
    """The words of a text, which white space divides, and the tokens that each is made of."""
    ends = list(accumulate(map(len, pieces)))
    for word in re.finditer(r"\S+", "".join(pieces)):
        yield word[0], range(bisect_right(ends, word.start()), bisect_left(ends, word.end()) + 1)


def sentence_ends(pieces: list[str]) -> list[int]:
    """For each sentence of a text the number of tokens up to its end; a line break ends one too.
    A token belongs to the sentence that it begins in. White space at the end is the last one's."""
    text, ends = "".join(pieces), list(accumulate(map(len, pieces)))
    spans = [
        line.start() + end
        for line in re.finditer(r"\S.*", text)
        for _, end in SENTENCES.span_tokenize(line[0])
    ]
    counts = [bisect_left(ends, end) + 1 for end in spans[:-1]]
    return list(dict.fromkeys([*counts, len(pieces)])) if pieces else []
