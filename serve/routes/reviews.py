"""`POST /v1/reviews`: a prepared pair to judge; `GET /v1/reviews`: how many wait."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from serve.deps import Deps, on_thread
from serve.errors import NotFound
from serve.http import FastJSON
from serve.identity import voter_of
from serve.reviews import ReviewShelf
from serve.routes.pairs import PairResponse, Turn, note, shown
from serve.routes.problems import PROBLEMS

router = APIRouter(tags=["reviews"])


class ReviewsWaiting(BaseModel):
    """How many prepared pairs there are that you haven't seen."""

    waiting: int


class ReviewResponse(PairResponse):
    """A question that you didn't ask, and two answers to it, to be voted on under `pair_id`."""

    messages: list[Turn]


@router.get("/v1/reviews", response_model=ReviewsWaiting, responses=PROBLEMS)
async def count_reviews(request: Request, deps: Deps) -> Response:
    """How many prepared pairs wait for you."""
    shelf: ReviewShelf = request.app.state.reviews
    return FastJSON({"waiting": await on_thread(shelf.waiting, voter_of(request, deps.secret))})


@router.post("/v1/reviews", response_model=ReviewResponse, responses=PROBLEMS)
async def take_review(request: Request, deps: Deps) -> Response:
    """Take a prepared pair; the vote goes to `/v1/votes`, as any. 404: none waits for you; 429: not so fast."""
    shelf: ReviewShelf = request.app.state.reviews
    voter = voter_of(request, deps.secret)
    deps.review_limits.take(voter)
    with deps.people.enter():
        pair = await on_thread(shelf.take, voter)
        if pair is None:
            raise NotFound("No prepared pair waits for you; the trainer prepares some (train.review.prompts).")
        await on_thread(deps.ledger.record_pair, pair)
    deps.metrics.pairs.labels(pair.contenders, "shown").inc()
    note(request, pair)
    messages = [{"role": message.role, "content": message.content} for message in pair.messages]
    return FastJSON({**shown(pair), "messages": messages})
