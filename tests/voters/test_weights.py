from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from feedback.config import VotersConfig
from feedback.voters import Ballots, vote_weights, voter_weights
from feedback.voters.ballots import A, B
from feedback.voters.weights import leverage_scales
from tests.voters.elections import Voter, always_left, coin, election, honest, promoter

CONFIG = VotersConfig()
CROWD: dict[str, Voter] = {f"v{number:02}": honest(0.55) for number in range(40)}


def mean(weights: dict[str, float], names: str) -> float:
    return float(np.mean([weight for name, weight in weights.items() if name.startswith(names)]))


def test_honest_voters_count_nearly_whole() -> None:
    weights = voter_weights(election(CROWD, 40), CONFIG)
    assert min(weights.values()) > 0.8
    assert mean(weights, "v") > 0.98


@pytest.mark.parametrize(
    ("kind", "left"), [(always_left, 0.02), (promoter, 0.1), (coin, 0.3)], ids=["left", "promoter", "coin"]
)
def test_the_unreliable_count_little_and_the_honest_beside_them_whole(kind: Voter, left: float) -> None:
    weights = voter_weights(election({**CROWD, **{f"z{n}": kind for n in range(4)}}, 60, gold=0.15), CONFIG)
    assert mean(weights, "z") < left
    assert mean(weights, "v") > 0.95


def test_whoever_fights_an_adapter_counts_as_little_as_who_promotes_it() -> None:
    weights = voter_weights(election({**CROWD, "z": honest(0.0)}, 60), CONFIG)
    assert weights["z"] < 0.1


def test_a_single_vote_is_hardly_held_against_anybody() -> None:
    weights = voter_weights(election({**CROWD, "z": always_left}, 1), CONFIG)
    assert min(weights.values()) > 0.8  # the least is somebody's only vote, on a planted pair, and wrong


def test_haste_counts_against_a_voter_only_where_others_take_their_time() -> None:
    hurried, patient = election({"z": honest(0.55)}, 40, after_ms=50), election(CROWD, 40)
    among_patient = voter_weights(joined(patient, hurried), CONFIG)
    everybody = voter_weights(election({**CROWD, "z": honest(0.55)}, 40, after_ms=50), CONFIG)
    assert among_patient["z"] < 0.2
    assert everybody["z"] > 0.9


def test_patience_among_the_hasty_is_no_offence_and_votes_without_times_say_nothing() -> None:
    patient, hurried = election({"z": honest(0.55)}, 40), election(CROWD, 40, after_ms=50)
    assert voter_weights(joined(hurried, patient), CONFIG)["z"] > 0.9
    imported = election({f"i{number}": honest(0.55) for number in range(400)}, 1, after_ms=0)
    simulated = election(CROWD, 40, after_ms=50)
    assert mean(voter_weights(joined(imported, simulated), CONFIG), "v") > 0.98


def test_planted_pairs_weigh_nothing() -> None:
    ballots = election(CROWD, 20, gold=0.3)
    weights = vote_weights(ballots, CONFIG)
    assert weights[ballots.gold >= 0].max() == 0
    assert weights[ballots.gold < 0].min() > 0.5


def test_repeats_on_one_prompt_share_the_weight_of_three() -> None:
    ballots = election({"v": honest(0.5)}, 12, gold=0.0)
    repeated = replace(ballots, prompt=np.zeros(12, dtype=np.int64))
    assert vote_weights(repeated, CONFIG).sum() == pytest.approx(3 * vote_weights(ballots, CONFIG)[0], abs=1e-3)


def test_weights_can_be_switched_off() -> None:
    ballots = election({"z": always_left, **CROWD}, 30)
    assert set(voter_weights(ballots, VotersConfig(weigh=False)).values()) == {1.0}


def test_no_votes_no_weights() -> None:
    assert voter_weights(Ballots.of([]), CONFIG) == {}
    assert len(vote_weights(Ballots.of([]), CONFIG)) == 0


def test_a_voter_with_half_of_all_votes_is_held_to_twice_an_equal_share() -> None:
    busy = election({"v00": honest(0.55)}, 390, gold=0.0)
    ballots = joined(busy, election({name: CROWD[name] for name in list(CROWD)[1:]}, 10, gold=0.0))
    weights = vote_weights(ballots, CONFIG)
    totals = np.bincount(ballots.voter, weights)
    assert totals[0] / totals.sum() == pytest.approx(2 / 40, rel=0.02)


def test_few_voters_are_not_capped() -> None:
    busy = election({"v00": honest(0.55)}, 90, gold=0.0)
    ballots = joined(busy, election({"v01": honest(0.55)}, 10, gold=0.0))
    assert vote_weights(ballots, CONFIG).min() > 0.9


@pytest.mark.parametrize(
    ("totals", "share", "expected"),
    [
        ([1, 1, 1, 1], 0.25, [1, 1, 1, 1]),
        ([4, 1, 1, 1, 1], 0.4, [2 / 3, 1, 1, 1, 1]),  # 4 L = 0.4 (4 + 4 L): 8/3 of 20/3
        ([9, 9, 1, 1, 1], 0.3, [0.25, 0.25, 1, 1, 1]),  # L = 0.3 (3 + 2 L): 2.25
        ([8, 4, 2], 0.1, [0.25, 0.5, 1]),  # nobody can have so little: all alike
        ([0, 5, 5], 0.5, [1, 1, 1]),
        ([0, 0], 0.5, [1, 1]),
    ],
)
def test_scales_cut_the_heaviest_to_the_share(totals: list[float], share: float, expected: list[float]) -> None:
    assert leverage_scales(np.array(totals, dtype=float), share) == pytest.approx(expected)


@given(
    totals=st.lists(st.floats(0, 1e6).filter(lambda t: t == 0 or t > 1e-6), min_size=1, max_size=40),
    share=st.floats(0.01, 1),
)
@settings(deadline=None)
def test_nobody_has_more_than_the_share_and_nobody_gains(totals: list[float], share: float) -> None:
    given_totals = np.array(totals)
    scales = leverage_scales(given_totals, share)
    assert ((scales >= 0) & (scales <= 1)).all()
    kept = given_totals * scales
    voters = int((kept > 0).sum())
    if voters:
        assert kept.max() <= max(share, 1 / voters) * kept.sum() * (1 + 1e-6)
    order = np.argsort(given_totals)
    assert all(kept[i] <= kept[j] * (1 + 1e-9) for i, j in pairwise(order))


@given(seed=st.integers(0, 10_000))
@settings(max_examples=10, deadline=None)
def test_the_order_of_the_votes_and_the_sides_change_nothing(seed: int) -> None:
    ballots = election({**{f"v{n}": honest(0.6) for n in range(8)}, "y": coin, "z": promoter}, 25, seed=seed)
    weights = vote_weights(ballots, CONFIG)
    order = np.random.default_rng(seed).permutation(len(ballots))
    assert vote_weights(taken(ballots, order), CONFIG) == pytest.approx(weights[order], abs=2e-4)
    mirrored = replace(
        ballots,
        left=ballots.right,
        right=ballots.left,
        choice=np.where(ballots.choice < 2, 1 - ballots.choice, ballots.choice),
        gold=np.where(ballots.gold >= 0, 1 - ballots.gold, ballots.gold),
    )
    assert vote_weights(mirrored, CONFIG) == pytest.approx(weights, abs=2e-4)
    assert {A, B} >= set(np.unique(mirrored.choice))


def taken(ballots: Ballots, rows: np.ndarray) -> Ballots:  # type: ignore[type-arg]
    columns = {name: getattr(ballots, name) for name in Ballots.__dataclass_fields__}
    return Ballots(**{name: c if isinstance(c, tuple) else c[rows] for name, c in columns.items()})


def joined(one: Ballots, other: Ballots) -> Ballots:
    """Both elections; they have the same adapters."""
    assert one.adapters == other.adapters
    voters = tuple(sorted({*one.voters, *other.voters}))
    number = {name: index for index, name in enumerate(voters)}
    columns: dict[str, object] = {"voters": voters, "adapters": one.adapters}
    for name in Ballots.__dataclass_fields__:
        if name not in columns:
            columns[name] = np.concatenate([getattr(one, name), getattr(other, name)])
    columns["voter"] = np.array([number[e.voters[i]] for e in (one, other) for i in e.voter], dtype=np.int32)
    return Ballots(**columns)  # type: ignore[arg-type]


def test_a_spread_without_end_is_refused():
    """Every weight would be NaN, and with it every loss of the reward model."""
    with pytest.raises(ValidationError):
        VotersConfig(taste_spread=float("inf"))
