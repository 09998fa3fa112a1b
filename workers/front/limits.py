"""What a model can take, and how a job is refused that asks for more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from schemas.messages import ErrorInfo


class InvalidJobError(Exception):
    """The job cannot run on this model; `error` is what its publisher is told."""

    def __init__(self, error: ErrorInfo) -> None:
        super().__init__(error.message)
        self.error = error


def invalid(message: str, *, param: str | None = None, code: str | None = None, status: int = 400) -> InvalidJobError:
    """An error of the caller's making."""
    return InvalidJobError(ErrorInfo(message=message, param=param, code=code, status=status))


@dataclass(frozen=True, slots=True)
class Limits:
    """The model's limits: tokens of prompt and output together, and token ids from 0 up to `vocab_size` - 1. A model
    with `embedding_dimensions` makes embeddings of that size, and no text."""

    max_model_len: int
    vocab_size: int
    embedding_dimensions: int = 0


def check_ids(ids: Any, vocab_size: int, param: str) -> None:
    """Raises InvalidJobError where one of the token `ids` is none of the model's."""
    if ids and (min(ids) < 0 or max(ids) >= vocab_size):
        bad = next(token_id for token_id in ids if not 0 <= token_id < vocab_size)
        message = f"unknown token id {bad} in {param}: this model's ids go from 0 to {vocab_size - 1}"
        raise invalid(message, param=param, code="unknown_token_id")
