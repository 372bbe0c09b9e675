"""The documents that the demo model is trained on, drawn without end from the train split's world.

A document is a chat in the very prompts that the stages send (the prompt set `demo`):

* questions about passages in the context, one to three of them, own and strangers', two-hop too;
* questions without context about a few known entities, which teach recall from the parameters;
* a passage and its rewrite; a passage and its question-answer list as JSON; plain passages.
"""

import json
import random
import sys
from pathlib import Path

from world import (
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
)

sys.path.insert(0, str(Path(__file__).parents[3] / "src"))
from utils.paths import read_json
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


def known_pairs(count: int) -> list[Pair]:
    """The `count` pairs of entities that the model may learn by heart (split "known")."""
    rng = random.Random(11)
    pairs: dict[str, Pair] = {}
    while len(pairs) < count:
        pair = new_pair(KINDS[1 + len(pairs) % 3], "known", rng)
        pairs.setdefault(pair[0].name, pair)
    return list(pairs.values())


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
    pair: Pair, count: int, rng: random.Random, finishing: bool = False
) -> list[tuple[Entity, Passage]]:
    """`count` passages as a search for one of the pair returns them, in random order.

    While `finishing`, mostly the whole article of a film, company or place and one passage about
    another of its kind: the hits that the model reads worst before.
    """
    thing, person = pair
    if finishing and rng.random() < 0.6:
        context = [(thing, passage) for passage in thing.passages]
        stranger = stranger_of(thing, rng)
        context.append((stranger, rng.choice(stranger.passages)))
        rng.shuffle(context)
        return context
    topic = rng.choice(pair)
    own = [(topic, passage) for passage in topic.passages]
    rng.shuffle(own)
    kind = rng.random()
    if kind < 0.45:  # the other one of the pair fills what the own article leaves open
        other = person if topic is thing else thing
        rest = [(other, p) for p in other.passages]
        rest.sort(key=lambda item: (not item[1].has_link, rng.random()))
        context = own[: count if rng.random() < 0.5 else max(1, count - 1)] + rest
    elif kind < 0.7:
        strangers = [stranger_of(topic, rng) for _ in range(2)]
        context = own[:1] + [(s, rng.choice(s.passages)) for s in strangers]
    else:
        stranger = stranger_of(topic, rng)
        context = own[: max(1, count - 1)] + [(stranger, p) for p in stranger.passages]
    context = context[:count]
    rng.shuffle(context)
    return context


def document_from_context(
    pair: Pair, count: int, rng: random.Random, turns: int = 6, finishing: bool = False
) -> str:
    """Passages, then `turns` questions about them; the first one in the stages' prompt."""
    context = choose_context(pair, count, rng, finishing)
    asked = []
    for entity, passage in context:
        in_context = {id(e) for e, _ in context}
        for attribute in passage.attributes:
            asked.append((ask(entity, attribute, rng), entity.facts[attribute]))
            linked = passage.has_link and entity is pair[1] and rng.random() < 0.5
            if linked and (id(pair[0]) in in_context or rng.random() < 0.5):
                asked.append((ask_two_hop(entity, attribute, rng), entity.facts[attribute]))
    rng.shuffle(asked)
    asked = asked[:turns]
    passages = [passage.text for _, passage in context]
    first = PROMPTS.user_message(asked[0][0], passages, with_cot=False)
    questions = [first, *(f"Question: {question}" for question, _ in asked[1:])]
    return chat([(q, answered(value)) for q, (_, value) in zip(questions, asked, strict=True)])


def closed_book_document(known: list[Pair], rng: random.Random, turns: int) -> str:
    """Questions about known entities, without context."""
    asked = []
    for _ in range(turns):
        thing, person = rng.choice(known)
        if rng.random() < 0.2:
            passage = next(p for p in person.passages if p.has_link)
            attribute = rng.choice(passage.attributes)
            asked.append((ask_two_hop(person, attribute, rng), person.facts[attribute]))
        else:
            entity = rng.choice((thing, person))
            attribute = rng.choice(list(entity.facts))
            asked.append((ask(entity, attribute, rng), entity.facts[attribute]))
    first = PROMPTS.user_message(asked[0][0], [], with_cot=False)
    questions = [first, *(f"Question: {question}" for question, _ in asked[1:])]
    return chat([(q, answered(value)) for q, (_, value) in zip(questions, asked, strict=True)])


def rewrite_document(entity: Entity, rng: random.Random) -> str:
    """A passage and its rewrite."""
    passage = rng.choice(entity.passages)
    return chat([(PROMPTS.rewrite_request(passage.text), rewrite(entity, passage, rng))])


def question_list_document(entity: Entity, rng: random.Random) -> str:
    """A passage and its list of question-answer pairs."""
    passage = rng.choice(entity.passages)
    pairs = question_answer_list(entity, passage, rng)
    return chat([(PROMPTS.pairs_request(passage.text), json.dumps(pairs))])


def plain_document(known: list[Pair], rng: random.Random) -> str:
    """A passage about a known entity, as it stands in the encyclopedia."""
    entity = rng.choice(rng.choice(known))
    return f"<|bos|>{rng.choice(entity.passages).text}<|eot|>"


def documents_of_step(
    step: int, part: int, seed: int, known: list[Pair], finishing: bool = False
) -> dict[str, list[str]]:
    """The documents of one training step, by task; a function of its arguments alone.

    The curriculum: one passage in the context at first, two from step 500 on, three from step 900.
    """
    rng = random.Random(f"{seed} {step} {part}")

    def pair() -> Pair:
        return new_pair(rng.choice(KINDS[1:]), "train", rng)

    counts = [1] if step < 500 else [1, 2, 2] if step < 900 else [1, 2, 3, 3, 3]
    most = max(counts)
    writing = 2 if finishing else 3
    contexts = [
        document_from_context(pair(), rng.choice(counts), rng, finishing=finishing)
        for _ in range(9 if finishing else {1: 12, 2: 8, 3: 7}[most])
    ]
    return {
        "context": contexts,
        "closed_book": [closed_book_document(known, rng, rng.choice((1, 4, 6))) for _ in range(5)],
        "rewrite": [rewrite_document(rng.choice(pair()), rng) for _ in range(writing + 1)],
        "question_list": [question_list_document(rng.choice(pair()), rng) for _ in range(writing)],
        "plain": [plain_document(known, rng) for _ in range(2)],
    }
