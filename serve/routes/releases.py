"""Releases, standings and the Loop page's data; changing a release wants the operator's token."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Path
from fastapi.security import HTTPBearer
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from feedback.contracts import ADAPTER_NAME_PATTERN
from serve.deps import Deps, deps_of, on_thread
from serve.http import FastJSON
from serve.identity import require_operator
from serve.leaderboard import left_interval, left_share
from serve.loop_status import loop_status, release_row
from serve.releases.manager import ReleaseManager
from serve.routes.problems import PROBLEMS
from serve.text import Text

router = APIRouter(tags=["releases"])
_documented = HTTPBearer(auto_error=False, description="The operator's token", scheme_name="operator")


class Why(BaseModel):
    """Why the operator does it; kept in the release's history."""

    model_config = ConfigDict(extra="forbid")

    reason: Annotated[Text, Field(min_length=1, max_length=500)] = "by the operator"


def operator(request: Request, _: Annotated[Any, Depends(_documented)]) -> None:
    """Let only the operator pass."""
    require_operator(request, deps_of(request).operator_token)


def manager_of(request: Request) -> ReleaseManager:
    """The app's release manager."""
    manager: ReleaseManager = request.app.state.releases
    return manager


Manager = Annotated[ReleaseManager, Depends(manager_of)]
Operator = [Depends(operator)]
ReleaseName = Annotated[str, Path(pattern=ADAPTER_NAME_PATTERN)]
Reason = Annotated[Why | None, Body()]


@router.get("/v1/releases", response_model=None, responses=PROBLEMS)
async def list_releases(deps: Deps) -> Response:
    """All releases, the newest first, and who is in office (null: the base)."""
    releases = await on_thread(deps.ledger.releases)
    rows = [release_row(release) for release in reversed(releases)]
    return FastJSON({"office": deps.office.holder, "releases": rows})


@router.post("/v1/releases/rollback", response_model=None, responses=PROBLEMS, dependencies=Operator)
async def roll_back(deps: Deps, manager: Manager, why: Reason = None) -> Response:
    """Put the previous office-holder back, or the base."""
    deps.readiness.require()
    holder = await manager.rollback((why or Why()).reason)
    return FastJSON({"office": holder})


@router.post("/v1/releases/{name}/promote", response_model=None, responses=PROBLEMS, dependencies=Operator)
async def promote(name: ReleaseName, deps: Deps, manager: Manager, why: Reason = None) -> Response:
    """Put a release into office, after it has been verified and probed again."""
    deps.readiness.require()
    await manager.promote(name, (why or Why()).reason)
    return FastJSON({"office": deps.office.holder})


@router.post("/v1/releases/{name}/reject", response_model=None, responses=PROBLEMS, dependencies=Operator)
async def reject(name: ReleaseName, deps: Deps, manager: Manager, why: Reason = None) -> Response:
    """Reject a release; if it is in office, the one before takes over."""
    deps.readiness.require()
    await manager.reject(name, (why or Why()).reason)
    return FastJSON({"office": deps.office.holder})


@router.get("/v1/leaderboard", response_model=None, responses=PROBLEMS)
async def leaderboard(deps: Deps) -> Response:
    """Contenders by strength at equal length, with 95% intervals; position bias; what was left out (docs/voting.md)."""
    tallies = await on_thread(deps.ledger.tallies)
    board = (await on_thread(deps.book.news)).board
    found = asdict(board) | {
        "contenders": [asdict(standing) | {"votes": standing.votes} for standing in board.contenders],
        "left_share": left_share(tallies),
        "left_share_interval": left_interval(tallies),
    }
    return FastJSON(found)


@router.get("/v1/loop", response_model=None, responses=PROBLEMS)
async def loop(deps: Deps) -> Response:
    """Everything that the Loop page shows."""
    return FastJSON(await on_thread(loop_status, deps))
