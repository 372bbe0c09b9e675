"""DRAGIN (arXiv:2403.10081): retrieve for words that are uncertain, attended to and meaningful.

RIND (section 3.1) says when. The score of a word is

    entropy of its tokens' distributions * attention that it gets * (0 for a function word, else 1)

The attention is the largest that a token of the look-ahead, itself or a later one, pays to it in
the last layer, the mean over the heads. Built is the variant of the authors' software, because the
thresholds that they give belong to it: this attention is divided by its mean over the sentence's
words, words have scores rather than tokens, and the whole sentence is written again. (The paper's
formula has the raw attention, and the text is cut at the token, section 3.3.) Their thresholds go
from 0.75 to 1.5 with model and data set; the defaults, 1.0 and 25 words, are those of
Llama-2-7B-chat on 2WikiMultihopQA.

QFS (section 3.2) says what for. Of the words of the question, the text so far and the sentence up
to that word, function words aside, the n that the word attends to most in the last layer, in the
order of the text. Here the paper decides: the software takes those with the least attention first,
and words after that one too. It finds meaningful words with a tagger of parts of speech; here they
are those not in `FUNCTION_WORDS`.

For its attention the model reads question and text alone, as in their software: neither the
examples nor the passages of a prompt.
"""

import re
from statistics import fmean

import torch
from transformers import PreTrainedModel

from utils.active.attention import last_attention
from utils.active.texts import Ahead, Sentence, words_of
from utils.lora.memory import in_halves
from utils.recipe import Recipe

FUNCTION_WORDS = frozenset(
    "a about above after again against all also although am among an and another any are around as "
    "at be because been before being below between both but by can cannot could did do does doing "
    "down during each either else ever every few for from further had has have having he her here "
    "hers herself him himself his how however i if in into is it its itself just least less many "
    "may me might mine more most much must my myself neither no nor not now of off often on once "
    "only onto or other others otherwise our ours ourselves out over own per quite rather same "
    "shall she should since so some still such than that the their theirs them themselves then "
    "there therefore these they this those though through thus to too toward towards under unless "
    "until up upon us very was we were what when where whether which while who whom whose why will "
    "with within without would yet you your yours yourself yourselves".split()
)


def dragin(
    aheads: list[Ahead], recipe: Recipe, model: PreTrainedModel
) -> list[tuple[int, str] | None]:
    """The first sentence with a word whose score is above the threshold, and that word's query."""

    def attentions(some: list[Ahead]) -> list[torch.Tensor]:
        rows = [ahead.context + ahead.tokens for ahead in some]
        return last_attention(model, rows, [len(ahead.context) for ahead in some])

    seen = in_halves(attentions, aheads, "questions", "use a smaller --look_ahead")
    return [_need(ahead, own, recipe) for ahead, own in zip(aheads, seen, strict=True)]


def _need(ahead: Ahead, attention: torch.Tensor, recipe: Recipe) -> tuple[int, str] | None:
    """See `dragin`; `attention` is `[heads, tokens of the look-ahead, tokens of all]`."""
    most = attention[..., len(ahead.context) :].amax(1).mean(0).tolist()
    for number, sentence in enumerate(ahead.sentences):
        for word, score in _scores(ahead, sentence, most):
            if score > recipe.dragin_threshold:
                paid = attention[:, word.start : word.stop].mean((0, 1)).tolist()
                if query := _query(ahead, word.start, paid, recipe.dragin_words):
                    return number, query
    return None


def _scores(ahead: Ahead, sentence: Sentence, most: list[float]) -> list[tuple[range, float]]:
    """The tokens and the score of each word of the `sentence` that means something."""
    words = [one for one in words_of(ahead.pieces) if sentence.start <= one[1][0] < sentence.end]
    paid = [sum(most[token] for token in tokens) for _, tokens in words]
    return [
        (tokens, fmean(ahead.entropies[t] for t in tokens) * own * len(words) / (sum(paid) or 1.0))
        for (word, tokens), own in zip(words, paid, strict=True)
        if _means_something(word)
    ]


def _query(ahead: Ahead, end: int, paid: list[float], count: int) -> str:
    """The `count` words before token `end` that most attention is `paid` to."""
    text = [*ahead.before, *ahead.pieces[:end]]
    words = list(words_of(ahead.question))
    words += [
        (word, range(tokens.start + len(ahead.question), tokens.stop + len(ahead.question)))
        for word, tokens in words_of(text)
    ]
    meaning = [(word, sum(paid[t] for t in ts)) for word, ts in words if _means_something(word)]
    best = sorted(range(len(meaning)), key=lambda number: -meaning[number][1])[:count]
    return " ".join(meaning[number][0] for number in sorted(best))


def _means_something(word: str) -> bool:
    """Whether a word has a letter or digit and is not a function word (the paper's s_i)."""
    bare = re.sub(r"\W", "", word).lower()
    return bare != "" and bare not in FUNCTION_WORDS
