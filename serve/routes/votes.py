"""`POST /v1/votes`."""

from __future__ import annotations

from typing import Annotated, Self

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.requests import Request
from starlette.responses import Response

from feedback.comparisons import read
from feedback.contracts import Choice, PairChoice, Position, Ranking, SamplingRecord
from feedback.ledger import LedgerError, NotYourPair, UnfitVote, UnknownPair, VoteConflict, VoteDraft
from serve.deps import Deps
from serve.errors import Overloaded
from serve.http import FastJSON
from serve.identity import voter_of
from serve.quick_route import QuickRoute
from serve.releases.manager import ReleaseManager
from serve.routes.problems import PROBLEMS
from serve.text import Text

router = APIRouter(tags=["votes"], route_class=QuickRoute)
BASE = "base"
_REFUSALS: dict[type[LedgerError], str] = {
    UnknownPair: "unknown_pair",
    NotYourPair: "not_your_pair",
    UnfitVote: "unfit",
    VoteConflict: "conflict",
}


class VoteRequest(BaseModel):
    """A choice between the two sides of a pair, or a ranking of three or four: one of `choice` and `ranking`.

    `ranking` lists places, the best first; answers in one place are as good as each other: `[["b"], ["a", "c"]]`. `tie`
    and `both_bad` can be said of any number of answers.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    pair_id: Annotated[Text, Field(min_length=1, max_length=64)]
    choice: PairChoice | None = None
    ranking: (
        Annotated[list[Annotated[list[Position], Field(min_length=1, max_length=4)]], Field(min_length=2, max_length=4)]
        | None
    ) = None
    reasons: list[Annotated[Text, Field(min_length=1, max_length=64)]] = Field(default_factory=list, max_length=10)
    comment: Annotated[Text, Field(max_length=2_000)] | None = None
    edited: Annotated[Text, Field(min_length=1, max_length=20_000)] | None = None
    dwell_ms: int | None = Field(default=None, ge=0, le=7 * 24 * 3600 * 1000)

    @model_validator(mode="after")
    def _says_one_thing(self) -> Self:
        if (self.choice is None) == (self.ranking is None):
            raise ValueError("a vote needs either a choice or a ranking")
        return self


class VoteResponse(BaseModel):
    """The vote is on disk. `reveal` tells who spoke in each position, `sampling` how."""

    vote_id: str
    pair_id: str
    choice: Choice
    ranking: Ranking | None = None
    reveal: dict[Position, str]
    sampling: dict[Position, SamplingRecord]


@router.post(
    "/v1/votes",
    status_code=201,
    response_model=VoteResponse,
    responses=PROBLEMS | {200: {"model": VoteResponse, "description": "The same vote was there already"}},
)
async def cast_vote(body: VoteRequest, request: Request, deps: Deps) -> Response:
    """Vote. 201: it is recorded; 200: it was recorded before; 409: you chose otherwise before, and that stands;
    429: you vote faster than people read."""
    voter = voter_of(request, deps.secret)
    try:
        deps.vote_limit.take(voter)
    except Overloaded:
        deps.metrics.votes_refused.labels("too_fast").inc()
        raise
    try:
        outcome = await deps.votes.cast(
            VoteDraft(
                pair_id=body.pair_id,
                voter=voter,
                choice=body.choice or "ranking",
                reasons=tuple(body.reasons),
                comment=body.comment,
                edited=body.edited,
                dwell_ms=body.dwell_ms,
                ranking=None if body.ranking is None else tuple(tuple(place) for place in body.ranking),
            )
        )
    except LedgerError as error:
        deps.metrics.votes_refused.labels(_REFUSALS.get(type(error), "ledger")).inc()
        raise
    if outcome.created:
        releases: ReleaseManager = request.app.state.releases
        releases.stir()
    deps.metrics.votes_of(outcome.choice, "created" if outcome.created else "repeated").inc()
    request.scope["state"]["log"] |= {"pair_id": body.pair_id, "vote_id": outcome.vote_id}
    answer = {
        "vote_id": outcome.vote_id,
        "pair_id": body.pair_id,
        "choice": outcome.choice,
        **({} if outcome.ranking is None else {"ranking": read(outcome.ranking)}),
        "reveal": {side.position: side.adapter or BASE for side in outcome.sides},
        "sampling": {side.position: side.sampling for side in outcome.sides},
    }
    return FastJSON(answer, 201 if outcome.created else 200)
