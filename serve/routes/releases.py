"""Releases, standings and the Loop page's data; changing a release wants the operator's token."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Path, Query
from fastapi.security import HTTPBearer
from pydantic import BaseModel, ConfigDict, Field, field_validator
from starlette.requests import Request
from starlette.responses import Response

from feedback.contracts import ADAPTER_NAME_PATTERN, GateChanged, ReleaseChanged
from serve.deps import Deps, deps_of, on_thread
from serve.http import FastJSON
from serve.identity import require_operator
from serve.leaderboard import left_interval, left_share
from serve.loop_status import elections, gate_status, loop_status, release_row
from serve.releases.desk import AUTO, OPERATOR
from serve.releases.manager import ReleaseManager
from serve.routes.problems import PROBLEMS
from serve.text import Text

router = APIRouter(tags=["releases"])
_documented = HTTPBearer(auto_error=False, description="The operator's token", scheme_name="operator")


class Why(BaseModel):
    """Why the operator does it, and who that is; kept in the audit trail. All operators share one token."""

    model_config = ConfigDict(extra="forbid")

    reason: Annotated[Text, Field(min_length=1, max_length=500)] = "by the operator"
    by: Annotated[Text, Field(min_length=1, max_length=64)] = OPERATOR

    @field_validator("by")
    @classmethod
    def _not_ours(cls, by: str) -> str:
        if by == AUTO:
            raise ValueError(f"{AUTO!r} stands for decisions that nobody made by hand; give a name")
        return by


def operator(request: Request, _: Annotated[Any, Depends(_documented)]) -> None:
    """Let only the operator pass."""
    require_operator(request.headers.get("authorization", ""), deps_of(request).operator_token)


def manager_of(request: Request) -> ReleaseManager:
    """The app's release manager."""
    manager: ReleaseManager = request.app.state.releases
    return manager


Manager = Annotated[ReleaseManager, Depends(manager_of)]
Operator = [Depends(operator)]
ReleaseName = Annotated[str, Path(pattern=ADAPTER_NAME_PATTERN)]
Reason = Annotated[Why | None, Body()]


@router.get("/v1/releases", response_model=None, responses=PROBLEMS)
async def list_releases(
    deps: Deps,
    manager: Manager,
    before: Annotated[
        str | None, Query(pattern=ADAPTER_NAME_PATTERN, description="Those that came before this: `next` of a page.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
) -> Response:
    """Releases, the newest first, a page at a time; who is in office (null: the base), and how the election stands."""
    page = await on_thread(deps.ledger.release_page, before, limit)
    gate = await on_thread(gate_status, deps)
    return FastJSON(
        {
            "office": deps.office.holder,
            "gate": gate,
            **elections(manager.election),
            "releases": [release_row(release) for release in page.releases],
            "next": page.next,
        }
    )


@router.get("/v1/releases/history", response_model=None, responses=PROBLEMS)
async def audit_trail(
    deps: Deps,
    name: Annotated[str | None, Query(pattern=ADAPTER_NAME_PATTERN, description="Of this release alone.")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 200,
) -> Response:
    """Who changed what, when and why, the newest first; pauses too. `actor` "auto" is the gate itself."""
    changes: list[ReleaseChanged | GateChanged] = [*await on_thread(deps.ledger.release_history, name)]
    if name is None:
        changes = sorted([*changes, *await on_thread(deps.ledger.gate_history)], key=lambda change: change.changed_at)
    rows = [change.model_dump(mode="json", exclude={"schema_version"}) for change in reversed(changes[-limit:])]
    return FastJSON({"changes": rows})


@router.post("/v1/releases/pause", response_model=None, responses=PROBLEMS, dependencies=Operator)
async def pause(deps: Deps, manager: Manager, why: Reason = None) -> Response:
    """No adapter comes into canary or office by itself until `resume`; operators and the alarm still act."""
    deps.readiness.require()
    given = why or Why()
    await manager.pause(True, given.reason, given.by)
    return FastJSON({"paused": True})


@router.post("/v1/releases/resume", response_model=None, responses=PROBLEMS, dependencies=Operator)
async def resume(deps: Deps, manager: Manager, why: Reason = None) -> Response:
    """Let releases go on after a pause."""
    deps.readiness.require()
    given = why or Why()
    await manager.pause(False, given.reason, given.by)
    return FastJSON({"paused": False})


@router.post("/v1/releases/rollback", response_model=None, responses=PROBLEMS, dependencies=Operator)
async def roll_back(deps: Deps, manager: Manager, why: Reason = None) -> Response:
    """Put the previous office-holder back, or the base."""
    deps.readiness.require()
    given = why or Why()
    holder = await manager.rollback(given.reason, given.by)
    return FastJSON({"office": holder})


@router.post("/v1/releases/{name}/promote", response_model=None, responses=PROBLEMS, dependencies=Operator)
async def promote(name: ReleaseName, deps: Deps, manager: Manager, why: Reason = None) -> Response:
    """Put a release into office, after it has been verified and probed again."""
    deps.readiness.require()
    given = why or Why()
    await manager.promote(name, given.reason, given.by)
    return FastJSON({"office": deps.office.holder})


@router.post("/v1/releases/{name}/reject", response_model=None, responses=PROBLEMS, dependencies=Operator)
async def reject(name: ReleaseName, deps: Deps, manager: Manager, why: Reason = None) -> Response:
    """Reject a release; if it is in office, the one before takes over, also where this serving couldn't load it."""
    deps.readiness.require_engine()
    given = why or Why()
    await manager.reject(name, given.reason, given.by)
    return FastJSON({"office": deps.office.holder})


@router.get("/v1/leaderboard", response_model=None, responses=PROBLEMS)
async def leaderboard(deps: Deps) -> Response:
    """Contenders by strength at equal length, with 95% intervals; position bias; what was left out (docs/voting.md)."""
    tallies = await on_thread(deps.tallies)
    board = (await deps.news()).board
    found = asdict(board) | {
        "contenders": [asdict(standing) | {"votes": standing.votes} for standing in board.contenders],
        "left_share": left_share(tallies),
        "left_share_interval": left_interval(tallies),
    }
    return FastJSON(found)


@router.get("/v1/loop", response_model=None, responses=PROBLEMS)
async def loop(deps: Deps, manager: Manager) -> Response:
    """Everything that the Loop page shows."""
    return FastJSON(await on_thread(loop_status, deps) | elections(manager.election))
