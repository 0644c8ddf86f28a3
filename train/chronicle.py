"""What a cycle tells of itself: metrics.jsonl, the status board, TensorBoard, the log and the report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import structlog

from train.config import TrainConfig
from train.cycle_state import CycleState
from train.evaluate import Evaluation
from train.files import write_text
from train.finals import Final
from train.governor import Judgement as Conduct
from train.iteration import IterationMetrics
from train.metrics import OF_UPDATES
from train.report import CycleReport, write_report
from train.sft import Epoch
from train.status import StatusBoard
from train.tensorboard import TensorBoard

log = structlog.get_logger()

SAMPLES_SHOWN = 8
"""Answers before and after in the status and the report."""
_STEPS = {"sample": (0.0, 0.15), "score": (0.35, 0.15), "old": (0.5, 0.15), "update": (0.6, 0.4), "finals": (0.0, 1.0)}
"""Of an iteration: the share of its time that lies before a step, and the step's own."""


class Chronicle:
    """One cycle's.

    Args:
        folder: the cycle's.
        status: the board.
        tokenizer: decodes the samples.
        config: the cycle's.
        number: the cycle's.
        boards: folder of TensorBoard's files.
    """

    def __init__(
        self,
        folder: Path,
        status: StatusBoard,
        *,
        tokenizer: Any,
        config: TrainConfig,
        number: int,
        boards: Path,
    ) -> None:
        self._folder = folder
        self._status = status
        self._tokenizer = tokenizer
        self._config = config
        self._log = log.bind(cycle=number)
        self._board = TensorBoard(boards, number) if config.tensorboard else None
        self._judged = 0  # policies so far
        self._furthest = 0.0  # share of PPO that was told

    def reward_model(self, model_id: str, figures: dict[str, float]) -> None:
        """The reward model was judged fit."""
        self._status.update(reward_model=figures, force=True)
        self._log.info("reward_model", id=model_id, **rounded(figures))

    def warmed(self, share: float, last: Epoch | None) -> None:
        """The warm start is `share` done."""
        loss = None if last is None else last.held_out if last.held_out is not None else last.loss
        known = "" if loss is None else f"edited answers: loss {loss:.2f} nats a token, KL {last.kl if last else 0:.1f}"
        self._status.phase("sft", share, message=known, **({} if loss is None else {"sft_loss": loss}))

    def progressed(self, step: str, done: int, total: int) -> None:
        """A step of the iteration under way is done / total done."""
        governed = self._config.governor.enabled
        if step == "finals":  # however early the iterations ended
            self._judged = self._config.ppo.iterations + 1 + governed
        before, own = _STEPS.get(step, (0.0, 0.15))
        within = min(before + own * done / max(total, 1), 1.0)
        self._status.phase("ppo", self._share(within), detail=step)

    def _share(self, within: float) -> float:
        """Of PPO, so far into the iteration under way, never less than before.

        After the updates one iteration judges the last policy, one more what is left of a step taken back, then finals.
        """
        governor = self._config.governor
        rounds = self._config.ppo.iterations + 1
        if governor.enabled:
            rounds += 1 + (governor.final_answers > 0)
        self._furthest = max(self._furthest, min((self._judged + within) / rounds, 1.0))
        return self._furthest

    def iteration(self, metrics: IterationMetrics, conduct: Conduct) -> None:
        """An iteration has ended. One that is done again replaces its line, and drops what came after."""
        record = {**asdict(metrics), "within": conduct.within, "breaches": list(conduct.breaches)}
        path = self._folder / "metrics.jsonl"
        kept = [line for line in _lines(path) if json.loads(line)["iteration"] < metrics.iteration]
        write_text(path, "".join(f"{line}\n" for line in [*kept, json.dumps(record)]))
        known = {name: value for name, value in record.items() if metrics.updates or name not in OF_UPDATES}
        if self._board is not None:
            self._board.write(metrics.iteration, known)
        self._judged = metrics.iteration + 1
        figures = {"reward": metrics.score, "kl": metrics.kl, "length": metrics.length, "iteration": metrics.iteration}
        self._status.phase(
            "ppo",
            self._share(0.0),
            step=min(self._judged, self._config.ppo.iterations),
            message=f"reward {metrics.score:.2f}, KL {metrics.kl:.1f}",
            figures=record,
            **figures,
            **{name: known[name] for name in ("clip_fraction", "entropy") if name in known},
        )
        self._log.info("iteration", **rounded(figures), breaches=list(conduct.breaches))

    def finals(self, held: Sequence[Final]) -> None:
        """The best policies have been judged on fresh answers."""
        write_text(self._folder / "finals.json", json.dumps([asdict(final) for final in held]))
        for final in held:
            self._log.info("final", **rounded(asdict(final)))

    def evaluated(self, evaluation: Evaluation) -> None:
        """Base and policy have answered the same prompts."""
        self._status.update(samples=self._samples(evaluation), win_rate=evaluation.win_rate, force=True)
        self._log.info("evaluated", **rounded(evaluation.metrics()))

    def report(
        self, state: CycleState, chosen: int, base: str, figures: dict[str, float], evaluation: Evaluation | None
    ) -> None:
        """Write `report.html`.

        Args:
            state: of the cycle.
            chosen: iteration whose policy is published; 0 for none.
            base: name of the base model.
            figures: everything measured.
            evaluation: of the published policy, if there is one.
        """
        governor, finals = self._config.governor, self._folder / "finals.json"
        facts = {
            "Base": base,
            "Goes on from": state.parent or "the base",
            "Votes": state.snapshot or "",
            "Reward model": state.reward_model or "",
            "Began": _moment(state.started_at),
            "Ended": _moment(state.finished_at),
        }
        write_report(
            self._folder / "report.html",
            CycleReport(
                number=state.number,
                adapter=state.adapter,
                facts={name: text for name, text in facts.items() if text},
                iterations=[json.loads(line) for line in _lines(self._folder / "metrics.jsonl")],
                chosen=chosen,
                finals=json.loads(finals.read_text()) if finals.is_file() else (),
                max_kl=governor.max_kl if governor.enabled else None,
                judgement=json.loads((self._folder / "reward" / "judgement.json").read_text()),
                samples=[] if evaluation is None else self._samples(evaluation),
                figures=figures,
                config=state.config,
            ),
        )

    def _samples(self, evaluation: Evaluation) -> list[dict[str, str]]:
        pairs = list(zip(evaluation.before.samples, evaluation.after.samples, strict=True))[:SAMPLES_SHOWN]
        return [
            {
                "prompt": self._text(before.prompt_ids),
                "before": self._text(before.response_ids),
                "after": self._text(after.response_ids),
            }
            for before, after in pairs
        ]

    def _text(self, token_ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=True))


def rounded(figures: dict[str, Any]) -> dict[str, Any]:
    """For the log: floats to four places."""
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in figures.items()}


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []


def _moment(stamp: str | None) -> str:
    return f"{stamp[:16].replace('T', ' ')} UTC" if stamp else ""
