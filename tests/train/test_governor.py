"""The governor's measures and bounds, worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from train.config import GovernorConfig
from train.governor import Conduct, Judgement, Prices, conduct, fluency_price, judge, leap, share_kept

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


def at(kl: float) -> Conduct:
    return Conduct(1.0, 0.9, 8.0, kl, topic=0.5)


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


GOOD, BAD = Judgement(True), Judgement(False, ("x",))


def prices(start: Prices, seen: Conduct, before: Conduct, *, leapt: float = 0.0, judged: Judgement = GOOD) -> Prices:
    base = Conduct(1.0, 0.9, 8.0, 0.0, topic=0.5)
    return start.after(seen, before, baseline=base, leapt=leapt, judged=judged, config=GovernorConfig())


def test_the_topics_price_follows_its_shortfall_by_hand() -> None:
    def topic(share: float) -> Conduct:
        return replace(at(2.0), topic=share)

    # aim 1.1 * 0.5 = 0.55; 0.45 seen; 6 a unit of shortfall
    short = prices(Prices(topic=0.5), topic(0.45), topic(0.45))
    assert short.topic == pytest.approx(0.5 + 6 * 0.10)
    # above the aim it falls, but never below where it began
    assert prices(short, topic(0.6), topic(0.6)).topic == pytest.approx(1.1 - 0.3)
    assert prices(short, topic(0.95), topic(0.95)).topic == 0.5
    # one iteration ahead along the trend: 0.45 after 0.35 makes 0.55, nothing is short; 0.45 after 0.5 makes 0.4
    assert prices(Prices(topic=0.7), topic(0.45), topic(0.35)).topic == pytest.approx(0.7)
    assert prices(Prices(topic=0.7), topic(0.45), topic(0.5)).topic == pytest.approx(0.7 + 6 * 0.15)


@pytest.mark.parametrize(
    ("kl", "leapt", "factor"),
    [
        (8.1, 0.0, 1.0),  # taken back
        (4.0, 0.5, 2.5 / 2.8460),  # 2 + 0.5 roots of nats ahead, of sqrt(0.9 * 9)
        (1.0, 1.0, 2.0 / 2.8460),
        (1.0, 0.5, 1 / 1.5),  # 1.5 / 2.8460 is less than an iteration may change
        (4.0, 1.0, 3.0 / 2.8460),
        (6.25, 2.5, 1.5),  # 5.0 / 2.8460 more
        (4.0, -0.1, 1.9 / 2.8460),  # it came nearer
        (-0.3, -0.2, 1 / 1.5),
    ],
)
def test_the_kls_price_follows_where_the_policy_is_going_by_hand(kl: float, leapt: float, factor: float) -> None:
    assert prices(Prices(kl=0.5), at(kl), at(0.0), leapt=leapt).kl == pytest.approx(0.5 * factor, abs=1e-4)
    # what was never cheaper, or is dear by a breach, does not rise without one
    for dear in (1.0, 1.5):
        assert prices(Prices(kl=dear), at(kl), at(0.0), leapt=leapt).kl == pytest.approx(
            dear * min(factor, 1.0), abs=1e-4
        )


def test_the_kls_price_comes_back_to_where_it_began_and_no_further() -> None:
    assert prices(Prices(kl=0.9), at(6.25), at(0.0), leapt=2.5).kl == 1.0


def test_a_breach_makes_the_kl_dearer_unless_it_has_a_price_of_its_own() -> None:
    # wherever the policy stands: too far, or repeating itself
    assert prices(Prices(kl=0.8), at(1.0), at(0.9), leapt=0.1, judged=BAD).kl == pytest.approx(1.2)
    assert prices(Prices(kl=1.5), at(9.2), at(9.1), leapt=0.1, judged=BAD).kl == pytest.approx(2.25)
    # of 8.0 and 0.5, at most 1.5 times and at least 0.8 times
    strange, strays = replace(at(4.0), perplexity=12.1), replace(at(4.0), topic=0.39)
    slow = 2.1 / 2.8460
    for seen, others, factor in ((strange, (), slow), (strays, (), slow), (strange, ("KL",), 1.5)):
        judged = Judgement(False, ("its own", *others))
        assert prices(Prices(kl=0.8), seen, at(0.9), leapt=0.1, judged=judged).kl == pytest.approx(
            0.8 * factor, abs=1e-4
        )
    both = replace(strange, topic=0.39)
    assert prices(Prices(kl=1.0), both, at(0.9), leapt=0.9, judged=Judgement(False, ("a", "b"))).kl == 1.0


def test_perplexity_that_has_no_price_makes_the_kl_dearer_where_its_bound_breaks() -> None:
    strange, judged = replace(at(4.0), perplexity=12.1), Judgement(False, ("perplexity",))
    unpriced = GovernorConfig(fluency_rate=0.0)
    after = Prices().after(strange, at(0.9), baseline=at(0.0), leapt=0.1, judged=judged, config=unpriced)
    assert after.kl == pytest.approx(1.5)


def test_nothing_makes_distance_free() -> None:
    assert prices(Prices(kl=0.3), at(0.5), at(0.4), leapt=0.1).kl == 0.25


def test_a_governor_that_is_off_keeps_the_prices() -> None:
    off, base = GovernorConfig(enabled=False), Conduct(1.0, 0.9, 8.0, 0.0)
    assert Prices().after(at(1.0), base, baseline=base, leapt=0.1, judged=BAD, config=off) == Prices()


def test_a_leap_is_measured_in_roots_of_nats() -> None:
    assert leap(at(4.0), at(9.0)) == pytest.approx(1.0)
    assert leap(at(-0.2), at(6.25)) == pytest.approx(2.5)
    assert leap(at(4.0), at(1.0)) == pytest.approx(-1.0)


def test_what_is_strange_to_the_base_is_priced_as_long_as_it_is() -> None:
    config, base = GovernorConfig(), Conduct(1.0, 0.9, 8.0, 0.0)

    def price(ratio: float, **changes: float) -> float:
        changed = config.model_copy(update=changes)
        return fluency_price(replace(base, perplexity=8.0 * ratio), base, changed)

    # 0.3 nats beyond the aim of 1.15; at the aim and below it nothing; 3 nats beyond it the dearest
    assert price(1.15 * math.exp(0.3)) == pytest.approx(0.3)
    assert price(1.15 * math.exp(0.3), fluency_rate=2.0) == pytest.approx(0.6)
    assert (price(1.15), price(0.7), price(25.0)) == (0.0, 0.0, 1.0)
    assert price(25.0, enabled=False) == 0.0


def test_a_topics_share_is_told_to_about_a_twentieth_and_its_price_has_a_top() -> None:
    config, base = GovernorConfig(), Conduct(1.0, 0.9, 8.0, 0.0, topic=0.2)
    # both below 0.8 of the base's share; 0.045 and 0.051 short of it
    assert judge(replace(base, topic=0.155), base, config).within
    assert not judge(replace(base, topic=0.149), base, config).within
    lost = replace(at(2.0), topic=0.0)
    # 6 times 0.55 more than 2.0 would be 5.3
    assert prices(Prices(topic=2.0), lost, lost).topic == 3.0
