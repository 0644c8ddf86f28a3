"""Reads the votes and says how an election stands. Blocking, and it changes nothing: who acts on it is `Election`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from feedback.contracts import PairShown
from feedback.ledger import Duel, Ledger
from serve.config import CanaryConfig, ReleasesConfig
from serve.releases import ballots
from serve.releases.ballots import Count
from serve.releases.guards import Guards, Reading, told
from serve.releases.sequential import Evidence, interval, log_capital, mirrored, total_weight
from serve.releases.trust import Scales, Trust

HALF = 0.5
OVERLAP = timedelta(seconds=60)
"""Pairs become visible at their commit, a little later than they were shown: look so far back again."""
BATCH = 200
BASELINE_VOTES = 20
BASELINE_RISE = 0.15


class Verdict(StrEnum):
    """What the votes say."""

    OPEN = "open"
    PROMOTE = "promote"
    REJECT = "reject"
    RETIRE = "retire"


@dataclass(frozen=True, slots=True)
class Contest:
    """Who is tried against whom (None: the base), from when on, and the tried one's manifest's figures."""

    adapter: str
    opponent: str | None
    since: datetime
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What follows from a standing. `reason` goes into the ledger with the verdict."""

    verdict: Verdict
    reason: str
    guards: tuple[Reading, ...] = ()

    @property
    def vetoing(self) -> str | None:
        """The guard that forbids a promotion, if any."""
        return next((reading.guard for reading in self.guards if reading.vetoes), None)


@dataclass(frozen=True, slots=True)
class Standing:
    """How a contest stands.

    Attributes:
        ballots: closed ones that weigh anything, which are what the test counts.
        weight: of these together: each is its voter's, 0 to 1.
        win_rate: mean of the ballots by their weights; None without any.
        lower: bound of the win rate's confidence sequence, as is `upper`.
        evidence: log capital of the test over what it needs, -inf to 1: how near it is to its end.
        left_share: of the decisive votes; far from a half is position bias.
    """

    contest: Contest
    votes: int
    voters: int
    ballots: int
    weight: float
    wins: int
    losses: int
    ties: int
    both_bad: int
    left_share: float | None
    win_rate: float | None
    lower: float
    upper: float
    evidence: float
    outcome: Outcome

    def figures(self) -> dict[str, float]:
        """What a decision rests on, for the audit trail."""
        numbers = {
            "votes": self.votes,
            "voters": self.voters,
            "ballots": self.ballots,
            "weight": self.weight,
            "wins": self.wins,
            "losses": self.losses,
            "ties": self.ties,
            "both_bad": self.both_bad,
            "win_rate": self.win_rate,
            "lower": self.lower,
            "upper": self.upper,
        }
        guards = {f"guard_{reading.guard}": reading.value for reading in self.outcome.guards}
        return {name: float(value) for name, value in {**numbers, **guards}.items() if value is not None}


class Referee:
    """Judges canaries and office-holders by the ledger's votes.

    Args:
        failures: requests that an adapter was given here, and how many of them failed.
        trust: how far each voter is trusted; nobody less than wholly where nothing tells.
    """

    def __init__(
        self,
        ledger: Ledger,
        config: ReleasesConfig,
        failures: Callable[[str], tuple[int, int]],
        trust: Trust = lambda before, one, other: {},
    ) -> None:
        self._ledger = ledger
        self._config = config
        self._failures = failures
        self._contest: Contest | None = None
        self._guards: _SeenPairs | None = None
        self._scales = Scales(trust, timedelta(hours=config.canary.weigh_every_h))

    def canary(self, contest: Contest, now: datetime) -> Standing:
        """How a candidate stands against the office-holder."""
        duels = self._ledger.duels(contest.adapter, contest.opponent, contest.since)
        counted = self._count(contest, duels, now)
        guards = self._read_guards(contest, counted)
        vetoing = next((reading for reading in guards if reading.vetoes), None)
        verdict, reason = self._judge(contest, counted, vetoing, now)
        alpha = self._config.canary.alpha
        share = log_capital(counted.ballots, HALF + self._config.canary.margin) / -math.log(alpha)
        return _standing(contest, counted, alpha, share, Outcome(verdict, reason, guards))

    def alarm(self, contest: Contest, now: datetime, *, opponents: int = 1) -> Standing:
        """How an office-holder stands against one whom voters may like better; REJECT is the alarm.

        Args:
            opponents: how many it is watched against: `alarm.alpha` is shared out among them, so that it bounds the
                probability of any false alarm (Bonferroni).
        """
        config, alpha = self._config.alarm, self._config.alarm.alpha / opponents
        duels = self._ledger.duels(contest.adapter, contest.opponent, contest.since)
        counted = self._count(contest, duels, now)
        evidence = log_capital(mirrored(counted.ballots), HALF)
        verdict, reason = Verdict.OPEN, ""
        if evidence >= -math.log(alpha):
            verdict = Verdict.REJECT
            reason = f"alarm: voters prefer {contest.opponent or 'the base'}; {_told(counted, alpha)}"
        elif counted.votes >= config.max_votes:
            verdict, reason = Verdict.RETIRE, f"watched for {counted.votes} votes"
        share = evidence / -math.log(alpha)
        return _standing(contest, counted, alpha, share, Outcome(verdict, reason))

    def _judge(self, contest: Contest, counted: Count, veto: Reading | None, now: datetime) -> tuple[Verdict, str]:
        config = self._config.canary
        needed = -math.log(config.alpha)
        if veto is not None:
            return Verdict.REJECT, f"guard {veto.guard}: {told(veto)}"
        if log_capital(counted.ballots, HALF + config.margin) >= needed and counted.votes >= config.min_votes:
            return Verdict.PROMOTE, f"won {_told(counted, config.alpha)}"
        if log_capital(mirrored(counted.ballots), HALF) >= needed:
            return Verdict.REJECT, f"lost: {_told(counted, config.alpha)}"
        if counted.votes >= config.max_votes:
            return Verdict.REJECT, f"not shown to be better: {_told(counted, config.alpha)}"
        if now - contest.since >= timedelta(hours=config.patience_h):
            return Verdict.RETIRE, f"undecided after {config.patience_h:g} h: {_told(counted, config.alpha)}"
        return Verdict.OPEN, ""

    def _count(self, contest: Contest, duels: list[Duel], now: datetime) -> Count:
        config: CanaryConfig = self._config.canary

        def weigh(voter: str, closed: datetime) -> float:
            if not config.weigh:
                return 1.0
            return self._scales.weigh(contest.adapter, contest.opponent, contest.since, voter, closed)

        idle = timedelta(seconds=config.ballot_idle_s)
        return ballots.count(duels, now=now, size=config.ballot_votes, idle=idle, by_voter=config.by_voter, weigh=weigh)

    def _read_guards(self, contest: Contest, counted: Count) -> tuple[Reading, ...]:
        if self._guards is None or self._contest != contest:
            guards = Guards(self._config.guards, contest.adapter, contest.metrics)
            self._contest, self._guards = contest, _SeenPairs(guards, contest)
        self._guards.catch_up(self._ledger)
        both_bad = Evidence(self._both_bad_limit(contest))
        both_bad.add(1.0, counted.outcomes["both_bad"])
        both_bad.add(0.0, counted.votes - counted.outcomes["both_bad"])
        asked, failed = self._failures(contest.adapter)
        errors = Evidence(self._config.guards.max_error_rate)
        errors.add(1.0, failed)
        errors.add(0.0, asked - failed)
        return self._guards.guards.readings(both_bad, errors)

    def _both_bad_limit(self, contest: Contest) -> float:
        """The configured share; more where the office-holder against itself is called as bad."""
        limit = self._config.guards.max_both_bad
        own = self._ledger.duels(contest.opponent, contest.opponent, contest.since)
        if len(own) < BASELINE_VOTES:
            return limit
        share = sum(duel.outcome == "both_bad" for duel in own) / len(own)
        return min(0.99, max(limit, share + BASELINE_RISE))


class _SeenPairs:
    """The canary's pairs as far as the guards have seen them."""

    def __init__(self, guards: Guards, contest: Contest) -> None:
        self.guards = guards
        self._contest = contest
        self._from = contest.since
        self._seen: dict[str, datetime] = {}

    def catch_up(self, ledger: Ledger) -> None:
        """Take in what was recorded since the last look."""
        while True:
            limit = BATCH + len(self._seen)
            found = ledger.pairs_of(self._contest.adapter, self._contest.opponent, self._from, limit)
            fresh = [pair for pair in found if pair.pair_id not in self._seen]
            for pair in fresh:
                self.guards.add(pair)
            self._remember(fresh)
            if len(found) < limit:
                return

    def _remember(self, fresh: list[PairShown]) -> None:
        self._seen.update((pair.pair_id, pair.shown_at) for pair in fresh)
        if fresh:
            self._from = max(self._from, fresh[-1].shown_at - OVERLAP)
            self._seen = {name: at for name, at in self._seen.items() if at >= self._from}


def _standing(contest: Contest, counted: Count, alpha: float, evidence: float, outcome: Outcome) -> Standing:
    bounds = interval(counted.ballots, alpha)
    return Standing(
        contest=contest,
        votes=counted.votes,
        voters=counted.voters,
        ballots=counted.ballots.total(),
        weight=round(total_weight(counted.ballots), 3),
        wins=counted.outcomes["win"],
        losses=counted.outcomes["loss"],
        ties=counted.outcomes["tie"],
        both_bad=counted.outcomes["both_bad"],
        left_share=counted.left_share,
        win_rate=bounds.mean,
        lower=bounds.lower,
        upper=bounds.upper,
        evidence=min(1.0, evidence),
        outcome=outcome,
    )


def _told(counted: Count, alpha: float) -> str:
    bounds = interval(counted.ballots, alpha)
    if bounds.mean is None:
        return f"{counted.votes} votes, none of which counts yet"
    return (
        f"{bounds.mean:.0%} [{bounds.lower:.0%}, {bounds.upper:.0%}] of {counted.ballots.total()} ballots,"
        f" {counted.votes} votes of {counted.voters} people"
    )
