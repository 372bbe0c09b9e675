"""Write the demo's files: `corpus.tsv`, `questions.json` and `warmup.json` in `data/demo/`.

    python data/demo/build/make_world.py

The corpus is in the format of DPR's Wikipedia dump. The questions come in two splits, `dev` (to
choose settings) and `test` (to report), about different entities; each is single-hop or two-hop.
The warm-up's questions are about entities that the model has read about in its training, but was
never asked about without context: what PopQA's are to a model that has read Wikipedia.
"""

import csv
import json
import random
from pathlib import Path

from training_data import CURRICULUM, known_entities
from world import (
    KINDS,
    LINK_ATTRIBUTE,
    Entity,
    ask,
    ask_two_hop,
    new_entity,
    new_name,
    new_pair,
    write_article,
)

DEMO = Path(__file__).parents[1]
SEED = 2026
PAIRS = {"dev": 12, "test": 36, "": 24}  # "": in the corpus, but nothing is asked about them
MORE_PEOPLE = 60
# Not asked about: "... College", "... River" and so on would give half of the F1 to any guess.
GENERIC = {"school", "prize", "studio", "river"}
TWO_HOP = 2  # questions per pair; single-hop ones are about half of an entity's facts


def unused_pair(kind: str, used: set[str], rng: random.Random) -> tuple[Entity, Entity]:
    """A pair of eval entities whose names share no distinctive word with those in the world.

    Suffixes of companies and prefixes of places are too few for that, and so are first names.
    """
    while True:
        pair = new_pair(kind, "eval", rng)
        words = distinctive_words(pair[0]) | {pair[1].name}
        if not words & used:
            used |= words
            return pair


def distinctive_words(entity: Entity) -> set[str]:
    """The words of a name that another entity of its kind does not have as well."""
    words = entity.name.split()
    return {"film": set(words[1:]), "company": {words[0]}, "place": {words[1]}}[entity.kind]


def questions_about(pair: tuple[Entity, Entity], rng: random.Random) -> list[dict]:
    """Single-hop questions about both entities, two-hop ones about the person behind the thing."""
    thing, person = pair
    questions = []

    def add(kind: str, question: str, entity: Entity, attribute: str, support: list[str]) -> None:
        questions.append(
            {
                "question": question,
                "answer": entity.facts[attribute],
                "type": kind,
                "golden_passages": support,
            }
        )

    def passage_with(entity: Entity, attribute: str) -> str:
        return next(p.text for p in entity.passages if attribute in p.attributes)

    for entity in pair:
        attributes = [a for a in entity.facts if a not in GENERIC]
        for attribute in rng.sample(attributes, len(entity.facts) // 2):
            support = [passage_with(entity, attribute)]
            add("single_hop", ask(entity, attribute, rng), entity, attribute, support)
    linked = next(passage for passage in person.passages if passage.has_link)
    for attribute in rng.sample([a for a in linked.attributes if a not in GENERIC], TWO_HOP):
        support = [passage_with(thing, LINK_ATTRIBUTE[thing.kind]), linked.text]
        add("two_hop", ask_two_hop(person, attribute, rng), person, attribute, support)
    return questions


def build_world() -> tuple[list[Entity], dict[str, list[dict]]]:
    """The entities with their articles, in the corpus' order, and the questions of each split."""
    rng = random.Random(SEED)
    used: set[str] = set()
    entities: list[Entity] = []
    splits: dict[str, list[dict]] = {"dev": [], "test": []}
    for split, count in PAIRS.items():
        for index in range(count):
            pair = unused_pair(KINDS[1 + index % 3], used, rng)
            entities += pair
            if split:
                splits[split] += questions_about(pair, rng)
    while len(entities) < 2 * sum(PAIRS.values()) + MORE_PEOPLE:
        name = new_name("person", "eval", rng)
        if name not in used:
            used.add(name)
            person = new_entity("person", "eval", rng, name=name)
            write_article(person, rng)
            entities.append(person)
    rng.shuffle(entities)
    for split, questions in splits.items():
        rng.shuffle(questions)
        splits[split] = [{"qid": f"{split}-{i}", **q} for i, q in enumerate(questions)]
    return entities, splits


def warmup_questions() -> list[dict]:
    """A single-hop question about every fact of the entities that are only read about."""
    rng = random.Random(SEED)
    known = known_entities(*CURRICULUM[-1][-1])
    entities = [entity for entity in known.entities() if entity.name in known.read_only]
    return [
        {"question": ask(entity, attribute, rng), "answer": entity.facts[attribute]}
        for entity in entities
        for attribute in entity.facts
    ]


def main() -> None:
    """Make the world and write its files."""
    entities, splits = build_world()
    with (DEMO / "corpus.tsv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(["id", "text", "title"])
        number = 0
        for entity in entities:
            for passage in entity.passages:
                number += 1
                writer.writerow([number, passage.text, entity.name])
    text = json.dumps(splits, ensure_ascii=False, indent=1) + "\n"
    (DEMO / "questions.json").write_text(text, encoding="utf-8")
    warmup = warmup_questions()
    text = json.dumps(warmup, ensure_ascii=False, indent=1) + "\n"
    (DEMO / "warmup.json").write_text(text, encoding="utf-8")
    splits["warm-up"] = warmup
    counts = ", ".join(f"{len(questions)} {split}" for split, questions in splits.items())
    print(f"{number} passages about {len(entities)} entities; questions: {counts}")


if __name__ == "__main__":
    main()
