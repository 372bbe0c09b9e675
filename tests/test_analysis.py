"""Text to terms, against what Lucene's EnglishAnalyzer gives and what its documentation says."""

# ruff: noqa: RUF001 - the text is meant as it is
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.retrieval.english import ANY_WORD, LATIN_TEXT, LATIN_WORD, english_terms


def test_terms_are_those_of_lucene():
    stored = (Path(__file__).parent / "data" / "lucene_english.json").read_text(encoding="utf-8")
    texts = json.loads(stored)["texts"]
    assert len(texts) > 1000
    assert [(text, terms) for text, terms in texts if english_terms(text) != terms] == []


@pytest.mark.parametrize("text, terms", [
    ("The cat's hat, the dogs' bowls", "cat hat dog bowl"), ("JOHN’S and O'Neil's", "john o'neil"),
    ("1,000.50 people at 12:30", "1,000.50 peopl 12 30"), ("wi-fi e-mail C++", "wi fi e mail c"),
    ("the U.S. Army, x_1 and _y_", "u. armi x_1 _y_"), ("half \ud83d a pair", "half pair"),
    ("café Łódź ÉTÉ İ ΣΟΦΟΣ", "café łódź été i σοφοσ"), ("I am 😀 👍🏽 ok", "i am 😀 👍🏽 ok"),
    ("possibly psychology geology", "possibl psycholog geologi"), ("as us is by", "us"),
    ("running ponies relational", "run poni relat"), ("?! ... ()", ""),
    ("中国 ひら カタカナ", "中 国 ひ ら カタカナ"),
])  # fmt: skip
def test_documented_behaviour(text, terms):
    assert english_terms(text) == terms.split()


@given(st.text(st.characters(codec=None), max_size=300))
def test_any_text_gives_terms_without_white_space(text):
    for term in english_terms(text):
        assert term and len(term) <= 255 and not set(term) & set(" \t\n\r\f\v")


@given(st.text("abcXYZsS'’‘.,;:_-\" 0189–éÉß£°()“”ı\n", max_size=40))
def test_both_word_patterns_agree_on_latin_text(text):
    assert LATIN_TEXT(text)
    assert LATIN_WORD.findall(text) == ANY_WORD.findall(text)


def test_a_long_word_is_cut_as_lucene_cuts_it():
    assert [len(term) for term in english_terms("a" * 600)] == [255, 255, 90]
