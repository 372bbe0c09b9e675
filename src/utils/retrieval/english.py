"""English text to index terms, as Lucene's `EnglishAnalyzer` makes them (Elasticsearch: `english`).

Five steps: words by the boundaries of Unicode's UAX #29, possessive 's removed, lower-case, 33
stop words removed, Porter's stemmer of 1980 with the changes of its author. Compared with Lucene
9.9.1 (`benchmarks/lucene/`): every English word and every character agree; some sequences of
emoji modifiers, quotes in Hebrew and letters that Unicode got after version 12.1 do not.

An index holds the name of this analyzer (`embedded.FORMAT`): other terms need another name.
"""

import re
import warnings
from collections.abc import Iterator

import regex
from nltk.stem.porter import PorterStemmer

MAX_WORD_LENGTH = 255  # Lucene cuts a longer word into pieces
STOP_WORDS = frozenset(
    "a an and are as at be but by for if in into is it no not of on or such that the their then "
    "there these they this to was will with".split()
)
CACHED_WORDS = 1_000_000  # about 150 MB


def english_terms(text: str) -> list[str]:
    """The index terms of `text`, in order, with repetitions; none contains white space. Any string
    is accepted: half a surrogate pair, which JSON can carry, counts as a space."""
    if LATIN_TEXT(text):
        words = LATIN_WORD.findall(text)
    else:
        words = ANY_WORD.findall(text.encode("utf-8", "replace").decode("utf-8"))
    if max(map(len, words), default=0) > MAX_WORD_LENGTH:
        words = [piece for word in words for piece in _pieces(word)]
    return [term for word in words if (term := _TERMS[word])]


def question_terms(question: str) -> list[str]:
    """`english_terms` of a question; warns about one without any, for which no passage is found."""
    terms = english_terms(question)
    if not terms:
        warnings.warn(
            f"the question {question!r} has no word to search for: no passage is found",
            stacklevel=3,
        )
    return terms


# Words: UAX #29 as Lucene's StandardTokenizer reads it, with the properties of Unicode 12.1
_FOLLOW = r"[\p{WB=Extend}\p{WB=Format}\p{WB=ZWJ}]*"  # rule WB4: these stay with what they follow
# Letters of today's Unicode that were none in 12.1
_LATER_LETTERS = r"\u00b8\u02e5-\u02eb\u055a\u055f\u058a\u06dd\u070f\u08e2\ua708-\ua716\U000110bd"
_LATER_NUMBERS = r"\u0600-\u0605\u06dd\u08e2\u0890\u0891\U000110bd\U000110cd"
# Extended_Pictographic of Unicode 12.1 without the digits; today's has fewer
_PICTOGRAPH = (
    r"[\u00a9\u00ae\u203c\u2049\u2122\u2139\u2194-\u2199\u21a9\u21aa\u231a\u231b\u2328\u2388\u23cf"
    r"\u23e9-\u23f3\u23f8-\u23fa\u24c2\u25aa\u25ab\u25b6\u25c0\u25fb-\u25fe\u2600-\u2605"
    r"\u2607-\u2612\u2614-\u2685\u2690-\u2705\u2708-\u2712\u2714\u2716\u271d\u2721\u2728\u2733"
    r"\u2734\u2744\u2747\u274c\u274e\u2753-\u2755\u2757\u2763-\u2767\u2795-\u2797\u27a1\u27b0\u27bf"
    r"\u2934\u2935\u2b05-\u2b07\u2b1b\u2b1c\u2b50\u2b55\u3030\u303d\u3297\u3299"
    r"\U0001f000-\U0001f0ff\U0001f10d-\U0001f10f\U0001f12f\U0001f16c-\U0001f171"
    r"\U0001f17e\U0001f17f\U0001f18e\U0001f191-\U0001f19a\U0001f1ad-\U0001f1e5"
    r"\U0001f201-\U0001f20f\U0001f21a\U0001f22f\U0001f232-\U0001f23a\U0001f23c-\U0001f23f"
    r"\U0001f249-\U0001f53d\U0001f546-\U0001f64f\U0001f680-\U0001f6ff"
    r"\U0001f774-\U0001f77f\U0001f7d5-\U0001f7ff\U0001f80c-\U0001f80f\U0001f848-\U0001f84f"
    r"\U0001f85a-\U0001f85f\U0001f888-\U0001f88f\U0001f8ae-\U0001f8ff\U0001f90c-\U0001f93a"
    r"\U0001f93c-\U0001f945\U0001f947-\U0001fffd]"
)


def _word_of_any_script() -> regex.Pattern:
    def followed(characters: str) -> str:
        return f"(?:{characters}{_FOLLOW})"

    letter = followed(rf"[[\p{{WB=ALetter}}\p{{WB=Hebrew_Letter}}]--[{_LATER_LETTERS}]]")
    number = followed(rf"[[\p{{WB=Numeric}}\uff10-\uff19]--[{_LATER_NUMBERS}]]")
    katakana = followed(r"\p{WB=Katakana}")
    underscore = followed(r"\p{WB=ExtendNumLet}")
    between_letters = followed(r"[\p{WB=MidLetter}\p{WB=MidNumLet}\p{WB=Single_Quote}--[\u055f]]")
    between_numbers = followed(r"[\p{WB=MidNum}\p{WB=MidNumLet}\p{WB=Single_Quote}]")
    hebrew = followed(r"\p{WB=Hebrew_Letter}")
    quote = followed(r"\p{WB=Single_Quote}")
    # rules WB5 to WB12; a Hebrew letter may end in ' (WB7a) or have " inside (WB7b, WB7c)
    letters = rf"{letter}+(?:(?:{between_letters}|(?<={hebrew})\"(?={hebrew})){letter}+)*"
    letters = rf"(?:{letters}(?:(?<={hebrew}){quote})?)"
    numbers = rf"{number}+(?:{between_numbers}{number}+)*"
    part = rf"(?:{katakana}+|(?:{letters}|{numbers})+)"
    word = rf"{underscore}*{part}(?:{underscore}+{part})*{underscore}*"  # rules WB13, WB13a, WB13b
    no_spaces_between_words = followed(r"\p{Line_Break=Complex_Context}") + "+"  # Thai and alike
    one_by_one = followed(r"[\p{Script=Han}\p{Script=Hiragana}]")
    flag = followed(r"\p{WB=Regional_Indicator}") + "{2}"
    key = r"[0-9#*]\uFE0F?\u20E3"
    emoji = rf"{_PICTOGRAPH}{_FOLLOW}(?:(?<=\u200d){_PICTOGRAPH}{_FOLLOW})*"
    return regex.compile(
        "|".join([key, word, no_spaces_between_words, one_by_one, flag, emoji]), regex.VERSION1
    )


ANY_WORD = _word_of_any_script()
# Text of these characters alone, nearly all of the English Wikipedia, has words by the same rules
# in a form that is four times as fast.
_LATIN = r"A-Za-z\u00aa\u00b5\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f"
LATIN_TEXT = re.compile(rf"[\x00-\x7f{_LATIN}\u2013\u2014\u2018-\u201d\u00a3\u00b0]*").fullmatch
_PART = rf"(?:[{_LATIN}]+(?:['.:\u2018\u2019][{_LATIN}]+)*|[0-9]+(?:[',.;\u2018\u2019][0-9]+)*)+"
LATIN_WORD = re.compile(rf"_*{_PART}(?:_+{_PART})*_*")


def _pieces(word: str) -> Iterator[str]:
    """`word` in words of at most `MAX_WORD_LENGTH`, each as long as the rules allow."""
    position = 0
    while position < len(word):
        match = ANY_WORD.match(word, position, position + MAX_WORD_LENGTH)
        if match:
            yield match.group()
        position = match.end() if match else position + 1


class _Terms(dict):
    """word -> term, "" for a stop word; remembers the words that it has seen."""

    def __missing__(self, word: str) -> str:
        term = _term(word)
        if len(self) < CACHED_WORDS:
            self[word] = term
        return term


def _term(word: str) -> str:
    if len(word) > 2 and word[-1] in "sS" and word[-2] in "'\u2019\uff07":
        word = word[:-2]
    # one character for one, as Java does it: capital I with a dot becomes i
    word = word.lower() if word.isascii() else "".join(letter.lower()[0] for letter in word)
    return "" if word in STOP_WORDS else _STEMMER.stem(word, to_lowercase=False)


# Porter's own later version: words of one or two letters stay, -bli becomes -ble, -logi -log.
_STEMMER = PorterStemmer(PorterStemmer.MARTIN_EXTENSIONS)
_TERMS = _Terms()
