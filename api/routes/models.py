"""/v1/models: what workers serve right now."""

from __future__ import annotations

from fastapi import APIRouter, Request

from api.models import ServedModel
from api.routes.openapi import error_responses
from api.services import services
from schemas.openai.models import ModelList, ModelObject

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("")
async def list_models(request: Request) -> ModelList:
    """Every model with a live worker."""
    return ModelList(data=[_object(served) for served in services(request).models.models()])


@router.get("/{model:path}", responses=error_responses(404))
async def retrieve_model(request: Request, model: str) -> ModelObject:
    """One model; its name may contain slashes."""
    return _object(services(request).models.get(model))


def _object(served: ServedModel) -> ModelObject:
    return ModelObject(
        id=served.id,
        created=served.created,
        max_model_len=served.max_model_len,
        embedding_dimensions=served.embedding_dimensions or None,
        sampling_defaults=served.sampling_defaults,
    )
