import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.metrics import METRICS, answer_presence, extract_answer, mean_scores, normalize, score
from utils.running import InputError

# few words, so that drawn texts overlap, repeat and carry what normalisation removes
WORDS = st.sampled_from(["", *"Orr orr tower the a yes no noanswer old !".split()])
ANY = st.text(st.characters(codec=None), max_size=20)  # halves of characters too
TEXTS = st.lists(WORDS, max_size=5).map(" ".join) | ANY


@pytest.mark.parametrize(
    ("text", "with_cot", "answer"),
    [
        (" Orr Tower. It is old.", False, "Orr Tower"),
        ("Orr, in Vessel", False, "Orr"),
        ("Orr\nQuestion: and", False, "Orr"),
        ("\n Orr Tower", False, "Orr Tower"),
        ("It is old, so the answer is Orr. Then the answer is Pell.", True, "Orr"),
        ("It is old, so the answer is Orr.", False, "It is old"),
        ("Orr is old. No more", True, "Orr is old"),
        ("so the answer is", True, ""),
        ("", True, ""),
    ],
)
def test_the_answer_ends_at_the_first_stop_and_with_cot_begins_after_the_first_marker(
    text, with_cot, answer
):
    assert extract_answer(text, with_cot) == answer


def test_normalised_text_has_no_case_punctuation_article_or_wide_space():
    assert normalize("  The Tower\tof an\nO'Rourke, (a) U.S. theatre ") == (
        "tower of orourke us theatre"
    )


def test_precision_recall_and_f1_count_repeated_words_once_for_each_occurrence():
    scores = score("orr orr tower", "Orr Tower Hill Hill")
    assert scores == pytest.approx({"em": 0, "f1": 4 / 7, "prec": 2 / 3, "recall": 2 / 4})


def test_precision_and_recall_come_from_the_answer_with_the_highest_f1():
    # the first answer has recall 1, the second the better F1 with recall 2/3
    scores = score("old orr tower", ["tower", "orr tower hill"])
    assert scores == pytest.approx({"em": 0, "f1": 2 / 3, "prec": 2 / 3, "recall": 2 / 3})


def test_a_tie_goes_to_the_first_answer():
    narrow, wide = "orr", "orr tower hill bay vessel"  # F1 1/2 both, against three words
    assert score("orr tower x", [narrow, wide])["prec"] == pytest.approx(1 / 3)
    assert score("orr tower x", [wide, narrow])["prec"] == pytest.approx(2 / 3)


def test_exact_match_looks_at_every_answer_even_where_an_earlier_one_ties_on_f1():
    assert score("Orr Tower", ["tower orr", "the Orr tower!"])["em"] == 1


@pytest.mark.parametrize(("prediction", "answer"), [("yes orr", "yes"), ("no", "no tower")])
def test_yes_and_no_score_only_when_equal(prediction, answer):
    assert set(score(prediction, answer).values()) == {0.0}
    assert set(score("Yes!", "yes").values()) == {1.0}


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        *(("", answer, 0) for answer in ("A", "...", ["the", "Orr"], "Orr", "")),
        *(("A.", "A", 1), ("the", "The", 1), ("A", ["The", "A"], 1), ("Orr.", ["A", "Orr"], 1)),
        *(("An", "A", 0), ("A", "A+", 0), ("the", "Orr", 0)),
    ],
)
def test_an_answer_of_which_normalising_leaves_nothing_is_compared_as_it_is(text, answer, right):
    """An empty prediction is never right: it had scored 1 against "A"."""
    assert set(score(extract_answer(text, False), answer).values()) == {right}
    assert score(text, answer)["em"] == answer_presence(text, answer) == right
    assert score("!?", "!?")["em"] == 1  # text that no extraction leaves


@given(TEXTS, st.lists(TEXTS, min_size=1, max_size=4), st.randoms())
def test_scores_of_any_text_are_bounded_and_do_not_depend_on_the_order_of_answers(
    prediction, answers, random
):
    scores = score(prediction, answers)
    assert all(0 <= value <= 1 for value in scores.values())
    assert scores["em"] <= scores["f1"]
    shuffled = score(prediction, random.sample(answers, len(answers)))
    assert (shuffled["em"], shuffled["f1"]) == (scores["em"], scores["f1"])
    assert scores["f1"] == max(score(prediction, one)["f1"] for one in answers)
    assert answer_presence(prediction, answers) in (0.0, 1.0)


@given(ANY, st.booleans())
def test_an_extracted_answer_has_no_stop_and_no_space_around_it(text, with_cot):
    answer = extract_answer(text, with_cot)
    assert answer == answer.strip()
    assert not set(answer) & set(".,\n")


def test_means_are_over_questions_and_none_is_an_error():
    rows = [
        score(text, "orr") | {"answer_presence": answer_presence(text, "orr"), "test_id": index}
        for index, text in enumerate(("orr", "pell"))
    ]
    assert mean_scores(rows) == dict.fromkeys(METRICS, 0.5)
    with pytest.raises(InputError, match="no prediction"):
        mean_scores([])


@pytest.mark.parametrize(
    ("text", "mark", "none"),
    [
        ("the U.S. Army.\nMore", "the U", "the U.S. Army."),
        ("1,000 men", "1", "1,000 men"),
        ("\n Paris, France\nx", "Paris", "Paris, France"),
    ],
)
def test_where_the_answer_is_cut(text, mark, none):
    assert extract_answer(text, False) == mark
    assert extract_answer(text, False, "none") == none


@pytest.mark.parametrize(
    ("text", "answer", "present"),
    [
        ("He joined the U.S. Army, in 1940", "U.S. Army", 1.0),
        ("He joined the army", ["the Navy", "an Army"], 1.0),
        ("It was 1,000 men", "1000", 1.0),
        ("a carpet", "pet", 0.0),
        ("anything", ["the", "..."], 0.0),
        ("", "x", 0.0),
        ("The first letter (of all) is A.", "A", 1.0),
        ('Ann ... has "It".', ["...", "It"], 1.0),
    ],
)
def test_answer_presence_looks_for_whole_words_anywhere(text, answer, present):
    assert answer_presence(text, answer) == present
