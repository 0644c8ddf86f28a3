"""What becomes of people's data: forgetting a voter, and lineage. For the operator."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from feedback.identity import PSEUDONYM_PATTERN
from feedback.manifests import Manifests
from serve.deps import Deps, ServeDeps, on_thread
from serve.errors import NotFound, NotReady
from serve.http import FastJSON
from serve.routes.problems import PROBLEMS
from serve.routes.releases import Operator
from serve.text import Text

router = APIRouter(tags=["people"])


class ForgetRequest(BaseModel):
    """Whom to forget."""

    model_config = ConfigDict(extra="forbid", strict=True)

    voter: str = Field(pattern=PSEUDONYM_PATTERN, description="The voter's pseudonym.")


@router.post("/v1/voters/forget", response_model=None, responses=PROBLEMS, dependencies=Operator)
async def forget_voter(body: ForgetRequest, request: Request, deps: Deps) -> Response:
    """Forget a voter everywhere; tells which adapters were trained on them and how to train one without them.

    Again: 200 and `outcome` `already_forgotten`. Of whom nothing is here: 404; what they said until now and comes
    later is refused all the same.
    """
    return FastJSON(await on_thread(_forget, deps, request.app.state.manifests, body.voter))


@router.get("/v1/lineage/{id}", response_model=None, responses=PROBLEMS, dependencies=Operator)
async def lineage(
    id: Annotated[Text, Path(min_length=1, max_length=128)],  # noqa: A002
    request: Request,
    deps: Deps,
) -> Response:
    """Where an adapter, snapshot, pair, vote or forgotten voter comes from and where it went."""
    return FastJSON(await on_thread(_trace, deps, request.app.state.manifests, id))


def _forget(deps: ServeDeps, manifests: Manifests, voter: str) -> dict[str, Any]:
    # Arrow takes a while to import, and serving doesn't need it before.
    from feedback.dataset import Dataset, DatasetError
    from feedback.forgetting import Outcome, forget

    try:
        report = forget(deps.ledger, Dataset(deps.paths.dataset), manifests, voter)
    except DatasetError as error:
        raise NotReady(f"The ledger has forgotten; the curator does the rest when this is mended: {error}") from error
    if report.outcome is Outcome.UNKNOWN:
        raise NotFound(report.verdict())
    return asdict(report)


def _trace(deps: ServeDeps, manifests: Manifests, wanted: str) -> dict[str, Any]:
    from feedback.dataset import Dataset, DatasetError
    from feedback.lineage import Lineage, UnknownId

    try:
        return Lineage(deps.ledger, Dataset(deps.paths.dataset), manifests).told(wanted)
    except UnknownId as error:
        raise NotFound(str(error)) from error
    except DatasetError as error:
        raise NotReady(f"The dataset can't be read: {error}") from error
