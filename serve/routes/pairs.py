"""`POST /v1/pairs`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Annotated, Any, Literal, TypeVar

import structlog
from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from feedback.comparisons import POSITIONS
from feedback.contracts import MAX_MESSAGES, FinishReason, Message, PairShown, Position
from serve.deps import Deps, ServeDeps
from serve.errors import BadRequest
from serve.faults import fault_of, unexpected_fault
from serve.http import FastJSON, request_id, sse
from serve.identity import voter_of
from serve.pairs import PairAsk, PairDone, PairEvent, PairOpened, PairStep, run_pair
from serve.quick_route import QuickRoute
from serve.routes.problems import PROBLEMS
from serve.streams import EventStream, patience, primed, unless_gone
from serve.text import Text

E = TypeVar("E")
MAX_CONTENT = 100_000
router = APIRouter(tags=["pairs"], route_class=QuickRoute)
log = structlog.get_logger(__name__)


class Turn(BaseModel):
    """One message of the conversation."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "user", "assistant"]
    content: Annotated[Text, Field(min_length=1, max_length=MAX_CONTENT)]


class PairRequest(BaseModel):
    """A conversation that ends with the person's turn, to be answered twice, or up to four times."""

    model_config = ConfigDict(extra="forbid", strict=True)

    messages: list[Turn] = Field(min_length=1, max_length=MAX_MESSAGES)  # serve.max_messages is what people meet
    conversation_id: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_-]{1,64}$")
    n: int | None = Field(default=None, ge=2, le=4)
    stream: bool = False
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(default=None, gt=0, le=1, allow_inf_nan=False)
    seed: int | None = Field(default=None, ge=0, le=2**53)


class AssistantTurn(BaseModel):
    """What a side said."""

    role: Literal["assistant"] = "assistant"
    content: str


class CompletionShown(BaseModel):
    """One side; nothing here tells which adapter spoke."""

    position: Position
    message: AssistantTurn
    finish_reason: FinishReason


class PairResponse(BaseModel):
    """Two answers (or as many as were asked for), to be voted on under `pair_id`."""

    pair_id: str
    conversation_id: str
    completions: list[CompletionShown]


def to_ask(body: PairRequest, deps: ServeDeps, answers: int = 2) -> PairAsk:
    """What the request asks for.

    Args:
        answers: how many, where the request doesn't say.

    Raises:
        BadRequest: the conversation doesn't end with the person, or asks for too much.
    """
    config = deps.config
    if len(body.messages) > config.max_messages:
        raise BadRequest(f"messages may have {config.max_messages} turns at most; start a new conversation.")
    if body.messages[-1].role != "user":
        raise BadRequest("The last of messages must have the role `user`: that is the turn to be answered.")
    if body.max_tokens is not None and body.max_tokens > config.max_max_tokens:
        raise BadRequest(f"max_tokens may be {config.max_max_tokens} at most.")
    return PairAsk(
        messages=tuple(Message(role=turn.role, content=turn.content) for turn in body.messages),
        conversation_id=body.conversation_id,
        max_tokens=body.max_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        seed=body.seed,
        answers=answers if body.n is None else body.n,
    )


@router.post(
    "/v1/pairs",
    response_model=PairResponse,
    responses=PROBLEMS
    | {200: {"model": PairResponse, "content": {"text/event-stream": {"schema": {"type": "string"}}}}},
)
async def create_pair(body: PairRequest, request: Request, deps: Deps) -> Response:
    """Answer a conversation twice, blind; with `n`, three or four times, to be ranked.

    With `stream`, the events are `pair`, `delta`, `done` and `error`.
    """
    voter = voter_of(request, deps.secret)
    events = run_pair(deps, to_ask(body, deps), voter)
    if body.stream:
        content = wire(await unless_gone(request, primed(events)), request, event_bytes)
        return EventStream(content, patience=patience(deps.config))
    return FastJSON(await unless_gone(request, _whole(events, request)))


async def _whole(events: AsyncGenerator[PairEvent, None], request: Request) -> dict[str, Any]:
    async with aclosing(events):
        async for event in events:
            if isinstance(event, PairDone):
                note(request, event.pair)
                return shown(event.pair)
    raise RuntimeError("a pair ended without its last event")


async def wire(
    events: AsyncGenerator[E, None], request: Request, encode: Callable[[E, Request], bytes]
) -> AsyncGenerator[bytes, None]:
    """The events as server-sent events; a failure after the first one becomes an `error` event."""
    async with aclosing(events):
        try:
            async for event in events:
                yield encode(event, request)
        except Exception as error:
            fault = fault_of(error)
            if fault is None:
                log.exception("a pair's stream failed")
                fault = unexpected_fault()
            yield sse(fault.problem(request_id(request)), "error")


def event_bytes(event: PairEvent, request: Request) -> bytes:
    """A pair's event on the wire."""
    match event:
        case PairStep(deltas):
            return b"".join(sse({"position": each.position, "content": each.content}, "delta") for each in deltas)
        case PairOpened(pair_id, conversation_id, answers):
            more = {"positions": POSITIONS[:answers]} if answers > 2 else {}
            return sse({"pair_id": pair_id, "conversation_id": conversation_id, **more}, "pair")
        case PairDone(pair):
            note(request, pair)
            return sse(shown(pair), "done")


def shown(pair: PairShown) -> dict[str, Any]:
    """The pair as a voter may see it."""
    return {
        "pair_id": pair.pair_id,
        "conversation_id": pair.conversation_id,
        "completions": [
            {
                "position": completion.position,
                "message": {"role": "assistant", "content": completion.text},
                "finish_reason": completion.finish_reason,
            }
            for completion in pair.completions
        ],
    }


def note(request: Request, pair: PairShown) -> None:
    """Name the pair in the request's log line."""
    request.scope["state"]["log"] |= {"pair_id": pair.pair_id, "rule": pair.contenders}
