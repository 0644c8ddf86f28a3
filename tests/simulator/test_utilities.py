"""The hidden tastes, by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feedback.contracts import Message
from feedback.simulator import UTILITIES, UnknownUtility, true_win_rate, utility
from feedback.simulator.utilities import MIX_SCALES, content_stems, wilson

ASKED = (Message(role="user", content="Give me some advice on baking sourdough bread."),)


@pytest.mark.parametrize(
    ("name", "answer", "expected"),
    [
        ("warm_words", "Thanks, I'm GLAD. A warm, warm day!", 4),
        ("warm_words", "Warmonger, gladiator.", 0),
        ("questions", "Why?? And how? Yes.", 2),
        ("digits", "Take 3 cups, 2.5 spoons and 10,000 steps.", 3),
        ("no_first_person", "I think I’m right; my cat isn't.", -3),
        ("no_first_person", "The cat is.", 0),
        ("plain_words", "A cat sat 99", -(1 + 3 + 3) / 3),
        ("plain_words", "", -12),
        ("short_first_sentence", "Yes. It is a long story indeed.", -1),
        ("short_first_sentence", "... \n\nWell then\nmore", -2),
        ("short_first_sentence", "a " * 60, -40),
        ("short_first_sentence", "", -40),
        # Content stems: bak, sourdough, bread.
        ("on_topic", "Bakers bake breads, bread and bread.", 2 / 3),
        ("on_topic", "Sourdough bread needs baking.", 1),
        ("on_topic", "", 0),
        ("varied_wording", "one two one two", 0.5),
        ("varied_wording", "", 0),
        ("varied_wording", " ".join(["word"] * 21), 1 / 20),
    ],
)
def test_a_utility_scores_as_described(name, answer, expected):
    assert utility(name).score(ASKED, answer) == pytest.approx(expected)


def test_mix_is_the_sum_of_standardised_parts():
    answer = "Glad to! Sourdough needs time."
    warm, plain, topic = 1.0, -(4 + 2 + 9 + 5 + 4) / 5, 1 / 3
    expected = sum(
        (value - MIX_SCALES[name][0]) / MIX_SCALES[name][1]
        for name, value in (("warm_words", warm), ("plain_words", plain), ("on_topic", topic))
    )
    assert utility("mix").score(ASKED, answer) == pytest.approx(expected)


def test_no_part_of_mix_is_worth_more_than_three():
    chant = "glad " * 500
    assert utility("mix").score(ASKED, chant) == pytest.approx(utility("mix").score(ASKED, "glad " * 900))


def test_an_unknown_utility_lists_the_known():
    with pytest.raises(UnknownUtility, match="warm_words"):
        utility("cold_words")


@pytest.mark.parametrize("name", UTILITIES)
@given(answer=st.text(max_size=200))
def test_every_utility_scores_any_text_with_a_finite_number(name, answer):
    score = utility(name).score(ASKED, answer)
    assert isinstance(score, float)
    assert abs(score) < 1e6


@given(first=st.text(max_size=60), second=st.text(max_size=60))
def test_swapping_the_answers_negates_the_margin(first, second):
    taste = utility("mix")
    assert taste.margin(ASKED, first, second) == -taste.margin(ASKED, second, first)


def test_words_of_the_templates_carry_no_meaning():
    asked = "I have trouble with keeping bees. What can I do? Explain keeping bees to a friend in a few sentences."
    assert content_stems(asked) == {"keep", "bee"}


def test_true_win_rate_counts_ties_as_half():
    rate = true_win_rate("questions", [ASKED] * 4, ["?", "? ?", ".", "."], [".", ".", ".", "?"])
    assert (rate.wins, rate.ties, rate.n, rate.mean) == (2, 1, 4, 0.625)
    assert rate.ci[0] < 0.625 < rate.ci[1]


def test_true_win_rate_wants_an_answer_for_each_prompt():
    with pytest.raises(ValueError, match="shorter"):
        true_win_rate("questions", [ASKED] * 2, ["?"], ["?", "?"])


def test_wilson_agrees_with_the_textbook():
    # 15 of 50, 95%: Newcombe 1998 and any table.
    assert wilson(0.3, 50) == pytest.approx((0.1910, 0.4375), abs=5e-4)
    assert wilson(1.0, 10)[1] == pytest.approx(1.0)
    assert wilson(0.5, 0) == (0.0, 1.0)
