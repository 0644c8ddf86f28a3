"""Views of the blocks, the structures that they form, and the average of structures."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from train.reward import scales
from train.reward.extract import covariance, moment
from train.reward.families import CONTENT_DROPPED, structures, views
from train.reward.mix import answer_views, collapse, fit_weights, pose
from train.reward.probe import Outcomes
from train.reward.tokens import COLUMNS
from train.reward.votes import Answer, Votes


def some_votes(n: int, seed: int = 0) -> tuple[dict[str, np.ndarray], Votes]:
    """Voters like column 1 of state:0."""
    rng = np.random.default_rng(seed)
    pooled = {"state:0": rng.normal(size=(2 * n, 6)), "state:2": rng.normal(size=(2 * n, 40))}
    pairs = np.arange(2 * n).reshape(n, 2)
    worth = pooled["state:0"][:, 1]
    swap = worth[pairs[:, 0]] < worth[pairs[:, 1]]
    return pooled, Votes(
        answers=tuple(Answer((1,), (i,)) for i in range(2 * n)),
        first=np.where(swap, pairs[:, 1], pairs[:, 0]),
        second=np.where(swap, pairs[:, 0], pairs[:, 1]),
        tied=np.arange(n) % 6 == 0,
        both_bad=np.zeros(n, dtype=bool),
        weight=np.ones(n),
        margin=np.zeros(n),
        conversation=np.arange(n),
        voter=np.arange(n),
        reasons=((),) * n,
    )


def test_whitened_tokens_have_unit_variance_and_content_leaves_the_widest_directions_out() -> None:
    rng = np.random.default_rng(1)
    tokens = rng.normal(size=(5000, 40)) @ rng.normal(size=(40, 40))
    spread = np.cov(tokens.T)
    seen = views({"state:0": tokens, "state:2": tokens}, np.arange(5000), {"state:0": spread, "state:2": spread})
    white = np.cov(seen["state:0.white"].of(tokens).T)
    variance = np.diag(white)
    assert variance.max() <= 1.0 + 1e-6
    assert np.median(variance) > 0.9  # the ridge costs only directions of hardly any variance
    left = np.linalg.eigvalsh(np.cov(seen["state:2.content"].of(tokens).T))
    whole = np.linalg.eigvalsh(spread)
    assert (left > 1e-9).sum() == 40 - CONTENT_DROPPED
    np.testing.assert_allclose(left[CONTENT_DROPPED:], whole[: 40 - CONTENT_DROPPED], rtol=1e-6)


def test_token_moments_add_up_to_the_covariance() -> None:
    states = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    parts = moment(states[:20]) + moment(states[20:])
    np.testing.assert_allclose(covariance(parts.numpy()), np.cov(states.numpy().T, bias=True), rtol=1e-5, atol=1e-7)


def test_structures_are_everything_the_states_each_view_of_them_alone_and_valence_alone() -> None:
    names = ["state:0", "state:2", "surface", "meet", "state:0.white", "state:2.content", "surface.valence"]
    assert structures(names) == (
        ("state:0", "state:2", "surface", "meet", "surface.valence"),
        ("state:0", "state:2"),
        ("state:0",),
        ("state:2",),
        ("state:0.white",),
        ("state:2.content",),
        ("surface.valence",),
    )
    assert structures(["state:0"]) == (("state:0",),)


def test_the_opening_has_no_say_on_length_however_well_its_columns_told_votes_apart() -> None:
    pooled, votes = some_votes(40)
    names = (*COLUMNS, "first_sentence", "sentences_so_far", "repeated", "length")
    late = [names.index("end_of_turn"), names.index("length")]
    shape = np.random.default_rng(2).normal(size=(80, len(names)))
    shape[:, late] = pooled["state:0"][:, [1]]  # what voters like
    pooled |= {"surface": shape, "opening": shape}
    weight = fit_weights(pooled, votes, np.arange(40)).weight
    assert not weight["opening"][late].any()
    assert (weight["surface"][late] > 0).all()
    assert weight["opening"][names.index("newline")] != 0


def test_shares_follow_tempered_evidence_and_drop_what_hardly_counts() -> None:
    # e^0 : e^(-2/2) : e^(-20/2), the last under a fiftieth
    shares = scales.evidence_shares([-100.0, -102.0, -120.0])
    assert shares == pytest.approx([1 / (1 + np.exp(-1)), np.exp(-1) / (1 + np.exp(-1)), 0.0])


def test_weights_of_a_block_say_what_the_averaged_fits_say() -> None:
    pooled, votes = some_votes(40)
    spread = {name: np.cov(values.T) for name, values in pooled.items()}
    rows = np.arange(40)
    problem = pose(pooled, votes, rows, answer_views(pooled, votes, spread))
    averaged = scales.average(problem.families, problem.outcomes, structures(list(problem.families)))
    assert sum(share for share, _ in averaged.parts) == pytest.approx(1.0)
    expected = sum(share * scaled.fit.scores for share, scaled in averaged.parts)
    said = collapse(averaged, problem).differences(pooled, votes.first, votes.second)
    np.testing.assert_allclose(said, expected, atol=1e-6)


def test_the_winner_of_a_vote_is_not_looked_at_by_the_views() -> None:
    pooled, votes = some_votes(20)
    swapped = Votes(votes.answers, votes.second, votes.first, *(getattr(votes, f) for f in votes.__slots__[3:]))
    spread = {name: np.cov(values.T) for name, values in pooled.items()}
    one, other = answer_views(pooled, votes, spread), answer_views(pooled, swapped, spread)
    assert all(np.array_equal(one[name].unit, other[name].unit) for name in one)


def test_scales_chosen_on_some_votes_are_used_on_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scales, "SCALE_ROWS", 30)
    pooled, votes = some_votes(60)
    fitted = fit_weights(pooled, votes, np.arange(60))
    assert all(len(scaled.fit.dual) == 60 for _, scaled in fitted.averaged.parts)
    fresh, unseen = some_votes(100, seed=5)
    assert np.mean(fitted.differences(fresh, unseen.first, unseen.second) > 0) > 0.85


def test_a_better_start_ends_in_the_same_optimum() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(20, 3))
    outcomes = Outcomes(np.zeros(20, dtype=bool), np.ones(20), np.zeros(20))
    plain = scales.probe.fit(rows @ rows.T, outcomes, 0.0)
    warm = scales.probe.fit(rows @ rows.T, outcomes, 0.0, start=rng.normal(size=20) / 10)
    np.testing.assert_allclose(warm.scores, plain.scores, atol=1e-4)
    assert warm.evidence == pytest.approx(plain.evidence, abs=1e-4)
