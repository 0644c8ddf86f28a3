"""The identity probe: is the adapter that answers the one that was trained?

The trainer wrote down what its policy and its bare base say of a few answers. Serving scores the same answers through
its own engine, with the adapter and without. With T for the trainer, S for serving, p for the policy, b for the base,
and |.| for the mean absolute difference over all tokens of all probes:

    noise  = |S_b - T_b|         what two implementations of one model differ by
    error  = |S_p - T_p|         must be at most the tolerance
    signal = |T_p - T_b|         what the training changed; must be several times the noise, or nothing can be told
    closer = |S_p - T_p| < |S_p - T_b|, and |S_p - S_b| at least half the signal: the policy speaks, not the base
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from feedback.contracts import ProbeRecord
from serve.config import ReleasesConfig
from serve.engines.base import Engine, InvalidSampling, PromptTooLong
from serve.releases.errors import ProbeFailed

NUMERIC_FLOOR = 1e-5
"""Differences below this are float32's own."""


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """Mean absolute differences in nats a token; see the module's docstring."""

    noise: float
    error: float
    signal: float
    served_signal: float
    error_to_base: float
    tokens: int

    def __str__(self) -> str:
        return (
            f"error {self.error:.2g}, noise {self.noise:.2g}, signal {self.signal:.2g} nats a token"
            f" over {self.tokens} tokens"
        )


async def probe(engine: Engine, adapter: str, probes: Sequence[ProbeRecord]) -> ProbeReport:
    """Score every probe with the adapter and without.

    Raises:
        ProbeFailed: the probes can't be scored here: too long, no ids of this model's, or not as many as log-probs.
        EngineError: the engine can't answer now.
    """
    served_policy: list[float] = []
    served_base: list[float] = []
    for record in probes:
        ids = record.prompt_token_ids + record.response_token_ids
        answer = len(record.response_token_ids)
        try:
            served_policy += (await engine.score(ids, adapter))[-answer:]
            served_base += (await engine.score(ids, None))[-answer:]
        except (PromptTooLong, InvalidSampling) as error:
            raise ProbeFailed(f"the manifest's probes can't be scored here: {error}") from error
    policy = [value for record in probes for value in record.policy_logprobs]
    base = [value for record in probes for value in record.base_logprobs]
    if not len(policy) == len(base) == len(served_policy):
        raise ProbeFailed("the manifest's probes have other numbers of log-probs than of tokens")
    return ProbeReport(
        noise=_distance(served_base, base),
        error=_distance(served_policy, policy),
        signal=_distance(policy, base),
        served_signal=_distance(served_policy, served_base),
        error_to_base=_distance(served_policy, base),
        tokens=len(policy),
    )


def judge(report: ProbeReport, config: ReleasesConfig) -> None:
    """Pass what proves that the trained adapter speaks.

    Raises:
        ProbeFailed: it doesn't; the message says by how much.
    """
    if not report.error <= config.probe_tolerance:  # asked so, here and below, NaN never passes
        raise ProbeFailed(
            f"probe failed: serving's log-probs are {report.error:.3g} nats a token from the trainer's"
            f" (at most {config.probe_tolerance:g}); {report}"
        )
    floor = max(report.noise, NUMERIC_FLOOR) * config.min_signal_to_noise
    if not report.signal >= floor:
        raise ProbeFailed(f"probe failed: the adapter can't be told from the base; {report}")
    if not (report.error < report.error_to_base and report.served_signal >= report.signal / 2):
        raise ProbeFailed(f"probe failed: the base answers in the adapter's name; {report}")


def _distance(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(abs(a - b) for a, b in zip(one, other, strict=True)) / len(one)
