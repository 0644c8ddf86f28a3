"""The trainer's process: composes everything, watches for votes, runs cycles. Heavy imports wait until a cycle runs."""

from __future__ import annotations

import gc
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from feedback.config import FeedbackConfig
from feedback.event_log import EventLog, EventLogError
from feedback.paths import DataPaths
from train import tensorboard
from train.config import TrainConfig
from train.cycle_state import CycleState, cycles_folder, history, last_cycle, load_state, open_cycle, save_state
from train.errors import CycleInterrupted, OfficeUnknown, RolloutsUnavailable, TrainError
from train.forgetting import Forgetting
from train.metrics import TrainMetrics
from train.process import go_second, only_trainer, shortage, signals
from train.pruning import prune
from train.publish import announce_missing
from train.reviewing import Reviews
from train.status import StatusBoard
from train.terminal import TerminalProgress
from train.watch import Ahead, counts, is_due

if TYPE_CHECKING:
    from feedback.dataset import Dataset
    from train.base import Base
    from train.rollout import Rollouts, ServingRollouts
    from train.team import Team

log = structlog.get_logger()

ANNOUNCE_EVERY_S = 20.0
"""Seconds between looks whether the topic still holds every adapter (an embedded broker forgets on restart)."""
RETRY_S = (30.0, 60.0, 120.0, 300.0)
"""Waits before an interrupted cycle is taken up again while what it needs (serving, disk, memory) is missing."""


def run(  # noqa: PLR0917 - the command line's call
    config: TrainConfig,
    feedback: FeedbackConfig,
    paths: DataPaths,
    model: str,
    bootstrap: str | None,
    once: bool,
    serve_url: str | None,
    operator_token: str | None,
) -> int:
    """Run the trainer until it is told to stop, or for one cycle.

    Args:
        config: `[train]`.
        feedback: `[feedback]`.
        paths: the data folder.
        model: folder of the base model.
        bootstrap: Kafka; None publishes without an announcement (the next trainer with a broker announces).
        once: run one cycle now, whatever the schedule says.
        serve_url: of serving, for rollouts through it.
        operator_token: for the same.

    Returns:
        0, or 1 when the one cycle did not end with a published adapter.

    Raises:
        TensorBoardMissing: it is asked for and isn't installed.
    """
    if config.tensorboard:
        tensorboard.require()
    go_second(config.schedule.niceness)
    paths.create()
    stop = threading.Event()
    with ExitStack() as stack:
        joined = _torchrun_team(config, stack)
        if joined is not None and not joined.leads:
            from train.follow import follow

            return follow(joined, paths, model)
        try:
            stack.enter_context(only_trainer(paths))
        except BlockingIOError:
            sys.stderr.write(f"another trainer works in {paths.root}: stop it first, or wait for its cycle\n")
            return 1
        stack.enter_context(signals(stop))
        progress = stack.enter_context(TerminalProgress(sys.stderr))
        metrics = TrainMetrics()
        _clear(paths.rollout_adapters)
        trainer = Trainer(
            config=config,
            feedback=feedback,
            paths=paths,
            model=model,
            bootstrap=bootstrap,
            serve_url=serve_url,
            operator_token=operator_token,
            stop=stop,
            metrics=metrics,
            progress=progress,
            joined=joined,
        )
        if once:
            return trainer.run_once()
        try:
            metrics.serve(config.schedule.metrics_port, config.schedule.metrics_host)
        except OSError as error:
            port = config.schedule.metrics_port
            sys.stderr.write(f"port {port} for the trainer's metrics is taken ({error.strerror}): ")
            sys.stderr.write("set train.schedule.metrics_port, 0 for none\n")
            return 1
        trainer.watch()
    return 0


def _torchrun_team(config: TrainConfig, stack: ExitStack) -> Team | None:
    """The team that torchrun started this process in, until the stack unwinds; None where it did not."""
    if "RANK" not in os.environ or os.environ.get("WORLD_SIZE", "1") == "1":
        return None
    from train.launch import joined_by_torchrun

    team = stack.enter_context(joined_by_torchrun(config))
    if team.leads:
        stack.callback(team.tell, {"do": "quit"})
    return team


class Trainer:
    """Watches and runs cycles."""

    def __init__(
        self,
        *,
        config: TrainConfig,
        feedback: FeedbackConfig,
        paths: DataPaths,
        model: str,
        bootstrap: str | None,
        serve_url: str | None,
        operator_token: str | None,
        stop: threading.Event,
        metrics: TrainMetrics,
        progress: TerminalProgress,
        joined: Team | None = None,
    ) -> None:
        from feedback.dataset import Dataset

        self._config, self._feedback, self._paths, self._model = config, feedback, paths, model
        self._serve_url, self._operator_token = serve_url, operator_token
        self._stop, self._metrics, self._progress = stop, metrics, progress
        self._joined = joined
        self._dataset: Dataset = Dataset(paths.dataset)
        self._log = _event_log(bootstrap, feedback)
        self._status = StatusBoard(paths.train / "status.json", self._changed)
        self._announced, self._ahead, self._worry = -ANNOUNCE_EVERY_S, Ahead(), ""
        self._forgetting = Forgetting(paths, self._dataset, self._status)
        served = self._through_serving if serve_url and operator_token else None
        self._reviews = Reviews(config, self._dataset, lambda: self._tools(config), self._incumbent, served)
        self._status.update(cycles=history(self._paths))

    def run_once(self) -> int:
        """One cycle now (or the end of one that was cut off)."""
        self._forgetting.look()
        state = self._cycle()
        if state is not None and state.outcome == "published":
            self._announce(force=True)
            return 0
        return 1

    def watch(self) -> None:
        """Run cycles as they become due, until told to stop."""
        attempts = 0
        while not self._stop.is_set():
            self._announce()
            self._forgetting.look()
            last = last_cycle(self._paths)
            if last is None or last.outcome is not None:
                new = self._dataset.count_new(last.snapshot if last else None)
                due = is_due(new, self._config, last)
                self._status.update(
                    phase="idle",
                    progress=0.0,
                    eta_s=None,
                    message=_idle_message(due.reason, last, self._worry),
                    dataset=counts(self._dataset, last, new, due.needed),
                )
                if not due.now:
                    if last is not None and self._reviews.due(last):
                        self._reviews.prepare(last)
                    if self._config.reward.head == "mix" and self._ahead.due(new.decisive, due.needed):
                        self._read_ahead()
                    self._stop.wait(self._config.schedule.poll_s)
                    continue
                log.info("cycle_due", reason=due.reason)
            state = self._cycle()
            if state is None and not self._stop.is_set():
                self._stop.wait(RETRY_S[min(attempts, len(RETRY_S) - 1)])
                attempts += 1
            else:
                attempts = 0
                self._announce(force=True)

    def _cycle(self) -> CycleState | None:
        """Run the open cycle to its end; None where it was interrupted and stays open."""
        from train.cycle import Cycle

        state = open_cycle(self._paths, self._config)
        try:
            with self._tools(TrainConfig.model_validate(state.config)) as tools:
                state = Cycle(tools, state).run()
        except CycleInterrupted:
            log.info("cycle_interrupted", cycle=state.number, next="the next start resumes it")
            return None
        except (RolloutsUnavailable, OfficeUnknown) as error:
            self._held_up(str(error))
            return None
        except TrainError as error:
            if not self._begun(state.number):  # the base or the machine is at fault, and would be for the next cycle
                self._held_up(str(error))
                return None
            return self._ended(state.number, "refused", str(error), getattr(error, "test", None))
        except Exception as error:
            line = shortage(error, TrainConfig.model_validate(state.config), self._doing())
            if line is None:
                if self._begun(state.number):
                    self._ended(state.number, "failed", f"{type(error).__name__}: {error}".splitlines()[0])
                raise
            self._held_up(line)
            if self._joined is not None:  # the others stand where nobody knows; torchrun starts all of them anew
                raise SystemExit(1) from None
            return None
        finally:
            gc.collect()
        return self._ended(state.number, "published", "")

    def _begun(self, number: int) -> bool:
        """Whether the cycle has taken its votes; before that there is nothing to judge, and it waits."""
        return load_state(cycles_folder(self._paths) / f"{number:06d}").snapshot is not None

    def _read_ahead(self) -> None:
        """Read the answers voted on so far; whatever goes wrong, the cycle will read them itself and say so."""
        from train.reading import read_features

        try:
            with self._tools(self._config) as tools:
                data = tools.votes.load(tools.votes.freeze())
                read_features(tools, self._config, data)
                log.info("read_ahead", answers=len(data.votes.answers))
            self._worry = ""
        except Exception as error:
            line = shortage(error, self._config, "features")
            if line is None and not isinstance(error, TrainError | OSError):
                raise
            self._worry = line or str(error)  # told while votes still come in: a base that can't be trained, say
            log.warning("not_read_ahead", reason=str(error), next="the cycle reads them itself")
        finally:
            gc.collect()

    def _doing(self) -> str:
        """The phase under way; within PPO, the part of an iteration."""
        status = self._status.status
        return str(status.get("detail") if status["phase"] == "ppo" else status["phase"])

    def _held_up(self, line: str) -> None:
        self._status.update(phase="failed", message=f"{line} (the cycle goes on when that is mended)", force=True)
        log.error("cycle_held_up", reason=line)
        self._say(line)

    def _ended(self, number: int, outcome: Any, reason: str, refused_by: str | None = None) -> CycleState:
        state = load_state(cycles_folder(self._paths) / f"{number:06d}")
        if state.outcome is None:
            ended = {"outcome": outcome, "reason": reason, "refused_by": refused_by}
            state = state.model_copy(update=ended).finished()
            save_state(cycles_folder(self._paths), state)
        self._metrics.ended(state.outcome or outcome)
        published = state.outcome == "published"
        message = f"published {state.adapter}" if published else reason
        self._status.update(
            phase="idle" if published else "failed",
            progress=1.0 if published else 0.0,
            eta_s=None,
            message=message,
            cycles=history(self._paths),
            force=True,
        )
        if not published:
            log.error("cycle_ended", cycle=number, outcome=outcome, reason=reason)
            self._say(reason)
        prune(self._paths, self._dataset, self._config.schedule)
        return state

    def _say(self, line: str) -> None:
        if self._progress.shown:
            sys.stderr.write(f"{line}\n")

    @contextmanager
    def _tools(self, config: TrainConfig) -> Iterator[Any]:
        from feedback.fingerprint import model_folder
        from feedback.voters import weigher
        from train import launch
        from train.data import DatasetVotes

        self._status.update(phase="snapshot", message="loading the base model", force=True)
        folder = model_folder(self._model)
        weigh = weigher(self._feedback.voters)
        with launch.team(config, self._paths, str(folder), self._joined) as team:
            launch.set_threads(config, team.size)
            team.tell({"do": "begin", "config": config.model_dump(mode="json")})
            yield team.agree(
                lambda: launch.make_tools(
                    config,
                    self._paths,
                    folder,
                    team,
                    votes=lambda texts: DatasetVotes(self._paths.dataset, weigh, texts),
                    status=self._status,
                    rollouts=self._serving_rollouts if self._serve_url and self._operator_token else None,
                    incumbent=self._incumbent,
                    should_stop=self._stop.is_set,
                )
            )

    def _serving_rollouts(self, base: Base, name: str) -> Rollouts:
        from train.base import POLICY
        from train.rollout import run_of

        return self._through_serving(lambda folder: base.adapters.save(POLICY, folder, self._model), run_of(name))

    def _through_serving(self, save: Callable[[Path], None] = lambda _folder: None, run: str = "") -> ServingRollouts:
        from train.rollout import ServingRollouts

        assert self._serve_url is not None
        assert self._operator_token is not None
        return ServingRollouts(
            self._serve_url,
            self._operator_token,
            self._paths.rollout_adapters,
            save,
            run=run,
            attempts=self._config.rollout.attempts,
            timeout_s=self._config.rollout.timeout_s,
        )

    def _incumbent(self) -> Path | None:
        from feedback.ledger import Ledger, LedgerError

        try:
            ledger = Ledger.open(self._feedback.ledger_url or self._paths.ledger_url)
            try:
                office = ledger.office()
            finally:
                ledger.close()
        except LedgerError as error:
            raise OfficeUnknown(str(error)) from error
        return self._paths.adapters / office if office else None

    def _announce(self, *, force: bool = False) -> None:
        if self._log is None or (not force and time.monotonic() - self._announced < ANNOUNCE_EVERY_S):
            return
        self._announced = time.monotonic()
        try:
            for name in announce_missing(self._log, self._paths.adapters):
                log.info("adapter_announced", adapter=name)
        except EventLogError as error:
            log.warning("adapter_not_announced", reason=str(error), next=f"again in {ANNOUNCE_EVERY_S:.0f} s")

    def _changed(self, status: dict[str, Any]) -> None:
        self._metrics.observe(status)
        self._progress.observe(status)


def _clear(folder: Path) -> None:
    """Policies that a killed trainer was handing to serving: each has a name of its own, and nobody else's go there."""
    for left in folder.iterdir():
        shutil.rmtree(left, ignore_errors=True)


def _idle_message(waiting: str, last: CycleState | None, worry: str = "") -> str:
    bad = last is not None and last.outcome != "published"
    past = [f"cycle {last.number} {last.outcome}: {last.reason}"] if bad and last is not None else []
    return "; ".join([*past, *filter(None, [worry]), waiting])


def _event_log(bootstrap: str | None, feedback: FeedbackConfig) -> EventLog | None:
    if bootstrap is None:
        return None
    from feedback.kafka_log import KafkaEventLog

    return KafkaEventLog.configured(bootstrap, feedback)
