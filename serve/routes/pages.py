"""The pages and what they are made of: kept by browsers, but asked about each time (a 304 where nothing changed)."""

from __future__ import annotations

from os import PathLike, stat_result
from pathlib import Path

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

WEB = Path(__file__).resolve().parent.parent / "web"
router = APIRouter(tags=["pages"], include_in_schema=False)


class _Revalidated(StaticFiles):
    """Files with an ETag that a browser must ask about before it uses its copy."""

    def file_response(
        self, full_path: str | PathLike[str], stat_result: stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        """The file, or 304."""
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers["Cache-Control"] = "no-cache"
        return response


FILES = _Revalidated(directory=WEB)
"""Everything below `/web`."""


@router.get("/")
async def index(request: Request) -> Response:
    """The chat page."""
    return await FILES.get_response("index.html", request.scope)


@router.get("/loop")
async def loop(request: Request) -> Response:
    """The Loop page."""
    return await FILES.get_response("loop.html", request.scope)


@router.get("/favicon.ico")
async def favicon(request: Request) -> Response:
    """The pages' icon."""
    return await FILES.get_response("favicon.svg", request.scope)
