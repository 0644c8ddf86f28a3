"""The pages and what they are made of: kept by browsers, but asked about each time (a 304 where nothing changed)."""

from __future__ import annotations

import pathlib
from os import PathLike, stat_result
from typing import Annotated

from fastapi import APIRouter, Path
from starlette.requests import Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from serve.deps import Deps, on_thread
from serve.errors import NotFound

WEB = pathlib.Path(__file__).resolve().parent.parent / "web"
REPORT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""A report carries its own style, and nothing else that is more than text."""
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


@router.head("/")
@router.get("/")
async def index(request: Request, deps: Deps) -> Response:
    """The chat page, which is told how many answers to expect."""
    answers = deps.config.chat.answers
    if answers == 2:
        return await FILES.get_response("index.html", request.scope)
    page = await on_thread((WEB / "index.html").read_text, encoding="utf-8")
    told = page.replace('data-answers="2"', f'data-answers="{answers}"')
    return Response(told, media_type="text/html", headers={"Cache-Control": "no-cache"})


@router.head("/loop")
@router.get("/loop")
async def loop(request: Request) -> Response:
    """The Loop page."""
    return await FILES.get_response("loop.html", request.scope)


@router.get("/loop/cycles/{number}/report")
async def report(deps: Deps, number: Annotated[int, Path(ge=1, le=999_999)]) -> Response:
    """What a training cycle did: the trainer's page, which needs nothing else.

    Raises:
        NotFound: the trainer has written none (yet).
    """
    file = deps.paths.train / "cycles" / f"{number:06d}" / "report.html"
    try:
        page = await on_thread(file.read_bytes)
    except FileNotFoundError as error:
        raise NotFound(f"Cycle {number} has no report (yet).") from error
    except OSError as error:
        raise NotFound(f"Cycle {number}'s report can't be read: {error.strerror or error}.") from error
    return Response(page, media_type="text/html", headers={"Content-Security-Policy": REPORT_POLICY})


@router.get("/favicon.ico")
async def favicon(request: Request) -> Response:
    """The pages' icon."""
    return await FILES.get_response("favicon.svg", request.scope)
