"""`POST /v1/turns`, which the chat page asks, and `POST /v1/thumbs`."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from feedback.contracts import AnswerShown, FinishReason, Thumb
from feedback.ledger import LedgerError
from serve.deps import Deps, on_thread
from serve.http import FastJSON, sse
from serve.identity import voter_of
from serve.pairs import PairDone
from serve.quick_route import QuickRoute
from serve.routes.pairs import AssistantTurn, PairRequest, PairResponse, event_bytes, note, shown, to_ask, wire
from serve.routes.problems import PROBLEMS
from serve.routes.votes import BASE
from serve.streams import EventStream, patience, primed, unless_gone
from serve.text import Text
from serve.turns import AnswerDone, AnswerOpened, TurnEvent, run_turn

router = APIRouter(tags=["turns"], route_class=QuickRoute)


class AnswerResponse(BaseModel):
    """One answer, to be given a thumb under `answer_id`."""

    answer_id: str
    conversation_id: str
    message: AssistantTurn
    finish_reason: FinishReason


class ThumbRequest(BaseModel):
    """Whether a single answer was good."""

    model_config = ConfigDict(extra="forbid", strict=True)

    answer_id: Annotated[Text, Field(min_length=1, max_length=64)]
    thumb: Thumb
    reasons: list[Annotated[Text, Field(min_length=1, max_length=64)]] = Field(default_factory=list, max_length=10)
    comment: Annotated[Text, Field(max_length=2_000)] | None = None


class ThumbResponse(BaseModel):
    """The thumb is on disk. `reveal` tells who spoke."""

    thumb_id: str
    answer_id: str
    thumb: Thumb
    reveal: str


@router.post(
    "/v1/turns",
    response_model=PairResponse | AnswerResponse,
    responses=PROBLEMS
    | {
        200: {
            "model": PairResponse | AnswerResponse,
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        }
    },
)
async def take_turn(body: PairRequest, request: Request, deps: Deps) -> Response:
    """Answer a conversation as serving is configured to: twice (or more often) and blind, or once (`[serve.chat]`).

    With `stream`, the first event is `pair` or `answer`; then come `delta`, `done` and `error`.
    """
    events = run_turn(deps, to_ask(body, deps, deps.config.chat.answers), voter_of(request, deps.secret))
    if body.stream:
        content = wire(await unless_gone(request, primed(events)), request, _event)
        return EventStream(content, patience=patience(deps.config))
    return FastJSON(await unless_gone(request, _whole(events, request)))


@router.post(
    "/v1/thumbs",
    status_code=201,
    response_model=ThumbResponse,
    responses=PROBLEMS | {200: {"model": ThumbResponse, "description": "The same thumb was there already"}},
)
async def give_thumb(body: ThumbRequest, request: Request, deps: Deps) -> Response:
    """Give a single answer a thumb. 201: it is recorded; 200: it was before; 409: the other one stands."""
    voter = voter_of(request, deps.secret)
    deps.vote_limit.take(voter)
    try:
        outcome = await on_thread(
            deps.ledger.record_thumb,
            answer_id=body.answer_id,
            voter=voter,
            thumb=body.thumb,
            reasons=tuple(body.reasons),
            comment=body.comment,
        )
    except LedgerError:
        deps.metrics.thumbs.labels(body.thumb, "refused").inc()
        raise
    deps.metrics.thumbs.labels(body.thumb, "created" if outcome.created else "repeated").inc()
    request.scope["state"]["log"] |= {"answer_id": body.answer_id, "thumb_id": outcome.event.thumb_id}
    answer = {
        "thumb_id": outcome.event.thumb_id,
        "answer_id": body.answer_id,
        "thumb": outcome.event.thumb,
        "reveal": outcome.event.answer.completion.adapter or BASE,
    }
    return FastJSON(answer, 201 if outcome.created else 200)


async def _whole(events: AsyncGenerator[TurnEvent, None], request: Request) -> dict[str, Any]:
    async with aclosing(events):
        async for event in events:
            if isinstance(event, PairDone):
                note(request, event.pair)
                return shown(event.pair)
            if isinstance(event, AnswerDone):
                return _shown_alone(event.answer, request)
    raise RuntimeError("a turn ended without its last event")


def _event(event: TurnEvent, request: Request) -> bytes:
    match event:
        case AnswerOpened(answer_id, conversation_id):
            return sse({"answer_id": answer_id, "conversation_id": conversation_id}, "answer")
        case AnswerDone(answer):
            return sse(_shown_alone(answer, request), "done")
        case _:
            return event_bytes(event, request)


def _shown_alone(answer: AnswerShown, request: Request) -> dict[str, Any]:
    request.scope["state"]["log"] |= {"answer_id": answer.answer_id}
    return {
        "answer_id": answer.answer_id,
        "conversation_id": answer.conversation_id,
        "message": {"role": "assistant", "content": answer.completion.text},
        "finish_reason": answer.completion.finish_reason,
    }
