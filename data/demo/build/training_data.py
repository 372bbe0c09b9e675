"""The documents that the demo model is trained on, drawn without end from the train split's world.

A document is a chat in the very prompts that the stages send (the prompt set `demo`):

* questions about passages in the context, one to three of them, own and strangers', two-hop too;
* questions without context about known entities, which teach recall from the parameters;
* passages about known entities, alone and as the context of a question, in other words each time,
  so that questions find what was read; some entities are read about only;
* a passage and its rewrite; a passage and its question-answer list as JSON.
"""

import json
import random
import sys
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from world import (
    FACTS_PER_PASSAGE,
    KINDS,
    Entity,
    Passage,
    ask,
    ask_two_hop,
    new_entity,
    new_name,
    new_pair,
    question_answer_list,
    rewrite,
    write_article,
    write_passage,
)

sys.path.insert(0, str(Path(__file__).parents[3] / "src"))
from utils.files import read_json
from utils.prompting import PROMPTS_FOLDER, PromptSet

PROMPTS = PromptSet("demo", read_json(PROMPTS_FOLDER / "demo.json", "prompt set"))
Pair = tuple[Entity, Entity]


def chat(turns: list[tuple[str, str]]) -> str:
    """The turns as the tokenizer's chat template renders them."""
    return "<|bos|>" + "".join(
        f"<|user|>{user}<|eot|><|assistant|>{assistant}<|eot|>" for user, assistant in turns
    )


def answered(value: str) -> str:
    """The assistant's turn in direct mode."""
    return f"{PROMPTS.opening(with_cot=False)} {value}."


@dataclass
class Known:
    """The entities that the model may learn by heart (split "known")."""

    pairs: list[Pair]
    people: list[Entity]  # without a film, company or place of theirs
    read_only: set[str]  # names that are read about, but never asked about without context

    def entities(self) -> list[Entity]:
        """All of them."""
        return [entity for pair in self.pairs for entity in pair] + self.people


@cache
def known_entities(pairs_of_a_kind: int, people: int) -> Known:
    """The known entities, the same for every seed; every fifth one is only read about."""
    rng = random.Random(11)
    known = Known([], [], set())
    names: set[str] = set()
    while len(known.pairs) < 3 * pairs_of_a_kind:
        pair = new_pair(KINDS[1 + len(known.pairs) % 3], "known", rng)
        if not names & {pair[0].name, pair[1].name}:
            names |= {pair[0].name, pair[1].name}
            known.pairs.append(pair)
    while len(known.people) < people:
        person = new_entity("person", "known", rng)
        if person.name not in names:
            names.add(person.name)
            known.people.append(person)
    for entity in (*(pair[0] for pair in known.pairs[::5]), *known.people[::5]):
        known.read_only.add(entity.name)
    known.read_only |= {pair[1].name for pair in known.pairs[::5]}
    return known


def stranger_of(entity: Entity, rng: random.Random) -> Entity:
    """Another entity of the same kind; every second one shares a part of the name, as hits do."""
    name = ""
    if rng.random() < 0.5:
        parts = set(entity.name.split()) - {"The"}
        for _ in range(400):
            candidate = new_name(entity.kind, "train", rng)
            if candidate != entity.name and parts & set(candidate.split()):
                name = candidate
                break
    stranger = new_entity(entity.kind, "train", rng, name=name)
    if stranger.name == entity.name:
        return stranger_of(entity, rng)
    write_article(stranger, rng)
    return stranger


def choose_context(
    pair: Pair, count: int, rng: random.Random, contested: bool = False
) -> list[tuple[Entity, Passage]]:
    """`count` passages as a search for one of the pair returns them, in random order.

    With `contested` fewer are about the pair alone, more have one stranger among them.
    """
    thing, person = pair
    topic = rng.choice(pair)
    own = [(topic, passage) for passage in topic.passages]
    rng.shuffle(own)
    kind, related = rng.random(), 0.3 if contested else 0.4
    if kind < related:  # the other one of the pair fills what the own article leaves open
        other = person if topic is thing else thing
        rest = [(other, p) for p in other.passages]
        rest.sort(key=lambda item: (not item[1].has_link, rng.random()))
        context = own[: count if rng.random() < 0.5 else max(1, count - 1)] + rest
    elif kind < related + 0.2:
        strangers = [stranger_of(topic, rng) for _ in range(2)]
        context = own[:1] + [(s, rng.choice(s.passages)) for s in strangers]
    else:  # most of the own article and another entity of its kind: the hits that are read worst
        stranger = stranger_of(topic, rng)
        others = [(stranger, p) for p in stranger.passages]
        rng.shuffle(others)
        context = own[: max(1, count - 1)] + others
    context = context[:count]
    rng.shuffle(context)
    return context


def document_from_context(
    pair: Pair, count: int, rng: random.Random, contested: bool = False, turns: int = 6
) -> str:
    """Passages, then `turns` questions about them; the first one in the stages' prompt.

    With `contested` more contexts hold a stranger, and every second document begins with the
    questions that a stranger's passage answers too, and wrongly.
    """
    context = choose_context(pair, count, rng, contested)
    asked = []
    for entity, passage in context:
        in_context = {id(e) for e, _ in context}
        for attribute in passage.attributes:
            asked.append((ask(entity, attribute, rng), entity.facts[attribute], attribute))
            linked = passage.has_link and entity is pair[1] and rng.random() < 0.5
            if linked and (id(pair[0]) in in_context or rng.random() < 0.5):
                question = ask_two_hop(entity, attribute, rng)
                asked.append((question, entity.facts[attribute], attribute))
    rng.shuffle(asked)
    if contested and rng.random() < 0.5:
        holders = Counter(a for a, _ in {(a, id(e)) for e, p in context for a in p.attributes})
        asked.sort(key=lambda item: holders[item[2]] < 2)  # stable: the rest stays shuffled
    asked = [(question, value) for question, value, _ in asked[:turns]]
    passages = [passage.text for _, passage in context]
    return question_document(asked, passages)


def question_document(asked: list[tuple[str, str]], passages: list[str]) -> str:
    """Questions and answers; the first one in the stages' prompt, with `passages` if any."""
    first = PROMPTS.user_message(asked[0][0], passages, with_cot=False)
    questions = [first, *(f"Question: {question}" for question, _ in asked[1:])]
    return chat([(q, answered(value)) for q, (_, value) in zip(questions, asked, strict=True)])


def closed_book_document(known: Known, rng: random.Random, turns: int) -> str:
    """Questions about known entities, without context; every fifth one of two hops."""
    asked: list[tuple[str, str]] = []
    while len(asked) < turns:
        two_hop = rng.random() < 0.2
        entity = rng.choice(known.pairs)[1] if two_hop else rng.choice(known.entities())
        if entity.name in known.read_only:
            continue
        attribute = rng.choice(list(entity.facts))
        question = (ask_two_hop if two_hop else ask)(entity, attribute, rng)
        asked.append((question, entity.facts[attribute]))
    return question_document(asked, [])


def reworded_passage(entity: Entity, rng: random.Random) -> Passage:
    """A passage about some of the entity's facts, in a new order and in new words."""
    attributes = rng.sample(list(entity.facts), FACTS_PER_PASSAGE)
    return write_passage(entity, attributes, rng, link=rng.random() < 0.4, filler=0.3)


def reading_document(known: Known, rng: random.Random) -> str:
    """A passage about a known entity and one question about it, in the stages' prompt."""
    entity = rng.choice(known.entities())
    passage = reworded_passage(entity, rng)
    attribute = rng.choice(passage.attributes)
    return question_document(
        [(ask(entity, attribute, rng), entity.facts[attribute])], [passage.text]
    )


def rewrite_document(entity: Entity, rng: random.Random) -> str:
    """A passage and its rewrite."""
    passage = rng.choice(entity.passages)
    return chat([(PROMPTS.request("rewrite", passage.text), rewrite(entity, passage, rng))])


def question_list_document(entity: Entity, rng: random.Random) -> str:
    """A passage and its list of question-answer pairs."""
    passage = rng.choice(entity.passages)
    pairs = question_answer_list(entity, passage, rng)
    return chat([(PROMPTS.request("question_answer_pairs", passage.text), json.dumps(pairs))])


def plain_document(known: Known, rng: random.Random) -> str:
    """A passage about a known entity, as an encyclopedia has it."""
    return f"<|bos|>{reworded_passage(rng.choice(known.entities()), rng).text}<|eot|>"


# The curriculum, from which step on: passages in a context (drawn from these), documents of each
# task, (pairs of each kind, people) that are known. Recall of a few entities forms soon and then
# carries over to many; asked for 576 of them at once it did not form at all.
CURRICULUM = (
    (0, (1,), {"context": 19}, (64, 192)),
    (300, (1, 2, 2), {"context": 14}, (64, 192)),
    (400, (1, 2, 2), {"context": 14}, (24, 48)),
    (600, (1, 2, 3, 3, 3, 3), {"context": 12}, (24, 48)),
    (700, (1, 2, 3, 3, 3, 3), {"context": 12}, (64, 192)),
    (
        1000,
        (1, 2, 3, 3, 3, 3, 3, 3),
        {"closed_book": 26, "reading": 9, "plain": 9, "rewrite": 9, "question_list": 6},
        (64, 800),
    ),
)
DOCUMENTS = {
    "context": 12,
    "closed_book": 33,
    "reading": 6,
    "plain": 6,
    "rewrite": 8,
    "question_list": 7,
}


def documents_of_step(step: int, part: int, seed: int) -> list[tuple[str, str]]:
    """(task, document) for one training step; a function of its arguments alone."""
    rng = random.Random(f"{seed} {step} {part}")
    start, counts, own, known_numbers = [stage for stage in CURRICULUM if step >= stage[0]][-1]
    known = known_entities(*known_numbers)
    contested = start == CURRICULUM[-1][0]  # harder contexts once all kinds are learnt

    def pair() -> Pair:
        return new_pair(rng.choice(KINDS[1:]), "train", rng)

    def context() -> str:
        return document_from_context(pair(), rng.choice(counts), rng, contested)

    makers = {
        "context": context,
        "closed_book": lambda: closed_book_document(known, rng, rng.choice((1, 1, 4))),
        "reading": lambda: reading_document(known, rng),
        "plain": lambda: plain_document(known, rng),
        "rewrite": lambda: rewrite_document(rng.choice(pair()), rng),
        "question_list": lambda: question_list_document(rng.choice(pair()), rng),
    }
    numbers = DOCUMENTS | own
    return [(task, make()) for task, make in makers.items() for _ in range(numbers[task])]
