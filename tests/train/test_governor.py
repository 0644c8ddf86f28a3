"""The governor's measures and bounds, worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from train.config import GovernorConfig
from train.governor import Conduct, Judgement, Prices, choose, conduct, judge, share_kept

BASE = Conduct(distinct_within=1.0, distinct_across=0.9, perplexity=8.0, kl=0.0)


def test_conduct_of_hand_worked_answers() -> None:
    # bigrams: (1,2)(2,1)(1,2) -> 2 of 3; (1,2) -> 1 of 1; together 2 of 4
    seen = conduct([[1, 2, 1, 2], [1, 2]], [[math.log(0.5)] * 4, [math.log(0.25)] * 2], kl=3.0)
    assert seen.distinct_within == pytest.approx((2 / 3 + 1) / 2)
    assert seen.distinct_across == pytest.approx(0.5)
    assert seen.perplexity == pytest.approx(2 ** ((4 * 1 + 2 * 2) / 6))
    assert seen.kl == 3.0


def test_answers_of_one_token_repeat_nothing() -> None:
    assert conduct([[1]], [[-1.0]], 0.0).distinct_within == 1.0


@pytest.mark.parametrize(
    ("seen", "word"),
    [
        (Conduct(0.79, 0.9, 8.0, 0.0), "within"),
        (Conduct(1.0, 0.71, 8.0, 0.0), "across"),
        (Conduct(1.0, 0.9, 12.1, 0.0), "perplexity"),
        (Conduct(1.0, 0.9, 8.0, 9.1), "KL"),
        (Conduct(1.0, 0.9, 8.0, 0.0, topic=0.79), "wording"),
    ],
)
def test_each_bound_is_named_when_it_breaks(seen: Conduct, word: str) -> None:
    judgement = judge(seen, BASE, GovernorConfig())
    assert not judgement.within
    assert len(judgement.breaches) == 1
    assert word in judgement.breaches[0]
    assert judge(seen, BASE, GovernorConfig(enabled=False)).within


def test_on_the_bounds_is_within() -> None:
    assert judge(Conduct(0.8, 0.72 + 1e-9, 12.0, 9.0), BASE, GovernorConfig()).within


def test_a_base_that_never_takes_up_the_wording_binds_no_policy_to_it() -> None:
    silent = Conduct(1.0, 0.9, 8.0, 0.0, topic=0.02)
    assert judge(Conduct(1.0, 0.9, 8.0, 0.0, topic=0.0), silent, GovernorConfig()).within
    talking = Conduct(1.0, 0.9, 8.0, 0.0, topic=0.4)
    assert judge(Conduct(1.0, 0.9, 8.0, 0.0, topic=0.34), talking, GovernorConfig()).within
    assert not judge(Conduct(1.0, 0.9, 8.0, 0.0, topic=0.31), talking, GovernorConfig()).within


def test_the_best_within_all_bounds_is_chosen() -> None:
    good, bad = Judgement(True), Judgement(False, ("x",))
    assert choose([0.0, 1.0, 2.0], [good, good, good]) == 2
    assert choose([0.0, 1.0, 9.0], [good, good, bad]) == 1
    # after a breach a part of the step is taken back: what follows is within on its own account
    assert choose([0.0, 1.0, 9.0, 3.0], [good, good, bad, good]) == 3
    assert choose([1.0, 1.0], [good, good]) == 0
    assert choose([9.0, 9.0], [bad, bad]) == 0


def at(kl: float) -> Conduct:
    return Conduct(1.0, 0.9, 8.0, kl)


@pytest.mark.parametrize(
    ("before", "seen", "alone", "beside"),
    [
        (4.0, 16.0, 0.4230, 0.4230),  # (sqrt(0.9 * 9) - 2) / (4 - 2)
        (4.0, 9.5, 0.7818, 0.5),  # (2.8460 - 2) / (3.0822 - 2)
        (-0.2, 9.1, 0.9, 0.5),  # 2.8460 / 3.0166 is more than ever stays
        (8.5, 12.0, 0.25, 0.25),  # begun past the aim
        (4.0, 8.9, 0.5, 0.5),  # something else was broken
    ],
)
def test_of_a_step_past_the_kl_bound_stays_what_ends_before_it(
    before: float, seen: float, alone: float, beside: float
) -> None:
    config = GovernorConfig()
    assert config.max_kl == 9.0
    for breaches, share in ((("KL",), alone), (("KL", "perplexity"), beside)):
        assert share_kept(at(before), at(seen), Judgement(False, breaches), config) == pytest.approx(share, abs=1e-4)


def test_prices_follow_shortfalls_by_hand() -> None:
    config = GovernorConfig()
    base = Conduct(1.0, 0.9, 8.0, 0.0, topic=0.5)
    good, bad = Judgement(True), Judgement(False, ("x",))
    # aim 1.1 * 0.5 = 0.55; 0.45 seen; 6 a unit of shortfall
    low = Conduct(1.0, 0.9, 8.0, 2.0, topic=0.45)
    short = Prices(topic=0.5).after(low, low, base, good, config)
    assert short.topic == pytest.approx(0.5 + 6 * 0.10)
    assert (short.fluency, short.kl) == (0.0, 1.0)
    # above the aim it falls, but never below where it began
    fine, high = Conduct(1.0, 0.9, 8.0, 2.0, topic=0.6), Conduct(1.0, 0.9, 8.0, 2.0, topic=0.95)
    assert short.after(fine, fine, base, good, config).topic == pytest.approx(1.1 - 0.3)
    assert short.after(high, high, base, good, config).topic == 0.5
    # one iteration ahead along the trend: 0.45 after 0.35 makes 0.55, nothing is short; 0.45 after 0.5 makes 0.4
    assert Prices(topic=0.7).after(low, replace(low, topic=0.35), base, good, config).topic == pytest.approx(0.7)
    assert Prices(topic=0.7).after(low, base, base, good, config).topic == pytest.approx(0.7 + 6 * 0.15)
    # perplexity 8 * 1.15 * e^0.3: 0.3 nats beyond the aim
    odd = Conduct(1.0, 0.9, 8 * 1.15 * math.exp(0.3), 2.0, topic=0.55)
    strange = Prices(topic=0.5).after(odd, odd, base, bad, config)
    assert strange.fluency == pytest.approx(0.3)
    assert strange.kl == 1.5
    assert strange.after(base, base, base, good, config).fluency == pytest.approx(0.3 - math.log(1.15))
    assert strange.after(base, base, base, bad, config).kl == pytest.approx(2.25)
    assert Prices().after(base, base, base, bad, GovernorConfig(enabled=False)) == Prices()
