"""The mix head on made-up answers: exact split over tokens, planted preferences found, ties, refusals, files."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from train.errors import NotEnoughVotes, OneSidedVotes, RewardRefused, TrainingDiverged
from train.reward import features, judge, probe
from train.reward.config import RewardConfig
from train.reward.features import Sequences, Vocabulary
from train.reward.mix import MixHead, fit_weights, make_head, pose
from train.reward.refresh import refresh
from train.reward.scales import starting_variance
from train.reward.tokens import COLUMNS, PLEASANT
from train.reward.votes import Answer, Votes, folds, read_votes

LAYERS, WIDTH, VOCABULARY = (0, 2), 6, 40


def tables() -> Vocabulary:
    rng = np.random.default_rng(3)
    surface = torch.from_numpy(rng.integers(0, 2, (VOCABULARY, len(COLUMNS) + 1)).astype(np.float32))
    return Vocabulary(surface, torch.from_numpy(rng.random(VOCABULARY).astype(np.float32)))


def some_sequences(seed: int, batch: int = 5, pad: int = 0, *, left: bool = False) -> Sequences:
    rng = np.random.default_rng(seed)
    prompt, longest = 4, 7
    lengths = rng.integers(1, longest + 1, batch)
    hidden = {n: torch.from_numpy(rng.normal(size=(batch, prompt + longest, WIDTH)).astype(np.float32)) for n in LAYERS}
    ids = torch.from_numpy(rng.integers(0, VOCABULARY, (batch, prompt + longest)))
    place = torch.arange(prompt + longest).expand(batch, -1)
    prompt_mask = place < prompt
    response_mask = (place >= prompt) & (place < prompt + torch.from_numpy(lengths)[:, None])
    side = (pad, 0) if left else (0, pad)
    return Sequences(
        {n: torch.nn.functional.pad(h, (0, 0, *side), value=9.0) for n, h in hidden.items()},
        torch.nn.functional.pad(ids, side, value=1),
        torch.nn.functional.pad(prompt_mask, side),
        torch.nn.functional.pad(response_mask, side),
    )


def pooled_of(sequences: Sequences) -> dict[str, np.ndarray]:
    return {b.name: features.pool(b).double().numpy() for b in features.blocks(sequences, tables(), LAYERS)}


def made_votes(better: np.ndarray, ties: tuple[int, ...] = (), bad: tuple[int, ...] = ()) -> Votes:
    """Answers 2i and 2i+1 of conversation i, the one with the larger value preferred."""
    n = len(better) // 2
    pairs = np.arange(2 * n).reshape(n, 2)
    swap = better[pairs[:, 0]] < better[pairs[:, 1]]
    tied = np.isin(np.arange(n), ties + bad)
    return Votes(
        answers=tuple(Answer((1, 2, 3), (i + 4, 5)) for i in range(2 * n)),
        first=np.where(swap, pairs[:, 1], pairs[:, 0]),
        second=np.where(swap, pairs[:, 0], pairs[:, 1]),
        tied=tied,
        both_bad=np.isin(np.arange(n), bad),
        weight=np.ones(n),
        margin=np.zeros(n),
        conversation=np.arange(n),
        voter=np.arange(n) % 5,
        reasons=((),) * n,
    )


def planted(n: int, seed: int = 0, noise: float = 0.1) -> tuple[dict[str, np.ndarray], Votes]:
    """Features where column 3 of state:0 is what voters like."""
    rng = np.random.default_rng(seed)
    pooled = {"state:0": rng.normal(size=(2 * n, 8)), "state:2": rng.normal(size=(2 * n, 8))}
    names = {"surface": len(COLUMNS) + 4, "opening": len(COLUMNS) + 4, "meet": 6}
    pooled |= {name: rng.normal(size=(2 * n, width)) for name, width in names.items()}
    votes = made_votes(pooled["state:0"][:, 3] + noise * rng.normal(size=2 * n))
    return pooled, votes


def head_for(pooled: dict[str, np.ndarray], votes: Votes) -> MixHead:
    fitted = fit_weights(pooled, votes, np.arange(len(votes)))
    return make_head(
        fitted, pooled, votes, layers=LAYERS, vocabulary=tables(), base_fingerprint="b" * 64, metrics={"x": 1.0}
    )


def token_rewards(head: MixHead, batch: Sequences) -> torch.Tensor:
    return head.token_rewards(batch.hidden, batch.token_ids, batch.prompt_mask, batch.response_mask)


def test_token_rewards_add_up_to_the_score_and_are_zero_off_the_answer() -> None:
    batch = some_sequences(0, batch=40)
    pooled = pooled_of(batch)
    head = head_for(pooled, made_votes(np.random.default_rng(1).normal(size=40)))
    rewards = token_rewards(head, batch)
    np.testing.assert_allclose(rewards.sum(dim=1).numpy(), head.scores(pooled), atol=2e-5)
    assert not rewards[~batch.response_mask].any()
    scores = head.scores(pooled)
    assert scores.mean() == pytest.approx(0.0, abs=1e-5)
    assert scores.std() == pytest.approx(1.0, abs=1e-5)


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 6), st.booleans(), st.integers(0, 99))
def test_padding_changes_no_reward(pad: int, left: bool, seed: int) -> None:
    head = head_for(pooled_of(some_sequences(7, 40)), made_votes(np.random.default_rng(1).normal(size=40)))
    plain, padded = some_sequences(seed), some_sequences(seed, pad=pad, left=left)
    wide = token_rewards(head, padded)
    kept = wide[:, pad:] if left else wide[:, : wide.shape[1] - pad]
    torch.testing.assert_close(kept, token_rewards(head, plain), atol=1e-5, rtol=1e-4)


def test_a_planted_preference_is_found_through_noise_and_judged_better_than_a_coin() -> None:
    pooled, votes = planted(64)
    config = RewardConfig()
    made = refresh(pooled, votes, config, layers=LAYERS, vocabulary=tables(), base_fingerprint="f")
    fresh_pooled, fresh_votes = planted(200, seed=9, noise=0.0)
    scores = made.head.scores(fresh_pooled)
    assert np.mean(scores[fresh_votes.first] > scores[fresh_votes.second]) > 0.85
    assert made.judgement.log_loss < judge.LN2
    assert made.judgement.accuracy > 0.7
    assert np.isfinite(made.judgement.new_voters)


def test_a_taste_for_kind_words_is_found_from_48_noisy_votes_among_wide_states() -> None:
    rng = np.random.default_rng(6)
    n, wide, seen = 248, 400, np.arange(48)
    pooled = {"state:0": rng.normal(size=(2 * n, wide)), "state:2": rng.normal(size=(2 * n, wide))}
    widths = {"surface": len(COLUMNS) + 4, "opening": len(COLUMNS) + 4, "meet": 6}
    pooled |= {name: rng.normal(size=(2 * n, width)) for name, width in widths.items()}
    votes = made_votes(pooled["surface"][:, PLEASANT])
    flipped = rng.random(n) < 0.15
    said = replace(
        votes,
        first=np.where(flipped, votes.second, votes.first),
        second=np.where(flipped, votes.first, votes.second),
    )
    right = fit_weights(pooled, said, seen).differences(pooled, votes.first[48:], votes.second[48:]) > 0
    assert right.mean() > 0.85


def test_votes_that_say_nothing_are_refused() -> None:
    pooled, _ = planted(64)
    random = made_votes(np.random.default_rng(5).normal(size=128))
    with pytest.raises(RewardRefused, match="no better than a coin"):
        refresh(pooled, random, RewardConfig(), layers=LAYERS, vocabulary=tables(), base_fingerprint="f")


def test_too_few_equal_or_broken_answers_end_in_one_line() -> None:
    pooled, votes = planted(4)
    with pytest.raises(NotEnoughVotes, match="4 decisive votes in the snapshot, 16 are needed"):
        refresh(pooled, votes, RewardConfig(), layers=LAYERS, vocabulary=tables(), base_fingerprint="f")
    with pytest.raises(OneSidedVotes):
        fit_weights({n: np.ones_like(v) for n, v in pooled.items()}, votes, np.arange(4))
    with pytest.raises(TrainingDiverged, match="not finite"):
        fit_weights({n: v * np.nan for n, v in pooled.items()}, votes, np.arange(4))


def test_a_both_bad_vote_lowers_both_answers() -> None:
    pooled, _ = planted(40)
    rng = np.random.default_rng(2)
    pooled["state:2"][0] = pooled["state:2"][1] = 6 * np.sign(rng.normal(size=8))
    tie = head_for(pooled, made_votes(pooled["state:0"][:, 3], ties=(0,))).scores(pooled)[:2].mean()
    bad = head_for(pooled, made_votes(pooled["state:0"][:, 3], bad=(0,))).scores(pooled)[:2].mean()
    assert bad < tie - 0.03


def test_what_each_comparison_counts_is_the_votes_own_and_a_quarter_for_each_of_two_bad_ones() -> None:
    pooled, votes = planted(4)
    told = replace(votes, weight=np.array([1.0, 2.0, 4.0, 0.5]), margin=np.array([0.5, 0.0, 0.0, 0.25]))
    flags = np.array([False, False, True, False])
    posed = pose(pooled, replace(told, tied=flags, both_bad=flags), np.arange(4))
    assert posed.vote.tolist() == [0, 1, 2, 3, 2, 2]
    assert posed.outcomes.tied.tolist() == [False, False, True, False, False, False]
    assert posed.outcomes.weight.tolist() == [1.0, 2.0, 4.0, 0.5, 1.0, 1.0]
    assert posed.outcomes.margin.tolist() == [0.5, 0.0, 0.0, 0.25, 0.0, 0.0]


def test_ties_pull_scores_together() -> None:
    pooled, _ = planted(60)
    better = pooled["state:0"][:, 3]
    free = fit_weights(pooled, made_votes(better), np.arange(60))
    tied = fit_weights(pooled, made_votes(better, ties=tuple(range(30, 60))), np.arange(60))
    first, second = np.arange(60, 120, 2), np.arange(61, 120, 2)
    assert tied.nu > 0
    assert (
        np.abs(tied.differences(pooled, first, second)).mean() < np.abs(free.differences(pooled, first, second)).mean()
    )


def test_saved_and_loaded_heads_give_the_same_rewards(tmp_path: Path) -> None:
    batch = some_sequences(0, batch=40)
    head = head_for(pooled_of(batch), made_votes(np.random.default_rng(1).normal(size=40)))
    head.save(tmp_path / "reward")
    again = MixHead.load(tmp_path / "reward")
    assert again.model_id == head.model_id
    assert again.metrics == {"x": 1.0}
    torch.testing.assert_close(token_rewards(again, batch), token_rewards(head, batch), rtol=0, atol=1e-6)


def test_a_saved_head_is_on_the_disk(tmp_path: Path, synced: list[str]) -> None:
    head_for(pooled_of(some_sequences(0, batch=40)), made_votes(np.random.default_rng(1).normal(size=40))).save(
        tmp_path
    )
    assert synced[0] == "reward.safetensors"
    assert synced[1].startswith(".reward.json")  # before it takes its name


def test_a_head_of_before_words_had_a_sound_gives_the_rewards_that_it_gave(tmp_path: Path) -> None:
    batch = some_sequences(3, batch=20)
    head = head_for(pooled_of(batch), made_votes(np.random.default_rng(4).normal(size=20)))
    for name in ("surface", "opening"):
        head.weights[name][PLEASANT : PLEASANT + 2] = 0.0  # what it didn't know counted nothing
    head.save(tmp_path)
    file = tmp_path / "reward.safetensors"
    kept = load_file(file)
    for name in kept:
        if name.endswith(("surface", "opening")):
            kept[name] = torch.cat([kept[name][..., :PLEASANT], kept[name][..., PLEASANT + 2 :]], dim=-1).contiguous()
    assert kept["surface"].shape[1] == 12, "eleven classes, and whether there is a letter"
    save_file(kept, file)
    found = MixHead.load(tmp_path)
    np.testing.assert_array_equal(token_rewards(found, batch), token_rewards(head, batch))
    total = hashlib.sha256(head.base_fingerprint.encode())
    for name in sorted(head.weights):
        total.update(name.encode() + kept[f"weight/{name}"].numpy().tobytes() + kept[f"mean/{name}"].numpy().tobytes())
    assert found.model_id == f"reward-{total.hexdigest()[:12]}", "an open cycle knows it again"


def test_the_probe_reaches_the_optimum_that_gradient_descent_finds() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(30, 4))
    tied = np.arange(30) % 5 == 0
    outcomes = probe.Outcomes(tied, rng.random(30) + 0.5, np.where(tied, 0.0, 0.3))
    fitted = probe.fit(rows @ rows.T, outcomes, 0.7)
    weight = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight], max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe")
    x, w = torch.from_numpy(rows), torch.from_numpy(outcomes.weight)

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        d = x @ weight - torch.from_numpy(outcomes.margin)
        total = torch.log(torch.exp(d / 2) + torch.exp(-d / 2) + 0.7)
        chosen = torch.where(torch.from_numpy(tied), torch.log(torch.tensor(0.7)), d / 2) - total
        loss = -(w * chosen).sum() + weight @ weight / 2
        loss.backward()
        return loss

    optimiser.step(closure)
    np.testing.assert_allclose(rows.T @ fitted.dual, weight.detach().numpy(), atol=1e-5)


def test_folds_keep_groups_whole_and_nearly_equal() -> None:
    groups = np.array([0, 0, 0, 1, 2, 2, 3, 4, 4, 5, 6, 7])
    fold = folds(groups, 3, seed=0)
    assert all(len(set(fold[groups == g])) == 1 for g in range(8))
    assert sorted(np.bincount(fold)) == [4, 4, 4]


def test_a_length_meter_is_refused_unless_the_votes_ask_for_length() -> None:
    meter = judge.Judgement(0.6, 0.6, 0.1, 0.97, 0.5, 0.6, 100)
    with pytest.raises(RewardRefused, match="length meter"):
        judge.refuse_unless_fit(meter, 0.9, 100)
    judge.refuse_unless_fit(judge.Judgement(0.8, 0.5, 0.1, 0.97, 0.8, 0.8, 100), 0.9, 100)


def test_a_clearly_worse_successor_is_refused() -> None:
    good, weight = np.full(40, 2.0) + np.linspace(-0.1, 0.1, 40), np.ones(40)
    with pytest.raises(RewardRefused, match="worse than its predecessor"):
        judge.refuse_if_worse(-good, good, weight)
    judge.refuse_if_worse(good, -good, weight)


def test_a_successor_is_refused_beyond_two_standard_errors_by_the_votes_weights() -> None:
    def logits(losses: np.ndarray) -> np.ndarray:
        """The score differences whose -ln sigmoid these are."""
        return np.asarray(-np.log(np.expm1(losses)))

    # against ln 2 a vote: 0.3 more and 0.1 less in turn: mean 0.1, deviation 0.2 sqrt(n / (n - 1))
    def turns(n: int) -> np.ndarray:
        return logits(np.log(2) + np.tile([0.3, -0.1], n // 2))

    judge.refuse_if_worse(turns(16), np.zeros(16), np.ones(16))  # two errors are 0.4 / sqrt 15 = 0.103
    with pytest.raises(RewardRefused, match=r"log-loss \+0.100, two standard errors 0.097"):  # 0.4 / sqrt 17
        judge.refuse_if_worse(turns(18), np.zeros(18), np.ones(18))
    # who has hardly any weight can't have a model refused, nor kept
    trusted = np.where(np.arange(40) < 20, 1.0, 1e-3)
    worse, better = logits(np.log(2) + np.full(20, 0.4)), logits(np.log(2) - np.full(20, 0.1))
    judge.refuse_if_worse(np.concatenate([better, worse]), np.zeros(40), trusted)
    with pytest.raises(RewardRefused):
        judge.refuse_if_worse(np.concatenate([worse, better]), np.zeros(40), trusted)


def test_calibration_error_of_four_known_votes() -> None:
    # sigmoid(ln 3) = 0.75, right in 2 of 4: one bin, gap 0.25
    bins, ece = judge.calibration(np.log(3) * np.array([1.0, 1.0, -1.0, -1.0]))
    assert [(b.count, b.accuracy) for b in bins] == [(4, 0.5)]
    assert ece == pytest.approx(0.25)


def test_votes_are_read_from_snapshot_rows() -> None:
    def row(outcome: str, chosen: list[int], rejected: list[int], **more: object) -> dict[str, object]:
        given = {"outcome": outcome, "prompt_token_ids": [1, 2], "chosen_token_ids": chosen}
        return given | {"rejected_token_ids": rejected, "conversation_id": "c", "voter": "v"} | more

    votes = read_votes(
        [row("decisive", [5], [6], margin=0.5, weight=2.0, reasons=["clear"]), row("decisive", [5], [5])],
        [row("tie", [6], [7], margin=None), row("both_bad", [], [7])],
    )
    assert [a.response_ids for a in votes.answers] == [(5,), (6,), (7,)]
    assert (votes.first.tolist(), votes.second.tolist()) == ([0, 1], [1, 2])
    assert (votes.tied.tolist(), votes.margin.tolist(), votes.weight.tolist()) == ([False, True], [0.5, 0.0], [2, 1])
    with pytest.raises(NotEnoughVotes):
        read_votes([], [])


def test_starting_scales_add_up_and_favour_the_hidden_states() -> None:
    # 4 in all, 0.6 of it on two states: 1.2 each; 0.4 on four others: 0.4 each
    start = starting_variance(["state:0", "state:8", "surface", "opening", "meet", "surface.words"])
    assert start["state:0"] == pytest.approx(1.2)
    assert start["meet"] == pytest.approx(0.4)
    assert sum(start.values()) == pytest.approx(4.0)
    assert starting_variance(["state:0"]) == {"state:0": 4.0}


def test_the_temperature_calibrates_what_is_too_sure() -> None:
    # 3 of 4 right at a certainty of 4 logits each: the best factor makes it ln 3 (odds of 3 to 1), so ln(3) / 4
    difference = np.array([4.0, 4.0, 4.0, -4.0] * 25)
    assert judge.temperature(difference, np.ones(100)) == pytest.approx(np.log(3) / 4, abs=1e-4)


def test_the_temperature_never_makes_a_fit_surer() -> None:
    assert judge.temperature(np.array([0.1] * 9 + [-0.1]), np.ones(10)) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(("accuracy", "fit"), [(0.55, False), (0.57, True)])
def test_a_coin_passes_for_a_reward_model_one_time_in_ten(accuracy: float, fit: bool) -> None:
    # 128 votes: 0.5 + 1.2816 * 0.5 / sqrt(128) = 0.5566
    judged = judge.Judgement(accuracy, 0.68, 0.0, 0.0, 0.5, 0.5, 128)
    if fit:
        judge.refuse_unless_fit(judged, 0.9, 100)
    else:
        with pytest.raises(RewardRefused, match=r"above 0\.56 is needed"):
            judge.refuse_unless_fit(judged, 0.9, 100)


@pytest.mark.parametrize(("by_chance", "fit"), [(0.05, True), (0.1, True), (0.15, False), (1.0, False)])
@pytest.mark.parametrize("accuracy", [0.5, 0.9])
def test_where_it_is_known_chance_decides_and_not_accuracy(by_chance: float, accuracy: float, fit: bool) -> None:
    judged = judge.Judgement(accuracy, 0.68, 0.0, 0.0, 0.5, 0.5, 128, by_chance=by_chance)
    if fit:
        judge.refuse_unless_fit(judged, 0.9, 100)
    else:
        with pytest.raises(RewardRefused, match=f"by chance in {by_chance:.0%}, at most 10% is asked for"):
            judge.refuse_unless_fit(judged, 0.9, 100)


def test_chance_is_asked_as_long_as_that_is_cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    pooled, votes = planted(64)
    made = {"layers": LAYERS, "vocabulary": tables(), "base_fingerprint": "b"}
    assert refresh(pooled, votes, RewardConfig(), **made).judgement.metrics()["reward_by_chance"] == 1 / 20
    monkeypatch.setattr("train.reward.refresh.TURNED_ROWS", 63)
    assert "reward_by_chance" not in refresh(pooled, votes, RewardConfig(), **made).judgement.metrics()


@pytest.mark.parametrize("weight", [0.0, 0.05])
def test_voters_who_are_not_trusted_cannot_have_every_reward_model_refused(weight: float) -> None:
    pooled, votes = planted(160)
    contrary = np.arange(160) >= 70
    voted = replace(
        votes,
        first=np.where(contrary, votes.second, votes.first),
        second=np.where(contrary, votes.first, votes.second),
        weight=np.where(contrary, weight, 1.0),
    )
    made = {"layers": LAYERS, "vocabulary": tables(), "base_fingerprint": "b"}
    judged = refresh(pooled, voted, RewardConfig(), **made).judgement
    assert judged.accuracy < 0.5
    assert judged.trusted_accuracy > 0.8


def test_trusted_votes_are_counted_by_hand() -> None:
    difference = np.array([1.0, -1.0, 0.0, 2.0])
    # weights 2, 1, 1, 0: right are 2 + 1/2 of 4; 16 / 6 votes of one weight
    assert judge.trusted(difference, np.array([2.0, 1.0, 1.0, 0.0])) == (pytest.approx(2.5 / 4), pytest.approx(16 / 6))
    assert judge.trusted(difference, np.full(4, 0.3)) == (pytest.approx(2.5 / 4), pytest.approx(4.0))
    assert judge.trusted(difference, np.zeros(4))[1] == 0.0
