import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.metrics import METRICS, answer_presence, extract_answer, mean_scores, normalize, score
from utils.running import InputError

# few words, so that drawn texts overlap, repeat and carry what normalisation removes
WORDS = st.sampled_from(["", *"Orr orr tower the a yes no noanswer old !".split()])
ANY = st.text(st.characters(codec=None), max_size=20)  # halves of characters too
TEXTS = st.lists(WORDS, max_size=5).map(" ".join) | ANY


@pytest.mark.parametrize("text, with_cot, answer", [
    (" Orr Tower. It is old.", False, "Orr Tower"), ("Orr, in Vessel", False, "Orr"),
    ("1,000 men", False, "1"), ("Orr\nQuestion: and", False, "Orr"),
    ("\n Orr Tower", False, "Orr Tower"),
    ("It is old, so the answer is Orr. Then the answer is Pell.", True, "Orr"),
    ("It is old, so the answer is Orr.", False, "It is old"),
    ("Orr is old. No more", True, "Orr is old"), ("so the answer is", True, ""), ("", True, ""),
    ("the U.S. Army.\nMore", None, "the U.S. Army."),  # cut at the line's end alone
    ("1,000 men", None, "1,000 men"), ("\n Paris, France\nx", None, "Paris, France"),
])  # fmt: skip
def test_an_answer_ends_at_the_first_stop_and_with_cot_begins_at_the_marker(text, with_cot, answer):
    assert extract_answer(text, with_cot, "none" if with_cot is None else "mark") == answer


def test_normalised_text_has_no_case_punctuation_article_or_wide_space():
    text = "  The Tower\tof an\nO'Rourke, (a) U.S. theatre "
    assert normalize(text) == "tower of orourke us theatre"


@pytest.mark.parametrize("prediction, answer, em, f1, prec, recall", [
    # a repeated word counts once for each occurrence
    ("orr orr tower", "Orr Tower Hill Hill", 0, 4 / 7, 2 / 3, 2 / 4),
    # of several answers that with the highest F1: the first has recall 1; a tie: the first
    ("old orr tower", ["tower", "orr tower hill"], 0, 2 / 3, 2 / 3, 2 / 3),
    ("orr tower x", ["orr", "orr tower hill bay vessel"], 0, 1 / 2, 1 / 3, 1),
    ("orr tower x", ["orr tower hill bay vessel", "orr"], 0, 1 / 2, 2 / 3, 2 / 5),
    ("Orr Tower", ["tower orr", "the Orr tower!"], 1, 1, 1, 1),  # but exact match looks at all
    *((*pair, 0, 0, 0, 0) for pair in (("yes orr", "yes"), ("no", "no tower"))),
    ("Yes!", "yes", 1, 1, 1, 1),
    # silence is never right; an answer that normalising empties is compared as it is
    *(("", answer, 0, 0, 0, 0) for answer in ("A", "...", ["the", "Orr"], "Orr", "")),
    *((*pair, 0, 0, 0, 0) for pair in (("An", "A"), ("A", "A+"), ("the", "Orr"))),
    *((*pair, 1, 1, 1, 1) for pair in (("A.", "A"), ("the", "The"), ("!?", "!?"))),
    *((one, ["The", "A", "Orr"], 1, 1, 1, 1) for one in ("A", "Orr.")),
])  # fmt: skip
def test_a_prediction_is_scored_against_its_best_answer(prediction, answer, em, f1, prec, recall):
    scores = {"em": em, "f1": f1, "prec": prec, "recall": recall}
    assert score(prediction, answer) == pytest.approx(scores)


@given(TEXTS, st.lists(TEXTS, min_size=1, max_size=4), st.randoms())
def test_scores_are_bounded_and_do_not_depend_on_the_order_of_answers(prediction, answers, random):
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


@pytest.mark.parametrize("text, answer, present", [
    ("He joined the U.S. Army, in 1940", "U.S. Army", 1.0),
    ("He joined the army", ["the Navy", "an Army"], 1.0), ("It was 1,000 men", "1000", 1.0),
    ("a carpet", "pet", 0.0), ("anything", ["the", "..."], 0.0),
    *(("", answer, 0.0) for answer in ("x", "A", ["...", "A"])),
    ("The first letter (of all) is A.", "A", 1.0), ("Ann ... is", ["the", "..."], 1.0),
])  # fmt: skip
def test_answer_presence_looks_for_whole_words_anywhere(text, answer, present):
    assert answer_presence(text, answer) == present
