"""What the app is composed of: built once, in `serve.main` or a test's fixture; routes take it from the app's state."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, ParamSpec, TypeVar

import anyio.to_thread
from fastapi import Depends
from prometheus_client import CollectorRegistry
from starlette.requests import Request

from feedback.config import VotersConfig
from feedback.ledger import Ledger, Tally
from feedback.paths import DataPaths
from serve.config import ServeConfig
from serve.engines.base import Engine
from serve.gate import Gate, Readiness
from serve.kept import Kept
from serve.latest import Latest
from serve.metrics import Metrics
from serve.office import Office
from serve.rate_limit import RateLimit, ReviewLimits
from serve.vote_book import VoteBook, VoteNews
from serve.vote_desk import VoteDesk

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ServeDeps:
    """Everything that routes use.

    Attributes:
        secret: key of the voters' pseudonyms.
        base_model: the base's name, as pairs and the pages tell it.
        base_fingerprint: tells the fingerprint of the base's weights, for the check of adapters; may read files.
        rng: draws contenders and positions; a test gives a seeded one.
        voters: how far a voter's votes count.
    """

    config: ServeConfig
    paths: DataPaths
    engine: Engine
    ledger: Ledger
    secret: str
    operator_token: str
    base_model: str
    base_fingerprint: Callable[[], str]
    metrics: Metrics = field(default_factory=lambda: Metrics(CollectorRegistry()))
    office: Office = field(default_factory=Office)
    readiness: Readiness = field(default_factory=Readiness)
    rng: random.Random = field(default_factory=random.SystemRandom)
    voters: VotersConfig = field(default_factory=VotersConfig)
    people: Gate = field(init=False)
    rollouts: Gate = field(init=False)
    vote_limit: RateLimit = field(init=False)
    review_limits: ReviewLimits = field(init=False)
    votes: VoteDesk = field(init=False)
    book: VoteBook = field(init=False)
    news: Latest[VoteNews] = field(init=False)
    tallies: Kept[list[Tally]] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "people", Gate(self.config.max_in_flight))
        object.__setattr__(self, "rollouts", Gate(self.config.max_rollouts_in_flight))
        ratings = self.config.ratings
        object.__setattr__(self, "vote_limit", RateLimit(ratings.votes_per_minute, ratings.vote_burst))
        limits = ReviewLimits(ratings.votes_per_minute, ratings.vote_burst, ratings.reviews_per_minute)
        object.__setattr__(self, "review_limits", limits)
        object.__setattr__(self, "votes", VoteDesk(self.ledger))
        book = VoteBook(self.ledger, self.voters, most=ratings.newest, fresh_s=ratings.fresh_s)
        object.__setattr__(self, "book", book)
        object.__setattr__(self, "news", Latest(book.news))
        object.__setattr__(self, "tallies", Kept(self.ledger.tallies))


def deps_of(request: Request) -> ServeDeps:
    """The app's parts."""
    deps: ServeDeps = request.app.state.deps
    return deps


async def _deps_of(request: Request) -> ServeDeps:
    """The same, for FastAPI: what isn't a coroutine it calls on a worker thread, at every request."""
    return deps_of(request)


Deps = Annotated[ServeDeps, Depends(_deps_of)]


def on_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Awaitable[T]:
    """Make a blocking call (the ledger's, a file's) on a worker thread."""
    return anyio.to_thread.run_sync(partial(call, *args, **kwargs))
