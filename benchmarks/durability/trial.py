"""One trial: voters vote, parts are killed at moments drawn from a seed and started again, and then it is counted."""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.durability import training
from benchmarks.durability.evidence import NotDrained, drain, gather
from benchmarks.durability.parts import Part, ProcessPart
from benchmarks.durability.stage import ENVIRONMENT, READER, LedgerKind, LogKind, Stage, staged
from benchmarks.durability.verdict import Evidence, findings
from benchmarks.durability.voters import Heard, Voters
from benchmarks.waiting import wait_until

LOAD_S = 30.0
"""Seconds that a kill waits at most for the load that it is to fall into."""
LAST_ANSWERS_S = 120.0
A_CYCLE_S = 12.0
"""Seconds that a cycle of the trainer's takes, about."""
CANNOT_START = 2
"""Exit status after which the supervisor doesn't start a part again."""


@dataclass(frozen=True, slots=True)
class Case:
    """What is tried.

    Attributes:
        kills: how many in all.
        servings: more than one share a PostgreSQL, each with a relay of its own.
        curators: more than one share the partitions and the dataset's folder.
        outage_s: seconds that every broker is away at once, after the kills, while people go on voting.
        rebuild: whether a dataset is made anew from a replay at the end, and compared.
        trainer: whether one trains all the while, and is killed like the others.
    """

    log: LogKind
    ledger: LedgerKind
    kills: int
    seed: int
    servings: int = 1
    curators: int = 1
    voters: int = 6
    outage_s: float = 0.0
    rebuild: bool = True
    trainer: bool = True

    @property
    def name(self) -> str:
        """As the report calls it."""
        more = f", {self.servings} servings" if self.servings > 1 else ""
        return f"{self.log}, {self.ledger}{more}{'' if self.trainer else ', no trainer'}"


@dataclass(slots=True)
class Report:
    """What came of a trial.

    Attributes:
        kills: how often each part was killed.
        ended: parts that ended by themselves, with their status; the harness starts them again, as the supervisor does.
        faults: everything that may not be; empty where the promise was kept.
        waits_s: how long voters waited for an acknowledgement: median, 99th percentile, longest.
        answers: what the voters were answered, by path and status or error.
        outage_votes: acknowledged while no broker was there.
        repeats: votes that stand on the topic more than once, for readers to drop.
        cycles: of the trainer, by outcome, and how many were cut off by a kill (some of them more than once).
    """

    case: dict[str, Any]
    kills: dict[str, int] = field(default_factory=dict)
    ended: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    votes: int = 0
    pairs: int = 0
    seconds: float = 0.0
    drained_s: float = 0.0
    waits_s: dict[str, float] = field(default_factory=dict)
    answers: dict[str, int] = field(default_factory=dict)
    outage_votes: int = 0
    repeats: int = 0
    snapshots: int = 0
    snapshot: str = ""
    rebuilt: str | None = None
    cycles: dict[str, int] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def run(case: Case, folder: Path, say: Callable[[str], None] = lambda line: None) -> Report:
    """Run a trial in an empty folder, which keeps the logs and everything else.

    Raises:
        NotHere: a broker or database of the case isn't on this machine.
    """
    report = Report(asdict(case))
    with staged(
        case.log, case.ledger, folder, servings=case.servings, curators=case.curators, trainer=case.trainer
    ) as stage:
        voters = Voters(stage.urls, count=case.voters, seed=case.seed)
        keeper = _Keeper(stage, report)
        began = time.monotonic()
        voters.start()
        try:
            _kill_many(case, stage, voters.heard, keeper, report, say)
            _take_the_brokers(case, stage, voters.heard, keeper, report)
            keeper.check()
            voters.stop(LAST_ANSWERS_S)
            report.seconds = round(time.monotonic() - began, 1)
            say(f"{voters.heard.count()} votes acknowledged; draining")
            report.drained_s = round(drain(stage, keeper.check), 1)
        except (NotDrained, TimeoutError) as error:
            report.faults.append(str(error))
        finally:
            voters.abandon()
        for part in stage.parts:
            if part.name.startswith(("serve", "curate", "train", READER)):
                part.stop()
        _judge(case, stage, folder, voters.heard, report)
    return report


class _Keeper:
    """Starts again what ended by itself, and remembers it."""

    def __init__(self, stage: Stage, report: Report) -> None:
        self._stage = stage
        self._report = report

    def check(self) -> None:
        """Look once."""
        for part in self._stage.parts:
            status = part.ended()
            if status is None:
                continue
            said = part.tail().strip().splitlines()[-1:] if isinstance(part, ProcessPart) else []
            self._report.ended.append(f"{part.name} ended with {status}: {' '.join(said)}"[:400])
            if status == CANNOT_START:
                self._report.faults.append(f"{part.name} ended with {status}: the supervisor would give up")
            elif part.name in {READER, "broker", "train"} or part.name.startswith("kafka-"):
                self._report.faults.append(f"{part.name} ended by itself with {status}: {' '.join(said)}"[:400])
            part.kill()
            part.start()


def _kill_many(
    case: Case, stage: Stage, heard: Heard, keeper: _Keeper, report: Report, say: Callable[[str], None]
) -> None:
    """Kill, wait a little, start again, as often as the case says. Each round kills every kind once, in a new order."""
    rng = random.Random(case.seed)
    killed: Counter[str] = Counter()
    order: list[str] = []
    for number in range(case.kills):
        order = order or rng.sample(stage.kinds(), k=len(stage.kinds()))
        kind = order.pop()
        _wait_for_load(stage, heard, rng, keeper, work=kind == "train")
        victim = stage.victim(kind, rng)
        away = rng.choice([0.0, rng.uniform(0, 1), rng.uniform(1, 5)])
        say(f"kill {number + 1} of {case.kills}: {victim.name} away for {away:.1f} s, {heard.count()} votes so far")
        _kill(victim, away)
        if kind == "train" and training.in_a_cycle(stage.config.paths):
            report.cycles["cut off"] = report.cycles.get("cut off", 0) + 1
        killed[f"leader ({victim.name})" if kind == "leader" else victim.name] += 1
        report.kills = dict(sorted(killed.items()))


def _take_the_brokers(case: Case, stage: Stage, heard: Heard, keeper: _Keeper, report: Report) -> None:
    if not case.outage_s:
        return
    brokers = [part for part in stage.parts if part.name == "broker" or part.name.startswith("kafka-")]
    for broker in brokers:
        broker.kill()
    before, ends = heard.count(), time.monotonic() + case.outage_s
    while time.monotonic() < ends:
        keeper.check()
        time.sleep(0.1)  # the outage itself: how long it lasts is what is tried
    report.outage_votes = heard.count() - before
    if not report.outage_votes:
        report.faults.append(f"no vote was acknowledged in {case.outage_s:g} s without a broker")
    for broker in brokers:
        broker.start()


def _kill(victim: Part, away_s: float) -> None:
    victim.kill()
    time.sleep(away_s)  # being away for a drawn time is what is tried
    victim.start()


def _wait_for_load(stage: Stage, heard: Heard, rng: random.Random, keeper: _Keeper, *, work: bool) -> None:
    """Until so many more votes are acknowledged, and (every other time) the curator has stored something new.

    Args:
        work: also until the trainer is in a cycle, and then a part of one.
    """
    votes = heard.count() + rng.randint(5, 40)
    before = _parts(stage) if rng.random() < 0.5 else None

    def loaded() -> bool:
        keeper.check()
        trains = not work or training.at_work(stage.config.paths)
        return trains and heard.count() >= votes and _parts(stage) != before

    with contextlib.suppress(TimeoutError):  # a part that doesn't come back is no reason not to kill the next
        wait_until(loaded, LOAD_S, 0.05)
    time.sleep(rng.uniform(0, A_CYCLE_S if work else 0.5))  # a kill is to fall at any moment, not only after a vote


def _parts(stage: Stage) -> frozenset[str]:
    return frozenset(path.name for path in (stage.config.paths.dataset / "votes").glob("*.parquet"))


def _judge(case: Case, stage: Stage, folder: Path, heard: Heard, report: Report) -> None:
    votes = list(heard.votes)
    report.faults += heard.faults
    trained = case.trainer and not report.faults
    try:
        if trained:
            training.finish(stage.file, stage.config.paths, folder / "train.log", {**os.environ, **ENVIRONMENT})
        evidence = gather(stage, folder, rebuild=case.rebuild and not report.faults, trained=trained)
    except (NotDrained, training.NotTrained) as error:
        report.faults.append(str(error))
        evidence = gather(stage, folder, rebuild=False, trained=False)
    report.faults += findings(votes, heard.pairs, evidence)
    _describe(heard, evidence, report)


def _describe(heard: Heard, evidence: Evidence, report: Report) -> None:
    waits = sorted(vote.waited_s for vote in heard.votes) or [0.0]
    report.votes, report.pairs = len(heard.votes), len(heard.pairs)
    report.waits_s = {
        "median": round(waits[len(waits) // 2], 4),
        "p99": round(waits[int(len(waits) * 0.99)], 3),
        "longest": round(waits[-1], 2),
    }
    report.answers = dict(sorted(heard.answers.items()))
    report.repeats = len(evidence.topic) - len(set(evidence.topic))
    if evidence.training is not None:
        report.cycles |= Counter(cycle.outcome or "open" for cycle in evidence.training.cycles)
    report.snapshots, report.snapshot, report.rebuilt = len(evidence.passing), evidence.snapshot, evidence.rebuilt
