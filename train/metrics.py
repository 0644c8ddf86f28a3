"""`hustings_train_…` for Prometheus, on the trainer's own port. Formulas: docs/metrics.md."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

from train.status import PHASES

_GAUGES = {
    "progress": "Share of the running cycle that is done, 0 to 1.",
    "iteration": "PPO iteration of the running cycle.",
    "reward": "Mean reward of the last iteration's answers, in standard deviations of the voted answers.",
    "kl": "KL of the policy to the base, nats an answer.",
    "length": "Tokens an answer.",
    "sft_loss": "Loss of the warm start on held-out edited answers, nats a token.",
    "clip_fraction": "Share of tokens whose ratio was clipped.",
    "entropy": "Mean entropy of the policy, nats a token.",
    "win_rate": "Share of evaluation prompts where the reward model prefers the new policy's answer to the base's.",
}


class TrainMetrics:
    """Mirrors the status board."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._gauges = {
            name: Gauge(f"hustings_train_{name}", text, registry=self.registry) for name, text in _GAUGES.items()
        }
        self._phase = Gauge("hustings_train_phase", "1 for the phase under way.", ["phase"], registry=self.registry)
        self._cycles = Counter(
            "hustings_train_cycles", "Cycles ended, by outcome.", ["outcome"], registry=self.registry
        )
        self._new = Gauge(
            "hustings_train_new_comparisons", "Decisive votes since the last snapshot.", registry=self.registry
        )

    def serve(self, port: int, host: str = "127.0.0.1") -> None:
        """Answer /metrics; port 0 for not at all.

        Raises:
            OSError: the port is taken.
        """
        if port:
            start_http_server(port, addr=host, registry=self.registry)

    def observe(self, status: dict[str, Any]) -> None:
        """Take over what the status board says."""
        for name, gauge in self._gauges.items():
            value = status.get(name)
            if isinstance(value, (int, float)):
                gauge.set(value)
        for phase in ("idle", *PHASES, "failed"):
            self._phase.labels(phase).set(float(status.get("phase") == phase))
        new = (status.get("dataset") or {}).get("new")
        if new is not None:
            self._new.set(new)

    def ended(self, outcome: str) -> None:
        """A cycle has ended."""
        self._cycles.labels(outcome).inc()
