"""What the governor's prices do to an update, and who is chosen where there are none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.train.test_ppo import watched
from tests.train.tiny_ppo import PROMPTS, WantsTokens, config, train
from train.advantage import Estimate, GaeAdvantages
from train.base import Base
from train.experience import Old, Scored
from train.packing import Turn
from train.ppo import PpoTrainer
from train.reward.foresight import Tilt
from train.sampler import LocalRollouts
from train.update import Targets, UpdateFigures, Updater


@dataclass(frozen=True)
class PaysOne:
    """A topic that is never kept, and pays 1 for each token whose id leaves 3 when divided by 8."""

    vocabulary: int

    def kept(self, _turns: object) -> float:
        return 0.5

    def rewards(self, turns: Sequence[Turn], mask: Tensor) -> Tensor:
        found = torch.zeros(mask.shape)
        for row, turn in enumerate(turns):
            found[row, : len(turn.response_ids)] = (torch.tensor(turn.response_ids) % 8 == 3).float()
        return found

    def tilt(self, turns: Sequence[Turn], price: float, _device: object) -> tuple[Tensor, Tensor]:
        places = sum(len(turn.response_ids) for turn in turns)
        ids = torch.arange(3, self.vocabulary, 8).expand(places, -1)
        return ids, torch.full(ids.shape, price)


@dataclass(frozen=True)
class Nothing:
    """What a reward model foresees that tells tokens apart by what follows alone."""

    vocabulary: int

    def tilt(self, turns: Sequence[Turn]) -> Tilt:
        none = torch.zeros(sum(len(turn.response_ids) for turn in turns), 1)
        return Tilt(none, torch.zeros(1, self.vocabulary), none.long(), none)


class Foreseeing(WantsTokens):
    """With a foresight of nothing, to which the topic's can be joined."""

    def foresight(self, embeddings: Tensor) -> Any:
        return Nothing(len(embeddings))


@dataclass
class Update:
    """An update as it was asked for."""

    scored: Scored
    rewards: Tensor
    targets: Targets


@pytest.fixture
def updates(monkeypatch: pytest.MonkeyPatch) -> list[Update]:
    """Every update of a run."""
    asked: list[tuple[Scored, Tensor]] = []
    found: list[Update] = []
    estimate, run = GaeAdvantages.estimate, Updater.run

    def estimated(self: GaeAdvantages, scored: Scored, old: Old, rewards: Tensor, *, first: bool) -> Estimate:
        asked.append((scored, rewards))
        return estimate(self, scored, old, rewards, first=first)

    def ran(self: Updater, plan: Any, targets: Targets, **how: Any) -> UpdateFigures:
        found.append(Update(*asked[-1], targets))
        return run(self, plan, targets, **how)

    monkeypatch.setattr(GaeAdvantages, "estimate", estimated)
    monkeypatch.setattr(Updater, "run", ran)
    return found


def test_what_takes_up_the_question_is_paid_at_its_price_and_foreseen(
    base: Base, tmp_path: Path, updates: list[Update]
) -> None:
    topic = PaysOne(base.head.shape[0])
    trainer = PpoTrainer(
        base,
        LocalRollouts(base),
        Foreseeing(),
        PROMPTS,
        topic=topic,  # type: ignore[arg-type]
        config=watched(config(iterations=2)),
        folder=tmp_path,
    )
    prices: list[float] = []
    foreseen: list[Tensor] = []

    def observe(metrics: Any, _judgement: Any) -> None:
        if metrics.updates:
            prices.append(metrics.topic_price)
            tilt = updates[-1].targets.tilt(updates[-1].scored.samples[:2])
            assert tilt is not None
            foreseen.append(tilt.rows(0, 2))

    trainer._observe = observe
    trainer.run()
    # 0.5 to begin with; 6 for each unit that 0.5 is short of 1.1 times the base's 0.5
    assert prices == pytest.approx([0.5, 0.5 + 6 * 0.05])
    for update, price, rows in zip(updates, prices, foreseen, strict=True):
        extra = update.rewards - update.scored.rewards
        said = [[token % 8 == 3 for token in sample.response_ids] for sample in update.scored.samples]
        assert any(map(any, said))
        for row, hits in enumerate(said):
            assert extra[row, : len(hits)].tolist() == pytest.approx([price * hit for hit in hits])
        paid = torch.arange(base.head.shape[0]) % 8 == 3
        torch.testing.assert_close(rows, price * paid.float().expand(2, -1))


def test_the_fluency_price_sharpens_the_updates_reference(base: Base, tmp_path: Path, updates: list[Update]) -> None:
    metrics = train(base, tmp_path, watched(config(iterations=4, kl_coefficient=0.5))).metrics
    sharpened = [update.targets.sharpening for update in updates]
    assert sharpened == pytest.approx([1 + m.fluency_price for m in metrics if m.updates])
    assert max(sharpened) > 1.0


def test_without_a_governor_distance_counts_against_the_policy_that_is_chosen(base: Base, tmp_path: Path) -> None:
    result = train(base, tmp_path, config(iterations=6, kl_coefficient=0.3))
    worth = [m.score - 0.3 * m.kl for m in result.metrics]
    scores = [m.score for m in result.metrics]
    assert result.chosen == worth.index(max(worth))
    assert result.chosen != scores.index(max(scores))
