"""The inputs of an embedding job as token ids, checked against the model's limits."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from schemas.messages import Job
from workers.front.limits import Limits, check_ids, invalid

MANY_CHARACTERS = 4_000
"""From which inputs are tokenized in a thread: about a millisecond."""
MAX_VECTOR_BYTES = 4 << 20
"""Of one job, in float32. Its Result is half as large again in JSON, and brokers refuse messages of more than 16 MB."""


def check_kind(job: Job, limits: Limits) -> None:
    """Raises InvalidJobError where the model makes text and embeddings are asked for, or the other way round."""
    if (job.inputs is None) == (limits.embedding_dimensions == 0):
        return
    makes, takes = ("embeddings", "inputs") if limits.embedding_dimensions else ("text", "messages or a prompt")
    message = f"The model '{job.model}' makes {makes} and nothing else: a job for it has {takes}."
    raise invalid(message, param="model", code="unsupported_model")


class InputTokenizer:
    """`tokenizer` is a transformers `PreTrainedTokenizerBase`, which does not truncate by itself."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._backend = getattr(tokenizer, "backend_tokenizer", None)

    async def prepare(self, job: Job, limits: Limits) -> list[list[int]]:
        """Token ids of each input. Raises InvalidJobError with the error that the job's publisher is told."""
        inputs = job.inputs or []
        _check_size(job, limits)
        if sum(map(len, inputs)) < MANY_CHARACTERS:
            made = self._tokenize(job, limits)
        else:
            made = await asyncio.to_thread(self._tokenize, job, limits)
        for index, ids in enumerate(made):
            _check_length(index, ids, limits)
        check_ids([token for ids in made for token in ids], limits.vocab_size, "input")
        return made

    def _tokenize(self, job: Job, limits: Limits) -> list[list[int]]:
        keep = job.truncate_prompt_tokens
        if keep is not None and (keep < 0 or keep > limits.max_model_len):
            keep = limits.max_model_len
        special = job.add_special_tokens is not False
        return [self._ids(one, keep, special) for one in job.inputs or []]

    def _ids(self, given: str | list[int], keep: int | None, special: bool) -> list[int]:
        """Of a text its beginning is kept, between the tokenizer's own tokens: pooling looks for those."""
        if not isinstance(given, str):
            return given[:keep]
        if self._backend is None:
            cut = {} if keep is None else {"truncation": True, "max_length": keep}
            return list(self._tokenizer.encode(given, add_special_tokens=special, **cut))
        ids: list[int] = self._backend.encode(given, add_special_tokens=special).ids
        if keep is None or len(ids) <= keep:
            return ids
        bare = self._backend.encode(given, add_special_tokens=False)
        bare.truncate(max(0, keep - (len(ids) - len(bare.ids))))
        return list((self._backend.post_process(bare) if special else bare).ids)[:keep]


def _check_size(job: Job, limits: Limits) -> None:
    wanted = None if job.embedding is None else job.embedding.dimensions
    size = wanted or limits.embedding_dimensions
    if size > limits.embedding_dimensions:
        message = (
            f"The model's embeddings have {limits.embedding_dimensions} dimensions: {size} cannot be kept of them."
        )
        raise invalid(message, param="dimensions", code="invalid_value")
    count, most = len(job.inputs or []), MAX_VECTOR_BYTES // (4 * size)
    if count > most:
        message = f"{count} inputs are more than one job or batch line may have: of {size} dimensions {most}."
        raise invalid(message, param="input", code="too_many_inputs")


def _check_length(index: int, ids: Sequence[int], limits: Limits) -> None:
    if not ids:
        raise invalid(f"Input {index} is empty.", param="input", code="invalid_value")
    if len(ids) > limits.max_model_len:
        message = f"The model takes {limits.max_model_len} tokens; input {index} has {len(ids)}."
        raise invalid(message, param="input", code="context_length_exceeded")
