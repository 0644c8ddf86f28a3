"""`hustings_train_…` for Prometheus, on the trainer's own port. Formulas: docs/metrics.md."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector, start_http_server

from train.cycle_state import Outcome
from train.status import PHASES

_STATUS = {
    "progress": "Share of the running cycle that is done, 0 to 1.",
    "iteration": "PPO iteration of the running cycle.",
    "reward": "Mean reward of the last iteration's answers, in standard deviations of the voted answers.",
    "kl": "KL of the policy to the base, nats an answer.",
    "length": "Tokens an answer.",
    "clip_fraction": "Share of tokens that clipping held back.",
    "sft_loss": "Loss of the warm start on held-out edited answers, nats a token.",
    "entropy": "Mean entropy of the policy, nats a token.",
    "win_rate": "Share of evaluation prompts where the reward model prefers the new policy's answer to the base's.",
}
"""Gauges by the status board's keys."""
_ITERATION = {
    "score_std": ("reward_std", "Standard deviation of the last iteration's rewards."),
    "objective": ("objective", "Mean reward less the KL's price."),
    "episodes": ("episodes", "Answers sampled in the last iteration."),
    "eos_share": ("eos_share", "Share of answers that ended by themselves."),
    "distinct_within": ("distinct_within", "Distinct bigrams within an answer, mean share."),
    "distinct_across": ("distinct_across", "Distinct bigrams over all answers, share."),
    "perplexity": ("perplexity", "Perplexity of the answers under the base."),
    "kl_coefficient": ("kl_coefficient", "Price of a nat of KL."),
    "topic": ("topic", "Share of the prompt's wording that answers take up."),
    "topic_price": ("topic_price", "Reward for taking up all of a prompt's wording."),
    "fluency_price": ("fluency_price", "How far the reference of the KL is sharpened."),
    "gold": ("gold", "Mean score of the last iteration's answers under votes that the reward model never saw."),
    "sampler_mismatch": ("sampler_mismatch", "Mean distance of the sampler's log-probs from the trainer's, nats."),
    "importance_capped": ("importance_capped", "Share of tokens whose importance weight was cut off at its cap."),
    "reward_divisor": ("reward_divisor", "What rewards were divided by."),
    "value_clip_fraction": ("value_clip_fraction", "Share of tokens whose value loss was clipped."),
    "explained_variance": ("explained_variance", "Of the returns by the values, before the update."),
    "policy_loss": ("policy_loss", "Clipped policy loss, mean over minibatches."),
    "value_loss": ("value_loss", "Value loss, mean over minibatches."),
    "approx_kl": ("approx_kl", "KL between sampling and trained policy, nats a token."),
    "grad_norm": ("grad_norm", "Norm of the policy's gradient before clipping."),
    "updates": ("updates", "Optimiser steps of the last iteration."),
    "within": ("within_bounds", "1 while the last iteration kept the governor's bounds, else 0."),
}
"""Gauges by the keys of an iteration's record in metrics.jsonl."""
OF_UPDATES = frozenset(
    {
        "entropy",
        "clip_fraction",
        "value_clip_fraction",
        "policy_loss",
        "value_loss",
        "approx_kl",
        "grad_norm",
        "explained_variance",
        "sampler_mismatch",
        "importance_capped",
        "first_ratio_error",
    }
)
"""Figures that an iteration without an update has not: its record holds 0. A run's last iteration is always one."""
_REWARD_MODEL = {
    "reward_accuracy": "Share of held-out votes whose winner scores higher.",
    "reward_log_loss": "Log-loss on held-out votes, nats a vote.",
    "reward_ece": "Expected calibration error on held-out votes.",
    "reward_length_correlation": "Pearson's, of score and answer length.",
    "reward_accuracy_new_voters": "Accuracy on voters that the fit never saw.",
    "reward_log_loss_raw": "Log-loss before the temperature.",
    "reward_ece_raw": "Expected calibration error before the temperature.",
    "reward_temperature": "Factor of the scores that calibrates them on held-out votes.",
    "reward_accuracy_length_controlled": "Accuracy without what follows from the difference in length.",
    "reward_disagreement": "Deviation of the ensemble's heads about a voted pair, over that of the scores.",
    "reward_drift": "1 - correlation with the last reward model's scores.",
    "reward_reordered": "Share of voted pairs that the last reward model orders the other way.",
    "reward_by_chance": "Probability that coins would be fitted as well as the votes.",
    "reward_votes": "Decisive votes that the reward model was judged on.",
}


class TrainMetrics:
    """Mirrors the status board."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # memory, and when it was started: an alert goes by that
        self._status = {key: self._gauge(key, text) for key, text in _STATUS.items()}
        self._iteration = {key: self._gauge(name, text) for key, (name, text) in _ITERATION.items()}
        self._reward_model = {key: self._gauge(key, text) for key, text in _REWARD_MODEL.items()}
        for gauges in (self._status, self._iteration, self._reward_model):
            _set(gauges, {})  # else 0, which would read as a figure
        self._seconds = self._gauge("step_seconds", "Seconds of the last iteration's steps.", "step")
        self._phase = self._gauge("phase", "1 for the phase under way.", "phase")
        self._cycles = Counter(
            "hustings_train_cycles", "Cycles ended, by outcome.", ["outcome"], registry=self.registry
        )
        for outcome in get_args(Outcome):  # there from the start: Prometheus sees no rise in a series that begins at 1
            self._cycles.labels(outcome)
        self._new = self._gauge("new_comparisons", "Decisive votes since the last snapshot.")

    def serve(self, port: int, host: str = "127.0.0.1") -> None:
        """Answer /metrics; port 0 for not at all.

        Raises:
            OSError: the port is taken.
        """
        if port:
            start_http_server(port, addr=host, registry=self.registry)

    def observe(self, status: dict[str, Any]) -> None:
        """Take over what the status board says."""
        figures = status.get("figures") or {}
        _set(self._status, status)
        if figures:
            told = [key for key in self._iteration if figures.get("updates") or key not in OF_UPDATES]
            _set({key: self._iteration[key] for key in told}, figures)
        if judged := status.get("reward_model"):
            _set(self._reward_model, judged)
        for step, seconds in (figures.get("seconds") or {}).items():
            self._seconds.labels(step).set(seconds)
        for phase in ("idle", *PHASES, "failed"):
            self._phase.labels(phase).set(float(status.get("phase") == phase))
        new = (status.get("dataset") or {}).get("new")
        if new is not None:
            self._new.set(new)

    def ended(self, outcome: str) -> None:
        """A cycle has ended."""
        self._cycles.labels(outcome).inc()

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"hustings_train_{name}", text, labels, registry=self.registry)


def _set(gauges: Mapping[str, Gauge], values: Mapping[str, Any]) -> None:
    """Set gauges to the numbers of their names, to NaN where there is none: what is unknown now isn't told by an
    earlier figure."""
    for key, gauge in gauges.items():
        value = values.get(key)
        gauge.set(value if isinstance(value, (int, float)) else math.nan)
