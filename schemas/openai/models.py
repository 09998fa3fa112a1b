"""/v1/models."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel


class ModelObject(BaseModel):
    """`max_model_len` (tokens, prompt and output together) is an extension, and so are `embedding_dimensions`, of a model
    that makes embeddings, and `sampling_defaults`, which count where a request does not say."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "headrace"
    max_model_len: int
    embedding_dimensions: int | None
    sampling_defaults: dict[str, float]


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelObject]
