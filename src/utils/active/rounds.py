"""Questions side by side, each with the rounds of retrieval that it needs."""

from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from utils.active import ACTIVE
from utils.active.texts import Ahead, Sentence, pieces_of, sentence_ends
from utils.batches import FiniteLogits, answer_batch
from utils.metrics import COUNTS, is_answered
from utils.prompting import PromptEncoder
from utils.recipe import Recipe
from utils.retrieval import PassageIndex
from utils.thoughts import without_thoughts


class Confidence(FiniteLogits):
    """Watches a batch; `seen[row, step]` is the probability of the most likely token and the
    entropy, in nats, of the distribution that it is taken from."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[tuple[int, int], tuple[float, float]] = {}

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """`scores [rows, vocabulary]` as they are."""
        probabilities = scores.float().softmax(-1)
        entropies = torch.special.entr(probabilities).sum(-1).tolist()
        new, best = input_ids.shape[1] - self.before, probabilities.amax(-1).tolist()
        for row, *both in zip(self.rows, best, entropies, strict=True):
            self.seen[self.start + row, len(self.written[row]) + new] = tuple(both)
        return super().__call__(input_ids, scores)


@dataclass
class Row:
    """A question that is being answered: its place, its text and tokens, what is written so far.
    `passages` are for its next sentence; `calls`, `read` and `generated` count."""

    number: int
    question: str
    asked: list[int]
    asked_pieces: list[str]
    written: list[int] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    passages: list[str] = field(default_factory=list)
    queries: list[str] = field(default_factory=list)
    calls: int = 0
    read: int = 0
    generated: int = 0
    done: bool = False

    def keep(self, ahead: Ahead, count: int) -> None:
        """Its text goes on with the first `count` sentences of `ahead`."""
        kept = ahead.sentences[:count]
        end = kept[-1].end if kept else 0
        self.written += ahead.tokens[:end]
        self.pieces += ahead.pieces[:end]
        self.passages = []
        self.done = not ahead.sentences or any(sentence.final for sentence in kept)

    @property
    def result(self) -> dict:
        """The queries and what they cost (`metrics.COUNTS`)."""
        counts = (len(self.queries), self.calls, self.read, self.generated)
        return {"queries": self.queries, **dict(zip(COUNTS, counts, strict=True))}


class Rounds:
    """Answers batches of questions with a method of `ACTIVE`.

    Every question that is not finished looks ahead: `--look_ahead` tokens without passages. Its
    sentences are kept up to the first that needs passages. The engine is asked for these, and that
    sentence is written again with the hits in the prompt. The last sentence of a look-ahead, which
    it cuts off, is begun again. A question that was searched for `--max_retrievals` times is
    written to its end. That is where the model ends it, where more text would not change the scored
    answer, or after `--max_new_tokens`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        encoder: PromptEncoder,
        index: PassageIndex,
        recipe: Recipe,
    ):
        self.model, self.tokenizer, self.encoder = model, tokenizer, encoder
        self.index, self.recipe = index, recipe
        self.method = ACTIVE[recipe.inference_method]
        stops = model.generation_config.eos_token_id
        self.stops = set(stops if isinstance(stops, list) else [stops])

    def answer(self, questions: dict[int, str]) -> list[tuple[str, dict]]:
        """The text and the `Row.result` of each question, by its place; raises `InputError` as
        `FiniteLogits.check`, and if a search fails."""
        rows = [self._row(number, question) for number, question in questions.items()]
        if getattr(self.method, "begins", False):
            self._search([(row, row.question) for row in rows])
        while going := [row for row in rows if not row.done]:
            aheads, asking = self._look_ahead(going), []
            for row, ahead, need in zip(going, aheads, self._needs(going, aheads), strict=True):
                number, query = need or (len(ahead.sentences), "")
                row.keep(ahead, number)
                asking += [(row, query)] if need else []
            if asking:
                self._search(asking)
                again = [row for row, _ in asking]
                for row, ahead in zip(again, self._look_ahead(again), strict=True):
                    row.keep(ahead, 1)
        texts = self.tokenizer.batch_decode([r.written for r in rows], skip_special_tokens=True)
        return [(text, row.result) for row, text in zip(rows, texts, strict=True)]

    def _row(self, number: int, question: str) -> Row:
        ids = self.tokenizer(question, add_special_tokens=False)["input_ids"]
        if self.tokenizer.bos_token_id is not None:
            ids = [self.tokenizer.bos_token_id, *ids]
        return Row(number, question, ids, pieces_of(self.tokenizer, ids, []))

    def _search(self, asking: list[tuple[Row, str]]) -> None:
        """Give each row the engine's hits for its query."""
        hits = self.index.search([query for _, query in asking], self.recipe.retrieve_topk)
        for (row, query), own in zip(asking, hits, strict=True):
            row.queries.append(query)
            row.passages = [hit["text"] for hit in own]

    def _needs(self, rows: list[Row], aheads: list[Ahead]) -> list[tuple[int, str] | None]:
        """What the method says to each look-ahead; None if the retrievals of a row are used up."""
        open_ = [len(row.queries) < self.recipe.max_retrievals for row in rows]
        judged = [i for i, ahead in enumerate(aheads) if open_[i] and ahead.sentences]
        found = self.method([aheads[i] for i in judged], self.recipe, self.model) if judged else []
        needs = dict(zip(judged, found, strict=True))
        return [needs.get(i) for i in range(len(rows))]

    def _look_ahead(self, rows: list[Row]) -> list[Ahead]:
        """What the model writes next for each row; with passages it is its next sentence alone."""
        prompts = [self.encoder.question(row.question, row.passages) + row.written for row in rows]
        left = [self.recipe.max_new_tokens - len(row.written) for row in rows]
        size, watch = min(self.recipe.look_ahead, max(left)), Confidence()
        written = answer_batch(self.model, self.tokenizer, prompts, size, watch)
        watch.check([row.number for row in rows], False)
        aheads = []
        for i, row in enumerate(rows):
            tokens = written[i][1][: min(size, left[i])]
            end = next((n for n, token in enumerate(tokens) if token in self.stops), len(tokens))
            seen = [watch.seen[i, step] for step in range(end)]
            aheads.append(self._ahead(row, prompts[i], tokens[:end], end < len(tokens), seen))
        return aheads

    def _ahead(
        self, row: Row, prompt: list[int], tokens: list[int], ended: bool, seen: list[tuple]
    ) -> Ahead:
        """The look-ahead `tokens` of a row after its `prompt`; `ended`: the model stopped there.
        `seen` has the probability and the entropy of each token."""
        row.calls, row.read = row.calls + 1, row.read + len(prompt)
        row.generated += len(tokens)
        pieces, sentences, start = pieces_of(self.tokenizer, tokens, prompt), [], 0
        for end in sentence_ends(pieces):
            last = end == len(tokens)
            final = (last and ended) or len(row.written) + end == self.recipe.max_new_tokens
            said = without_thoughts("".join(row.pieces + pieces[:end]))
            final = final or is_answered(said, self.recipe.with_cot, self.recipe.answer_cut)
            if last and not final and sentences:
                break  # it is cut off
            sentences.append(Sentence(start, end, final))
            start = end
            if final or row.passages:
                break
        context, before = row.asked + row.written, [*row.pieces]
        confidence = [one for one, _ in seen], [one for _, one in seen]
        return Ahead(row.asked_pieces, before, context, tokens, pieces, *confidence, sentences)
