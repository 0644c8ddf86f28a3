"""`hustings simulate`: people who chat and vote, over HTTP like everybody else."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import structlog
from pydantic import Field

from feedback.config import Section
from feedback.contracts import Choice, Message
from feedback.simulator.client import PatientClient, RequestRefused, SimulateError
from feedback.simulator.progress import Progress, make_progress
from feedback.simulator.topics import Prompt, Split, prompts
from feedback.simulator.utilities import utility
from feedback.simulator.voters import Ballot, RankedBallot, Temper, rank, vote

logger = structlog.get_logger(__name__)

REFUSALS_IN_A_ROW = 5
"""After so many, the simulation gives up: something is wrong with the requests."""


class SimulateConfig(Section):
    """`hustings simulate`."""

    url: str = "http://127.0.0.1:8000"
    """Address of serving."""
    votes: int = Field(default=64, ge=1)
    """Votes to cast."""
    n: int = Field(default=2, ge=2, le=4)
    """Answers to each question: two are voted on, three or four are ranked."""
    decisive: bool = False
    """Count only votes that name a winner (ties and both-bad are cast, but not counted); a ranking is one vote."""
    utility: str = "warm_words"
    """The hidden taste, one of feedback.simulator.utilities.UTILITIES."""
    voters: int = Field(default=20, ge=1)
    """Different people."""
    concurrency: int = Field(default=4, ge=1)
    """People who chat at the same time."""
    reviews: float = Field(default=0.0, ge=0, le=1)
    """Share of the votes that are cast on prepared pairs, as long as any wait (docs/voting.md)."""
    noise: float = Field(default=0.15, ge=0, le=1)
    """Probability that a decisive vote goes to the worse answer."""
    side_bias: float = Field(default=0.05, ge=0, le=1)
    """Probability of a vote for the left answer without a look."""
    both_bad: float = Field(default=0.1, ge=0, le=1)
    """Probability that a tie is called both bad."""
    tie_margin: float | None = Field(default=None, ge=0)
    """Scores this close are a tie; None takes the utility's own margin."""
    split: Split = "train"
    """Topics to ask about: `train`, or `held_out` that no training should see."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Longest answer; None leaves it to serving."""
    temperature: float | None = Field(default=None, ge=0)
    """Sampling temperature; None leaves it to serving."""
    seed: int = 0
    """Decides prompts, voters and their errors."""
    timeout_s: float = Field(default=120.0, gt=0)
    """Longest wait for one answer."""
    patience_s: float = Field(default=300.0, ge=0)
    """How long one request is tried again while serving is away."""
    pairs_per_vote: float = Field(default=30.0, ge=1)
    """With `decisive`: give up after this many pairs for each vote that was asked for."""
    progress: bool | None = None
    """Show a progress bar; None shows one in a terminal and logs elsewhere."""


@dataclass(frozen=True, slots=True)
class SimulateReport:
    """What became of it.

    Attributes:
        votes: acknowledged votes, each counted once.
        decisive: those that name a winner.
        agreement: share of the decisive votes (of rankings: of what they decide) that the hidden utility agrees with;
            None without any.
        position_bias: share of decisive votes for the left answer, less its fair share; None without any.
        errors: pairs or votes that were refused for good.
        retries: requests that were sent again.
        repeated: votes that serving had already recorded when it was asked again.
        reviewed: votes cast on prepared pairs.
        reached: whether as many votes were cast as were asked for.
    """

    votes: int
    decisive: int
    ties: int
    both_bad: int
    agreement: float | None
    position_bias: float | None
    votes_per_minute: float
    seconds: float
    errors: int
    retries: int
    repeated: int
    reviewed: int
    reached: bool


def run(config: SimulateConfig) -> SimulateReport:
    """Simulate until enough votes are acknowledged.

    Raises:
        SimulateError: serving stays away or refuses everything.
        UnknownUtility: there is no such taste.
    """
    return asyncio.run(simulate(config))


async def simulate(config: SimulateConfig, http: httpx.AsyncClient | None = None) -> SimulateReport:
    """`run` in an event loop; `http` replaces the client that is made for `config.url`."""
    limits = httpx.Limits(max_connections=config.concurrency)
    client = http or httpx.AsyncClient(base_url=config.url, timeout=config.timeout_s, limits=limits, trust_env=False)
    async with client:
        with make_progress(config.votes, wanted=config.progress) as progress:
            return await _Simulation(config, client, progress).run()


class _Simulation:
    """The state of one run. All of it is touched from one event loop only."""

    def __init__(self, config: SimulateConfig, http: httpx.AsyncClient, progress: Progress) -> None:
        self._config = config
        self._utility = utility(config.utility)
        self._temper = Temper(config.noise, config.side_bias, config.both_bad, config.tie_margin)
        self._client = PatientClient(http, config.patience_s, self._retried)
        self._progress = progress
        self._most_pairs = round(config.votes * config.pairs_per_vote)
        self._prompts = prompts(config.split, self._most_pairs, config.seed)
        self._turn = asyncio.Condition()
        self._begun = 0
        self._in_flight = 0
        self._choices: Counter[Choice] = Counter()
        self._decisive = 0
        self._agreed = 0.0
        self._left = 0.0
        self._retries = 0
        self._repeated = 0
        self._errors = 0
        self._reviewed = 0
        self._refused_in_a_row = 0

    async def run(self) -> SimulateReport:
        began = time.monotonic()
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._config.concurrency):
                    group.create_task(self._person())
        except* SimulateError as failed:
            raise failed.exceptions[0] from None
        return self._report(time.monotonic() - began)

    async def _person(self) -> None:
        while (number := await self._next()) is not None:
            try:
                await self._chat_and_vote(number)
                self._refused_in_a_row = 0
            except RequestRefused as error:
                self._refused(error)
            finally:
                async with self._turn:
                    self._in_flight -= 1
                    self._turn.notify_all()

    async def _next(self) -> int | None:
        """The number of the next pair, or None when there are votes enough; waits while those in flight may do."""
        async with self._turn:
            await self._turn.wait_for(lambda: self._enough() or self._counted() + self._in_flight < self._config.votes)
            if self._enough():
                return None
            self._begun += 1
            self._in_flight += 1
            return self._begun - 1

    def _enough(self) -> bool:
        return self._counted() >= self._config.votes or self._begun >= self._most_pairs

    def _counted(self) -> int:
        return self._decisive if self._config.decisive else self._choices.total()

    async def _chat_and_vote(self, number: int) -> None:
        prompt = self._prompts[number]
        rng = random.Random(f"vote:{self._config.seed}:{number}")  # noqa: S311  not for secrets
        voter = f"simulated-{self._config.seed}-{rng.randrange(self._config.voters):04d}"
        review = await self._review(voter) if self._reviews(number) else None
        if review is not None:
            self._reviewed += 1
            pair, asked = review, tuple(Message(**message) for message in review["messages"])
        else:
            _, pair = await self._client.post("/v1/pairs", self._question(prompt), voter)
            asked = prompt.messages
        ballot = self._ballot(asked, pair, rng)
        status, _ = await self._client.post("/v1/votes", {"pair_id": pair["pair_id"], **ballot.said}, voter)
        self._count(ballot, new=status == httpx.codes.CREATED)

    def _reviews(self, number: int) -> bool:
        """Whether this vote is to be on a prepared pair; a draw of its own, which shifts no other."""
        return random.Random(f"review:{self._config.seed}:{number}").random() < self._config.reviews  # noqa: S311

    async def _review(self, voter: str) -> dict[str, Any] | None:
        try:
            return (await self._client.post("/v1/reviews", {}, voter))[1]
        except RequestRefused as error:
            if error.status == httpx.codes.NOT_FOUND:
                return None
            raise

    def _ballot(self, asked: Sequence[Message], pair: dict[str, Any], rng: random.Random) -> Ballot | RankedBallot:
        sides = sorted(pair["completions"], key=lambda side: str(side["position"]))
        answers = [side["message"]["content"] for side in sides]
        if len(answers) == 2:
            return vote(self._utility, self._temper, asked, *answers, rng=rng)
        return rank(self._utility, self._temper, asked, answers, rng=rng)

    def _question(self, prompt: Prompt) -> dict[str, Any]:
        body: dict[str, Any] = {"messages": [message.model_dump() for message in prompt.messages]}
        if self._config.n > 2:
            body["n"] = self._config.n
        for name in ("max_tokens", "temperature"):
            if (value := getattr(self._config, name)) is not None:
                body[name] = value
        return body

    def _count(self, ballot: Ballot | RankedBallot, *, new: bool) -> None:
        # A repeat is our own vote, whose first answer was lost on the way: it is new to us and counts once.
        self._repeated += not new
        self._choices[ballot.choice] += 1
        if ballot.decisive:
            self._decisive += 1
            self._agreed += ballot.agreement
            self._left += ballot.left
        if ballot.decisive or not self._config.decisive:
            self._progress.advance()

    def _retried(self) -> None:
        self._retries += 1

    def _refused(self, error: RequestRefused) -> None:
        self._errors += 1
        self._refused_in_a_row += 1
        logger.warning("request refused", error=str(error))
        if self._refused_in_a_row >= REFUSALS_IN_A_ROW:
            raise SimulateError(f"{self._refused_in_a_row} requests in a row were refused; the last: {error}")

    def _report(self, seconds: float) -> SimulateReport:
        decisive = self._decisive
        return SimulateReport(
            votes=self._choices.total(),
            decisive=decisive,
            ties=self._choices["tie"],
            both_bad=self._choices["both_bad"],
            agreement=self._agreed / decisive if decisive else None,
            position_bias=self._left / decisive - 1 / self._config.n if decisive else None,
            votes_per_minute=60 * self._choices.total() / seconds,
            seconds=seconds,
            errors=self._errors,
            retries=self._retries,
            repeated=self._repeated,
            reviewed=self._reviewed,
            reached=self._counted() >= self._config.votes,
        )
