"""The election of a candidate: verified, then a canary against the office-holder, until votes or a guard decide.

Every method is called with the release manager's lock held.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from datetime import datetime

import structlog

from feedback.contracts import ReleaseChanged, ReleaseState, utc_now
from feedback.ledger import Release
from serve.deps import ServeDeps, on_thread
from serve.engines.base import EngineError
from serve.releases import history as told
from serve.releases.desk import AUTO, Desk, change
from serve.releases.loader import REFUSALS, Loader
from serve.releases.referee import Contest, Referee, Standing, Verdict
from serve.releases.succession import Succession

VOTES_A_SECOND = 2_500
"""An office-holder's votes are counted at this pace at most, and with `anchor_share` they grow for ever: 40,000 take a
third of a second, and are counted every 16 s. So few as fit between two looks are counted at each."""
CALL_AGAIN_S = 60.0
"""Seconds between two attempts to load a predecessor that can't be had."""
WAITING = (ReleaseState.CANDIDATE, ReleaseState.VERIFIED)
log = structlog.get_logger(__name__)


class Election:
    """Brings candidates before the voters, one at a time, and does what the referee says.

    Attributes:
        canary: how the canary stands as of the last look; None without one.
        alarm: how the office-holder stands against the one before it; None where nobody compares them.
    """

    def __init__(self, deps: ServeDeps, desk: Desk, loader: Loader, succession: Succession) -> None:
        self._deps = deps
        self._desk = desk
        self._loader = loader
        self._succession = succession
        self._referee = Referee(deps.ledger, deps.config.releases, deps.office.failures, deps.book.trust_before)
        self.canary: Standing | None = None
        self.alarm: Standing | None = None
        self._unreadable: str | None = None
        self._counted: tuple[str | None, float] = (None, 0.0)
        self._call_again = 0.0

    async def look(self, announced: Mapping[str, str]) -> None:
        """Judge the canary and the office-holder, act on it, and let the next candidate stand.

        Args:
            announced: sha256 of manifests by adapter, where it was announced.
        """
        paused = told.paused(await self._desk.gate())
        self._deps.metrics.release_paused.set(paused)
        await self._judge_canary(paused)
        await self._judge_office()
        if self._deps.config.releases.gate == "votes" and not paused and await self._nominate(announced):
            await self._judge_canary(paused)

    # The canary

    async def _judge_canary(self, paused: bool) -> None:
        history = await self._desk.history()
        name = told.canary(history)
        release = None if name is None else await self._desk.release(name)
        if name is None or self._is_unreadable(release) or not await self._show(name, paused):
            self.canary = None
            self._deps.office.set_canaries(())
            self._export()
            return
        figures = release.manifest.metrics if release and release.manifest else {}
        contest = Contest(name, self._deps.office.holder, _begin(history, name), figures)
        self.canary = await on_thread(self._referee.canary, contest, utc_now())
        self._export()
        if not paused and self.canary.outcome.verdict is not Verdict.OPEN:
            decided, self.canary = self.canary, None
            await self._decide(decided)
            self._export()

    async def _show(self, name: str, paused: bool) -> bool:
        """Have the canary loaded and its share of the pairs set; False where it turned out to be refused."""
        if name not in self._deps.engine.adapters():
            self._deps.office.withdraw(name)  # its servers have come back without it, say: until it is there
            try:
                await self._loader.bring_up(name)
            except REFUSALS as error:
                await self._succession.reject(name, ReleaseState.CANARY, str(error), AUTO)
                return False
        self._deps.office.set_canaries(() if paused else (name,))
        return True

    async def _decide(self, standing: Standing) -> None:
        name, figures = standing.contest.adapter, standing.figures()
        if standing.outcome.vetoing is not None:
            self._deps.metrics.release_vetoes.labels(standing.outcome.vetoing).inc()
        if standing.outcome.verdict is Verdict.PROMOTE:
            await self._succession.install(name, ReleaseState.CANARY, standing.outcome.reason, AUTO, figures=figures)
        else:
            after = ReleaseState.REJECTED if standing.outcome.verdict is Verdict.REJECT else ReleaseState.RETIRED
            await self._succession.reject(
                name, ReleaseState.CANARY, standing.outcome.reason, AUTO, after=after, figures=figures
            )

    def _is_unreadable(self, release: Release | None) -> bool:
        """Whether its figures can't be read: a guard without its figure would let it pass, so nobody meets it."""
        why = None if release is None else release.unreadable
        if release is not None and why is not None and why != self._unreadable:
            log.error("canary can't be judged: promote or reject it by hand", adapter=release.name, reason=why)
        self._unreadable = why
        return why is not None

    def _export(self) -> None:
        standing, metrics = self.canary, self._deps.metrics
        metrics.canary_votes.set(standing.votes if standing else 0)
        metrics.canary_ballots.set(standing.ballots if standing else 0)
        for bound in ("mean", "lower", "upper"):
            value = getattr(standing, "win_rate" if bound == "mean" else bound) if standing else None
            metrics.canary_win_rate.labels(bound).set(math.nan if value is None else value)

    # The office-holder

    async def _judge_office(self) -> None:
        """Put back an office-holder whom voters like less than its predecessor, or than the base."""
        holder, config = self._deps.office.holder, self._deps.config.releases
        began = time.monotonic()
        if holder == self._counted[0] and began < self._counted[1]:
            return
        history = await self._desk.history()
        stack = told.office_stack(history)
        if holder is None or stack[-1:] != [holder]:
            self.alarm = None
            self._succession.watch(history, watched=False)
            return
        predecessor = stack[-2] if len(stack) > 1 else None
        since = told.since(history, holder)
        against_predecessor: Standing | None = None
        counted = 0
        opponents = dict.fromkeys((predecessor, None))
        for opponent in opponents:
            contest = Contest(holder, opponent, since)
            standing = await on_thread(self._referee.alarm, contest, utc_now(), opponents=len(opponents))
            if standing.outcome.verdict is Verdict.REJECT and config.alarm.on:
                self.alarm = None
                self._deps.metrics.release_alarms.inc()
                await self._succession.step_back(
                    standing.outcome.reason, AUTO, leaving=ReleaseState.REJECTED, figures=standing.figures()
                )
                return
            counted += standing.votes
            against_predecessor = against_predecessor or standing
        pause = counted / VOTES_A_SECOND
        self._counted = (holder, began + pause if pause > config.canary.look_s else began)
        self.alarm = against_predecessor
        undecided = self.alarm is not None and self.alarm.outcome.verdict is Verdict.OPEN
        watched = undecided and config.gate == "votes" and config.alarm.on
        if watched and predecessor is not None:
            await self._call_back(predecessor)
        self._succession.watch(history, watched=watched)

    async def _call_back(self, predecessor: str) -> None:
        """Have the predecessor loaded, which a restart has not: nobody else would meet the office-holder.

        Only where one place more is free: candidates and the trainer go first.
        """
        loaded = self._deps.engine.adapters()
        full = len(loaded) >= self._deps.config.max_loras - 1
        if predecessor in loaded or full or time.monotonic() < self._call_again:
            return
        try:
            await self._loader.bring_up(predecessor)
        except (*REFUSALS, EngineError) as error:  # the office-holder stays, and elections go on
            self._call_again = time.monotonic() + CALL_AGAIN_S
            log.warning("the office-holder can't be watched", predecessor=predecessor, reason=str(error))

    # Candidates

    async def _nominate(self, announced: Mapping[str, str]) -> bool:
        """The newest candidate that proves itself stands, if nobody does; those that waited longer are out of date."""
        history = await self._desk.history()
        if told.canary(history) is not None:
            return False
        newest = told.newest_office_holder(history)
        standing: str | None = None
        for release in reversed(await self._desk.releases_in(WAITING)):
            if newest is not None and release.name < newest:
                await self._supersede(release, f"{newest} has been in office")
            elif standing is not None:
                await self._supersede(release, f"{standing} is the newer candidate")
            elif await self._stand(release, announced.get(release.name)):
                standing = release.name
        return standing is not None

    async def _stand(self, release: Release, manifest_sha256: str | None) -> bool:
        """Make a release the canary; False where it was refused."""
        try:
            brought = await self._loader.bring_up(release.name, manifest_sha256)
        except REFUSALS as error:
            await self._succession.reject(release.name, release.state, str(error), AUTO)
            return False
        changes = [
            change(release.name, release.state, ReleaseState.VERIFIED, f"probe passed: {brought.report}", AUTO),
            change(release.name, ReleaseState.VERIFIED, ReleaseState.CANARY, "voters decide", AUTO),
        ]
        if release.state is ReleaseState.VERIFIED:
            del changes[0]
        await self._desk.record(*changes, manifest=brought.stored.manifest)
        self._deps.office.set_canaries((release.name,))
        return True

    async def _supersede(self, release: Release, why: str) -> None:
        await self._succession.reject(
            release.name, release.state, f"superseded: {why}", AUTO, after=ReleaseState.RETIRED
        )


def _begin(history: list[ReleaseChanged], name: str) -> datetime:
    """When this canary met this office-holder for the first time: votes against an earlier one don't count."""
    began, office = told.since(history, name), told.office_since(history)
    return began if office is None else max(began, office)
