"""How far a run of PPO has come, apart from weights: what a checkpoint's record holds."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from train.governor import Conduct, Judgement, Prices
from train.iteration import IterationMetrics
from train.maths import KlController
from train.rollout import Sample
from train.scaling import RunningScale


@dataclass(slots=True)
class RunState:
    """What a run has seen so far.

    Attributes:
        controller: of the KL coefficient.
        prices: the governor's.
        scale: of the rewards.
        baseline: the base's own conduct, once measured.
        before: answers of the policy that training began with.
        metrics: of every iteration so far.
        judgements: the governor's, as many.
    """

    controller: KlController
    prices: Prices = field(default_factory=Prices)
    scale: RunningScale = field(default_factory=RunningScale)
    baseline: Conduct | None = None
    before: tuple[Sample, ...] = ()
    metrics: list[IterationMetrics] = field(default_factory=list)
    judgements: list[Judgement] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "kl_coefficient": self.controller.coefficient,
            "prices": asdict(self.prices),
            "reward_scale": asdict(self.scale),
            "baseline": asdict(self.baseline) if self.baseline else None,
            "metrics": [asdict(metrics) for metrics in self.metrics],
            "judgements": [asdict(judgement) for judgement in self.judgements],
            "before": [
                [sample.prompt_ids, sample.response_ids, sample.logprobs, sample.finish_reason]
                for sample in self.before
            ],
        }

    def restore(self, record: dict[str, Any]) -> None:
        """Go back to what `record` gave."""
        self.scale = RunningScale(**record["reward_scale"])
        self.controller = replace(self.controller, coefficient=record["kl_coefficient"])
        self.prices = Prices(**record["prices"])
        self.baseline = Conduct(**record["baseline"]) if record["baseline"] else None
        self.metrics = [IterationMetrics(**metrics) for metrics in record["metrics"]]
        self.judgements = [Judgement(j["within"], tuple(j["breaches"])) for j in record["judgements"]]
        self.before = tuple(Sample(tuple(p), tuple(r), tuple(x), reason) for p, r, x, reason in record["before"])
