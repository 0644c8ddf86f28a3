from __future__ import annotations

import math
import tracemalloc
from dataclasses import replace
from itertools import product

import choix
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from feedback.voters.ballots import TIE, A, B
from serve import davidson
from serve.davidson import Contests, fit, log_posterior

FEW_PRIOR = 1000.0


def contests(rows: list[tuple[int, int, int]], contenders: int, voters: int = 7) -> Contests:
    """Rows of left, right, choice; each by the next voter in turn."""
    left, right, choice = (np.array(column) for column in zip(*rows, strict=True))
    size = len(rows)
    return Contests(
        left.astype(np.int32),
        right.astype(np.int32),
        choice.astype(np.int8),
        np.zeros(size),
        np.ones(size),
        np.arange(size, dtype=np.int32) % voters,
        contenders,
    )


def both_ways(wins: int, losses: int, ties: int) -> list[tuple[int, int, int]]:
    """Contender 0 against 1, each half with 0 at the left; the counts must be even."""
    half = [(0, 1, A)] * (wins // 2) + [(0, 1, B)] * (losses // 2) + [(0, 1, TIE)] * (ties // 2)
    return half + [(1, 0, B)] * (wins // 2) + [(1, 0, A)] * (losses // 2) + [(1, 0, TIE)] * (ties // 2)


def drawn(truth: list[float], votes: int, seed: int, *, tie: float = 0.0, bias: float = 0.0) -> Contests:
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(votes):
        left, right = rng.choice(len(truth), 2, replace=False)
        half = (truth[left] - truth[right] + bias) / 2
        odds = np.exp([half, -half, tie])
        rows.append((int(left), int(right), int(rng.choice(3, p=odds / odds.sum()))))
    return contests(rows, len(truth), voters=50)


def test_two_contenders_have_davidsons_closed_form(monkeypatch: pytest.MonkeyPatch) -> None:
    # The likeliest odds are wins / losses, and nu = ties / sqrt(wins losses).
    monkeypatch.setattr(davidson, "PRIOR_SD", FEW_PRIOR)
    monkeypatch.setattr(davidson, "_OTHERS_SD", FEW_PRIOR)
    found = fit(contests(both_ways(40, 10, 30), 2), control_length=False)
    assert found.strength[0] - found.strength[1] == pytest.approx(math.log(40 / 10), abs=1e-4)
    assert found.tie == pytest.approx(math.log(30 / math.sqrt(40 * 10)), abs=1e-4)
    assert found.bias == pytest.approx(0, abs=1e-6)


def test_position_bias_has_a_closed_form_too(monkeypatch: pytest.MonkeyPatch) -> None:
    # Equal contenders; the left answer wins 30 of 40.
    monkeypatch.setattr(davidson, "_OTHERS_SD", FEW_PRIOR)
    rows = [(0, 1, A)] * 15 + [(1, 0, A)] * 15 + [(0, 1, B)] * 5 + [(1, 0, B)] * 5
    assert fit(contests(rows, 2), control_length=False).bias == pytest.approx(math.log(3), abs=1e-4)


def test_without_ties_it_is_bradley_terry_as_choix_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    wins = rng.integers(1, 12, size=(5, 5))
    pairs = [(i, j) for i, j in product(range(5), repeat=2) if i != j for _ in range(wins[i, j])]
    rows = [row for winner, loser in pairs for row in ((winner, loser, A), (loser, winner, B))]
    monkeypatch.setattr(davidson, "PRIOR_SD", 1e4)
    monkeypatch.setattr(davidson, "_OTHERS_SD", 1e4)
    found = fit(contests(rows, 5), control_length=False)
    assert found.strength == pytest.approx(choix.opt_pairwise(5, pairs), abs=1e-4)


def slow_log_posterior(told: Contests, parameters: list[float]) -> float:
    """The module's docstring, vote by vote."""
    size = told.contenders
    tie, bias, lengthen = parameters[size:]
    total = 0.0
    for left, right, choice, longer, weight in zip(
        told.left, told.right, told.choice, told.longer, told.weight, strict=True
    ):
        u_a = parameters[left] + bias + lengthen * longer
        u_b = parameters[right]
        terms = [u_a, u_b, tie + (u_a + u_b) / 2]
        total += weight * (terms[choice] - math.log(sum(math.exp(term) for term in terms)))
    total -= sum(s**2 for s in parameters[:size]) / (2 * 2.0**2)
    return total - sum(p**2 for p in parameters[size:]) / (2 * 3.0**2)


def test_the_mode_is_the_one_that_a_general_optimiser_finds_on_the_slow_formula() -> None:
    rng = np.random.default_rng(1)
    told = drawn([0.8, 0.0, -0.3, -0.5], 120, seed=1, tie=-0.5, bias=0.2)
    told = replace(told, longer=rng.uniform(-1, 1, 120), weight=rng.uniform(0, 1, 120))
    assert log_posterior(told, np.linspace(-1, 1, 7), control_length=True) == pytest.approx(
        slow_log_posterior(told, list(np.linspace(-1, 1, 7)))
    )
    slow = minimize(lambda p: -slow_log_posterior(told, list(p)), np.zeros(7), method="BFGS", options={"gtol": 1e-7})
    found = fit(told, control_length=True)
    assert [*found.strength, found.tie, found.bias, found.lengthen] == pytest.approx(list(slow.x), abs=1e-4)


def test_what_was_drawn_from_the_model_is_found_again() -> None:
    found = fit(drawn([1.0, 0.0, -1.0], 6000, seed=5, tie=-0.3, bias=0.4), control_length=False)
    assert found.strength == pytest.approx([1.0, 0.0, -1.0], abs=0.1)
    assert (found.tie, found.bias) == pytest.approx((-0.3, 0.4), abs=0.1)


def test_a_contender_that_wins_by_length_alone_is_no_stronger_at_equal_length() -> None:
    rng = np.random.default_rng(2)
    rows, longer = [], []
    for _ in range(3000):
        first = int(rng.random() < 0.5)
        wordy = np.clip(rng.normal(0.3 if first == 0 else -0.3, 0.3), -1, 1)  # contender 0 writes longer answers
        chosen = A if rng.random() < 1 / (1 + math.exp(-3 * wordy)) else B
        rows.append((first, 1 - first, chosen))
        longer.append(wordy)
    told = replace(contests(rows, 2, voters=60), longer=np.array(longer))
    assert fit(told, control_length=False).strength[0] > 0.3
    controlled = fit(told, control_length=True)
    assert controlled.strength[0] == pytest.approx(0, abs=0.1)
    assert controlled.lengthen == pytest.approx(3, abs=0.4)


def test_the_unbeaten_stay_finite_and_nobody_voted_is_no_error() -> None:
    assert 1 < fit(contests([(0, 1, A)] * 50, 2), control_length=False).strength[0] < 6
    nothing = replace(contests([(0, 1, A)], 2), weight=np.zeros(1))
    assert fit(nothing, control_length=False).strength == pytest.approx([0, 0])


def test_one_newton_step_draws_are_those_of_whole_refits() -> None:
    told = drawn([0.6, 0.0, -0.6], 900, seed=8, tie=-0.5)
    quick = fit(told, control_length=False, draws=400, seed=1)
    rng = np.random.default_rng(4)
    by_voter = [np.flatnonzero(told.voter == voter) for voter in range(50)]
    whole = []
    for _ in range(120):
        rows = np.concatenate([by_voter[voter] for voter in rng.integers(0, 50, 50)])
        again = Contests(
            *(getattr(told, name)[rows] for name in ("left", "right", "choice", "longer", "weight", "voter")), 3
        )
        whole.append(fit(again, control_length=False).strength)
    assert quick.draws[:, :3].std(axis=0) == pytest.approx(np.std(whole, axis=0), rel=0.2)
    assert quick.draws[:, :3].mean(axis=0) == pytest.approx(np.mean(whole, axis=0), abs=0.05)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    covered = []
    for seed in range(25):
        found = fit(drawn([0.5, 0.0, -0.5], 300, seed=100 + seed), control_length=False, draws=200, seed=seed)
        low, high = found.intervals()[:, :3]
        covered += list((low <= [0.5, 0, -0.5]) & (high >= [0.5, 0, -0.5]))
    assert 0.86 <= np.mean(covered) <= 1.0


def test_votes_of_one_voter_that_agree_widen_the_interval() -> None:
    told = drawn([0.3, -0.3], 800, seed=6)
    order = np.lexsort((told.choice, told.left))
    herds = np.empty(800, dtype=np.int32)
    herds[order] = np.arange(800) // 20  # each voter casts twenty like votes
    scattered = fit(told, control_length=False, draws=300).draws[:, 0].std()
    herded = fit(replace(told, voter=herds), control_length=False, draws=300).draws[:, 0].std()
    assert herded > 2 * scattered


@given(seed=st.integers(0, 10_000), contenders=st.integers(2, 6))
@settings(max_examples=15, deadline=None)
def test_swapping_the_sides_and_renaming_change_what_they_should(seed: int, contenders: int) -> None:
    rng = np.random.default_rng(seed)
    told = drawn(list(rng.normal(0, 1, contenders)), 60, seed=seed, tie=-0.5, bias=0.3)
    found = fit(told, control_length=False)
    assert found.strength.sum() == pytest.approx(0, abs=1e-6)
    swapped = np.where(told.choice < TIE, 1 - told.choice, told.choice).astype(np.int8)
    mirrored = fit(replace(told, left=told.right, right=told.left, choice=swapped), control_length=False)
    assert mirrored.strength == pytest.approx(found.strength, abs=1e-5)
    assert mirrored.bias == pytest.approx(-found.bias, abs=1e-5)
    names = rng.permutation(contenders).astype(np.int32)
    renamed = fit(replace(told, left=names[told.left], right=names[told.right]), control_length=False)
    assert renamed.strength[names] == pytest.approx(found.strength, abs=1e-5)
    doubled = fit(replace(told, weight=told.weight * 0), control_length=False)
    assert doubled.strength == pytest.approx(np.zeros(contenders), abs=1e-9)


def test_sums_of_meetings_are_those_of_the_votes_one_by_one() -> None:
    rng = np.random.default_rng(6)
    told = replace(drawn([0.4, 0.1, -0.2, -0.3], 60, seed=6), longer=rng.uniform(-1, 1, 60)).in_order()
    slope, tie, bend, cross, tie_bend = rng.normal(size=(5, 60))
    often = rng.integers(0, 4, (3, 60)).astype(float)
    size, sums = 4, told.sums(True)
    for row, times in enumerate(often):
        gradient, curvature = np.zeros(size + 3), np.zeros((size + 3, size + 3))
        for n in range(60):
            along, neither = np.zeros(size + 3), np.zeros(size + 3)
            along[told.left[n]], along[told.right[n]], along[size + 1], along[size + 2] = 1, -1, 1, told.longer[n]
            neither[size] = 1
            gradient += times[n] * (slope[n] * along + tie[n] * neither)
            curvature += times[n] * bend[n] * np.outer(along, along)
            curvature += times[n] * cross[n] * (np.outer(along, neither) + np.outer(neither, along))
            curvature += times[n] * tie_bend[n] * np.outer(neither, neither)
        assert sums.gradients(sums.slopes(slope, tie, often))[row] == pytest.approx(gradient)
        assert sums.curvatures(sums.bends(bend, cross, tie_bend, often))[row] == pytest.approx(curvature)


def test_memory_goes_with_the_votes_where_many_adapters_have_met_many_voters() -> None:
    """A table of voters by adapters by adapters is gigabytes at 300 adapters and 5,000 voters."""
    rng = np.random.default_rng(7)
    rows = [(int(n) % 119 + 1, int(n) % 119, int(choice)) for n, choice in enumerate(rng.integers(0, 3, 6000))]
    told = contests(rows, 120, voters=3000)
    tracemalloc.start()
    try:
        fit(told, control_length=True, draws=60)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3000 * 123 * 123 * 8 / 4
