"""`GET /v1/models` and what a model's name means."""

from __future__ import annotations

import time

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.responses import Response

from serve.deps import Deps, ServeDeps
from serve.errors import ServeError
from serve.http import FastJSON
from serve.rollout_adapters import ROLLOUT_PREFIX
from serve.routes.problems import OPENAI_ERRORS

router = APIRouter(tags=["openai"])
OFFICE = "hustings"
BASE = "base"
_STARTED = int(time.time())


class ModelNotFound(ServeError):
    """No model has this name."""

    status, title, slug = 404, "Model not found", "model-not-found"


class Model(BaseModel):
    """OpenAI's model object; `root` is the base that an adapter sits on."""

    id: str
    object: str = "model"
    created: int = _STARTED
    owned_by: str = "hustings"
    root: str | None = None


class ModelList(BaseModel):
    """All models."""

    object: str = "list"
    data: list[Model]


def resolve(deps: ServeDeps, model: str) -> str | None:
    """The adapter that a model's name stands for; None is the base.

    Raises:
        ModelNotFound: no adapter of that name is loaded.
    """
    if model == OFFICE:
        return deps.office.holder
    if model == BASE:
        return None
    if model not in _public(deps):
        raise ModelNotFound(
            f"The model '{model}' does not exist. Use `hustings`, `base` or an adapter that GET /v1/models lists."
        )
    return model


def _public(deps: ServeDeps) -> frozenset[str]:
    """Adapters that people may ask for: the trainer's own, which it must be able to unload, are not among them."""
    return frozenset(name for name in deps.engine.adapters() if not name.startswith(ROLLOUT_PREFIX))


def _models(deps: ServeDeps) -> list[Model]:
    return [Model(id=name, root=deps.base_model) for name in (OFFICE, BASE, *sorted(_public(deps)))]


@router.get("/v1/models", response_model=ModelList, responses=OPENAI_ERRORS)
async def list_models(deps: Deps) -> Response:
    """`hustings` (the policy in office), `base`, and every loaded adapter."""
    return FastJSON(ModelList(data=_models(deps)).model_dump())


@router.get("/v1/models/{model}", response_model=Model, responses=OPENAI_ERRORS)
async def get_model(model: str, deps: Deps) -> Response:
    """One model."""
    resolve(deps, model)
    return FastJSON(Model(id=model, root=deps.base_model).model_dump())
