"""A fictional encyclopedia: people, films, companies and places whose facts no model can know.

Every entity has an article of two or three passages with four facts each. As in Wikipedia, the
passages of one article complement each other, and a person's article mentions the film, company
or place that the person directed, founded or governs: that is what two-hop questions are about.

A name belongs for ever to one split (by its checksum): "eval" names appear only in the corpus and
the questions, never in the training of the demo model, neither as subjects nor as values.
"""

import random
import zlib
from dataclasses import dataclass, field

from templates import FILLERS, LINKS, QUESTIONS, ROLES, STATEMENTS

KINDS = ("person", "film", "company", "place")
ATTRIBUTES = {
    "person": (
        "birth_year birthplace occupation spouse school instrument "
        "prize language sport teacher home employer"
    ).split(),
    "film": "director release genre star studio music setting theme".split(),
    "company": "founder founding headquarters product chief rival logo colour".split(),
    "place": "mayor river country trade emblem festival landmark settlers".split(),
}
LINK_ATTRIBUTE = {"film": "director", "company": "founder", "place": "mayor"}
FACTS_PER_PASSAGE = 4


def _invented_words(count: int, rng: random.Random, used: set[str], syllables: int) -> list[str]:
    """`count` new pronounceable words, none of them in `used` (to which they are added)."""
    onsets = "b br c d dr f g gl h j k kr l m n p pr r s st t th tr v z".split()
    vowels = "a e i o u ae ei".split()
    endings = "a o en ar is un el ov ine eth or ix".split()
    words: list[str] = []
    while len(words) < count:
        stem = "".join(rng.choice(onsets) + rng.choice(vowels) for _ in range(syllables - 1))
        word = (stem + rng.choice(onsets) + rng.choice(endings)).capitalize()
        if word not in used and len(word) <= 9:
            used.add(word)
            words.append(word)
    return words


_rng, _used = random.Random(7), set()
FIRST_NAMES = _invented_words(80, _rng, _used, 2)
LAST_NAMES = _invented_words(140, _rng, _used, 3)
TOWNS = _invented_words(80, _rng, _used, 2)
COUNTRIES = _invented_words(24, _rng, _used, 3)
BRANDS = _invented_words(110, _rng, _used, 2)
STUDIOS = _invented_words(30, _rng, _used, 2)
SCHOOLS = _invented_words(30, _rng, _used, 2)
PRIZES = _invented_words(30, _rng, _used, 2)
LANGUAGES = _invented_words(24, _rng, _used, 3)
RIVERS = _invented_words(30, _rng, _used, 2)
FEMALE = set(FIRST_NAMES[1::2])
ADJECTIVES = (
    "Silent Golden Broken Hidden Crimson Frozen Distant Burning Hollow Gentle Bitter Sacred Lonely "
    "Savage Velvet Wandering Ancient Pale Restless Scarlet Shining Stolen Sunken Tender Twisted "
    "Wild Iron Forgotten Amber Blind Brave Copper Cruel Endless Faded Fallen Glass Last"
).split()
NOUNS = (
    "River Garden Mirror Harbor Mountain Letter Crown Shadow Bridge Lantern Voyage Orchard Tower "
    "Wolf Sparrow Island Kingdom Piano Road Ocean Desert Candle Stranger Promise Forest Mask "
    "Carnival Knight Dream Summer Clock Rose Horse Window Castle Valley Soldier Star Moon"
).split()
SUFFIXES = "Motors Industries Foods Systems Textiles Airlines Steel Chemicals".split()
PREFIXES = "Port New Upper Lower Fort Lake North East Saint Mount".split()
WORDS = {
    "occupation": "painter physician lawyer engineer poet sculptor astronomer botanist composer "
    "historian journalist architect chemist geologist violinist novelist photographer carpenter "
    "banker linguist",
    "instrument": "piano violin cello flute trumpet guitar harp drums organ banjo",
    "genre": "comedy drama thriller western musical documentary romance fantasy mystery war",
    "product": "bicycles tractors furniture watches radios shoes cameras tyres glassware pianos "
    "paper soap cables pumps toys bread batteries engines carpets tea",
    "trade": "wool salt timber wine copper cheese honey marble silk fish oil wheat",
    "sport": "chess tennis rowing fencing archery swimming golf skating hockey cricket boxing "
    "sailing cycling wrestling",
    "theme": "sailors miners farmers thieves doctors soldiers orphans teachers gamblers pilots "
    "nurses spies dancers priests shepherds pirates",
    "animal": "lion eagle bear horse wolf swan tiger owl deer bull fox dolphin camel falcon",
    "colour": "red blue green yellow orange purple black white brown pink grey silver",
    "month": "January February March April May June July August September October November "
    "December",
    "landmark": "lighthouse cathedral bridge castle library fountain tower market harbour windmill "
    "palace theatre",
}
WORDS = {name: words.split() for name, words in WORDS.items()}
YEARS = [str(year) for year in range(1900, 2000)]

VOCABULARY = sorted(
    {
        *FIRST_NAMES,
        *LAST_NAMES,
        *TOWNS,
        *COUNTRIES,
        *BRANDS,
        *STUDIOS,
        *SCHOOLS,
        *PRIZES,
        *LANGUAGES,
        *RIVERS,
        *ADJECTIVES,
        *NOUNS,
        *SUFFIXES,
        *PREFIXES,
        *YEARS,
        *(word for words in WORDS.values() for word in words),
    }
)


@dataclass
class Passage:
    """One passage: the attributes it states, in order, and which statement each one used."""

    text: str
    attributes: list[str]
    statements: dict[str, int]
    has_link: bool = False


@dataclass
class Entity:
    """One entity, its facts, and its article once `write_article` has been called."""

    kind: str
    name: str
    facts: dict[str, str]
    link: tuple[str, str] | None = None  # (kind, name) of what a person directed, founded, governs
    passages: list[Passage] = field(default_factory=list)


def split_of(name: str) -> str:
    """The split that `name` belongs to for ever: eval (10%), known (10%) or train (80%)."""
    return {0: "eval", 1: "known"}.get(zlib.crc32(name.encode()) % 10, "train")


def new_name(kind: str, split: str, rng: random.Random) -> str:
    """A random name of `kind` that belongs to `split`."""
    while True:
        if kind == "person":
            name = f"{rng.choice(FIRST_NAMES)} {rng.choice(LAST_NAMES)}"
        elif kind == "film":
            name = f"The {rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}"
        elif kind == "company":
            name = f"{rng.choice(BRANDS)} {rng.choice(SUFFIXES)}"
        else:
            name = f"{rng.choice(PREFIXES)} {rng.choice(TOWNS)}"
        if split_of(name) == split:
            return name


def new_entity(kind: str, split: str, rng: random.Random, name: str = "") -> Entity:
    """A random entity of `kind`; the names among its facts belong to `split` too."""

    def value(attribute: str) -> str:
        if attribute in (
            "spouse",
            "teacher",
            "director",
            "star",
            "music",
            "founder",
            "chief",
            "mayor",
        ):
            return new_name("person", split, rng)
        if attribute in ("employer", "rival"):
            return new_name("company", split, rng)
        if attribute in ("birth_year", "release", "founding", "settlers"):
            return rng.choice(YEARS)
        if attribute in ("birthplace", "home", "setting", "headquarters"):
            return rng.choice(TOWNS)
        if attribute == "school":
            return rng.choice(SCHOOLS) + " College"
        if attribute == "prize":
            return rng.choice(PRIZES) + " Prize"
        if attribute == "studio":
            return rng.choice(STUDIOS) + " Pictures"
        if attribute == "river":
            return rng.choice(RIVERS) + " River"
        if attribute == "language":
            return rng.choice(LANGUAGES)
        if attribute == "country":
            return rng.choice(COUNTRIES)
        word_list = {"logo": "animal", "emblem": "animal", "festival": "month"}
        return rng.choice(WORDS[word_list.get(attribute, attribute)])

    facts = {attribute: value(attribute) for attribute in ATTRIBUTES[kind]}
    return Entity(kind, name or new_name(kind, split, rng), facts)


def new_pair(kind: str, split: str, rng: random.Random) -> tuple[Entity, Entity]:
    """A film, company or place and the person it belongs to, both with their articles."""
    entity = new_entity(kind, split, rng)
    person = new_entity("person", split, rng, name=entity.facts[LINK_ATTRIBUTE[kind]])
    person.link = (kind, entity.name)
    write_article(entity, rng)
    write_article(person, rng)
    return entity, person


def _subject(entity: Entity, opens_sentence: bool, rng: random.Random) -> str:
    """How a later sentence speaks of the entity: mostly by name or its distinctive part."""
    if rng.random() < 0.35:
        return entity.name
    if entity.kind == "person":
        first, last = entity.name.split()
        if opens_sentence and rng.random() < 0.3:
            return "She" if first in FEMALE else "He"
        return last
    if entity.kind == "company":
        return entity.name.split()[0]
    if entity.kind == "place":
        return entity.name.split()[1]
    return "The film" if opens_sentence else "the film"


def _say(entity: Entity, template: str, rng: random.Random, value: str, by_name: bool) -> str:
    subject = entity.name if by_name else _subject(entity, template.startswith("{s}"), rng)
    return template.format(s=subject, v=value)


def write_passage(
    entity: Entity,
    attributes: list[str],
    rng: random.Random,
    link: bool = False,
    filler: float = 0.6,
    avoid: dict[str, int] | None = None,
) -> Passage:
    """State `attributes` in order; the first sentence opens with the entity's name.

    `filler` is the chance of a sentence without a fact. `avoid` holds the statements not to use
    again: that is how a rewrite differs from its passage.
    """
    sentences, used = [], {}
    for position, attribute in enumerate(attributes):
        choices = [0, 1] if position == 0 else [0, 1, 2]
        choices = [i for i in choices if not (avoid and avoid.get(attribute) == i)]
        used[attribute] = rng.choice(choices)
        template = STATEMENTS[attribute][used[attribute]]
        sentences.append(_say(entity, template, rng, entity.facts[attribute], position == 0))
    if link and entity.link:
        kind, name = entity.link
        sentence = _say(entity, rng.choice(LINKS[kind]), rng, name, False)
        sentences.insert(rng.randint(1, len(sentences)), sentence)
    if rng.random() < filler:
        sentence = _say(entity, rng.choice(FILLERS[entity.kind]), rng, "", False)
        sentences.insert(rng.randint(1, len(sentences)), sentence)
    return Passage(" ".join(sentences), list(attributes), used, has_link=link)


def write_article(entity: Entity, rng: random.Random) -> None:
    """Spread the entity's facts over passages of four; a person's link is in one of them."""
    attributes = list(entity.facts)
    rng.shuffle(attributes)
    groups = [
        attributes[i : i + FACTS_PER_PASSAGE] for i in range(0, len(attributes), FACTS_PER_PASSAGE)
    ]
    link_at = rng.randrange(len(groups)) if entity.link else -1
    entity.passages = [
        write_passage(entity, group, rng, link=index == link_at)
        for index, group in enumerate(groups)
    ]


def rewrite(entity: Entity, passage: Passage, rng: random.Random) -> str:
    """The passage's facts in the same order, each in another statement."""
    return write_passage(
        entity,
        passage.attributes,
        rng,
        link=passage.has_link,
        filler=0.0,
        avoid=passage.statements,
    ).text


def ask(entity: Entity, attribute: str, rng: random.Random) -> str:
    """A question about one of the entity's facts that names the entity."""
    return rng.choice(QUESTIONS[attribute]).format(s=entity.name)


def ask_two_hop(person: Entity, attribute: str, rng: random.Random) -> str:
    """A question about a person's fact that names only the film, company or place."""
    kind, name = person.link
    return rng.choice(QUESTIONS[attribute]).format(s=ROLES[kind].format(s=name))


def question_answer_list(
    entity: Entity, passage: Passage, rng: random.Random, count: int = 3
) -> list[dict[str, str]]:
    """`count` question-answer pairs about the passage, in its order, as a good annotator writes."""
    chosen = sorted(rng.sample(range(len(passage.attributes)), count))
    pairs = []
    for attribute in (passage.attributes[i] for i in chosen):
        value = entity.facts[attribute]
        full = STATEMENTS[attribute][0].format(s=entity.name, v=value)
        pairs.append(
            {"question": ask(entity, attribute, rng), "answer": value, "full_answer": full}
        )
    return pairs
