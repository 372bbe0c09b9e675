"""FLARE and DRAGIN for one question at a time, written plainly: what `utils.active` must equal.

The model has the library's eager attention, so that it gives all weights; texts are English.
"""

import re
from statistics import fmean

import torch
from nltk.tokenize.punkt import PunktSentenceTokenizer

from utils.active.dragin import FUNCTION_WORDS


class Reference:
    """`ask(question, passages)` gives a prompt, `search(query)` texts; `answer` is the method."""

    def __init__(self, model, tokenizer, ask, search, recipe):
        self.model, self.tokenizer, self.ask, self.search = model, tokenizer, ask, search
        self.recipe = recipe

    def answer(self, question):
        """The text and the queries."""
        self.question, self.written, self.queries, self.done = question, [], [], False
        getattr(self, self.recipe.inference_method)()
        return self.tokenizer.decode(self.written, skip_special_tokens=True), self.queries

    def flare(self):
        passages = self.retrieved(self.question)
        while not self.done:
            tokens, probabilities, _ = self.look_ahead(passages)
            own = range(self.sentences(tokens)[0] if tokens else 0)
            query = ""
            if own and min(probabilities[i] for i in own) < self.recipe.flare_theta:
                pieces = [self.piece(tokens, i) for i in own]
                sure = [probabilities[i] >= self.recipe.flare_beta for i in own]
                query = "".join(p if s else " " for p, s in zip(pieces, sure, strict=True))
                query = " ".join(query.split())
            if re.search("[a-zA-Z0-9]", query) and self.may_retrieve():
                self.write_again(query)
            else:
                self.keep(tokens, len(own))
            passages = []

    def dragin(self):
        while not self.done:
            tokens, _, entropies = self.look_ahead([])
            attention = self.attention(tokens) if tokens else None
            ends = self.sentences(tokens)
            if len(ends) > 1 and not self.ended and len(self.written) + len(tokens) < self.most():
                ends.pop()  # it is cut off: begun again with the next look-ahead
            for start, end in zip([0, *ends], ends, strict=False):
                query = self.dragin_query(tokens, start, end, entropies, attention)
                if query and self.may_retrieve():
                    self.write_again(query)
                    break
                self.keep(tokens[start:], end - start)
                if self.done:
                    break
            self.done |= not tokens

    def dragin_query(self, tokens, start, end, entropies, attention):
        """The query of the first word over the threshold, "" without one. `attention [all, all]`
        is of question, text and look-ahead; `self.first` is the place of the look-ahead in it."""
        recipe, words = self.recipe, []
        for word, places in self.words(tokens):
            if start <= places[0] < end:
                paid = sum(self.most_paid[i] for i in places)
                words.append((word, places, paid, fmean(entropies[i] for i in places)))
        mean = (fmean(paid for _, _, paid, _ in words) if words else 0) or 1
        for word, places, paid, entropy in words:
            if self.matters(word) and entropy * paid / mean > recipe.dragin_threshold:
                row = attention[[self.first + i for i in places]].mean(0)
                before = self.question_ids + self.before + tokens[: places[0]]
                asked = len(self.question_ids)
                earlier = [(w, own) for w, own in self.words(before[:asked], [])]
                for w, own in self.words(before[asked:], before[:asked]):
                    earlier.append((w, [asked + i for i in own]))
                earlier = [(w, row[own].sum().item()) for w, own in earlier if self.matters(w)]
                numbers = sorted(range(len(earlier)), key=lambda n: earlier[n][1], reverse=True)
                return " ".join(earlier[n][0] for n in sorted(numbers[: recipe.dragin_words]))
        return ""

    def attention(self, tokens):
        self.before = [*self.written]
        self.question_ids = self.tokenizer(self.question, add_special_tokens=False)["input_ids"]
        if self.tokenizer.bos_token_id is not None:
            self.question_ids.insert(0, self.tokenizer.bos_token_id)
        self.first = len(self.question_ids) + len(self.before)
        ids = torch.tensor([self.question_ids + self.before + tokens])
        with torch.no_grad():
            weights = self.model(ids, output_attentions=True).attentions[-1][0]  # [heads, all, all]
        self.most_paid = weights[:, self.first :, self.first :].amax(1).mean(0).tolist()
        return weights.mean(0)

    def most(self):
        return self.recipe.max_new_tokens

    def may_retrieve(self):
        return len(self.queries) < self.recipe.max_retrievals

    def retrieved(self, query):
        self.queries.append(query)
        return self.search(query)

    def write_again(self, query):
        tokens, _, _ = self.look_ahead(self.retrieved(query))
        self.keep(tokens, self.sentences(tokens)[0] if tokens else 0)

    def look_ahead(self, passages):
        """The next tokens, the probability of each and the entropy of its distribution."""
        prompt = self.ask(self.question, passages) + self.written
        count = min(self.recipe.look_ahead, self.most() - len(self.written))
        output = self.model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=count, do_sample=False, return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip
        tokens = output.sequences[0, len(prompt) :].tolist()
        given = [scores[0].softmax(-1) for scores in output.scores]
        self.ended = tokens[-1] == self.tokenizer.eos_token_id
        tokens = tokens[:-1] if self.ended else tokens
        pairs = list(zip(tokens, given, strict=False))
        self.last = prompt[-1]
        probabilities = [p[token].item() for token, p in pairs]
        return (
            tokens,
            probabilities,
            [-(p * p.clamp_min(1e-38).log()).sum().item() for _, p in pairs],
        )

    def keep(self, tokens, count):
        self.written += tokens[:count]
        text = self.tokenizer.decode(self.written, skip_special_tokens=True).strip()
        if self.recipe.with_cot:
            text = text.partition("the answer is")[2].strip()
        self.done = len(self.written) == self.most() or count == 0 or "." in text or "," in text
        self.done |= "\n" in text or (self.ended and count == len(tokens))

    def text(self, tokens, count, after=None):
        ids = [self.last, *tokens[:count]] if after is None else [*after[-1:], *tokens[:count]]
        start = len(self.tokenizer.decode(ids[: len(ids) - count], skip_special_tokens=True))
        return self.tokenizer.decode(ids, skip_special_tokens=True)[start:]

    def piece(self, tokens, i):
        return self.text(tokens, i + 1)[len(self.text(tokens, i)) :]

    def sentences(self, tokens):
        """How many tokens there are up to the end of each sentence."""
        text, ends = self.text(tokens, len(tokens)), []
        for _, end in PunktSentenceTokenizer().span_tokenize(text):
            ends.append(next(n for n in range(len(tokens) + 1) if len(self.text(tokens, n)) >= end))
        return [*ends[:-1], len(tokens)] if tokens else []

    def words(self, tokens, after=None):
        """Each word and the places of its tokens."""
        text = self.text(tokens, len(tokens), after)
        starts = [len(self.text(tokens, n, after)) for n in range(len(tokens) + 1)]
        found = []
        for word in re.finditer(r"\S+", text):
            own = [
                i for i in range(len(tokens))
                if starts[i] < word.end() and starts[i + 1] > word.start()
            ]  # fmt: skip
            found.append((word[0], own))
        return found

    def matters(self, word):
        bare = "".join(c for c in word if c.isalnum() or c == "_").lower()
        return bare != "" and bare not in FUNCTION_WORDS
