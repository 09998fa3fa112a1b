"""Chunks that have more in them than most: token ids, and the usage so far."""

from __future__ import annotations

import msgspec

from api.chunks import ChunkWriter
from api.responses import prompt_logprobs_of, token_ids_of, usage_body
from schemas.messages import Delta, Usage
from schemas.openai.common import GenerationRequest

_encode = msgspec.json.Encoder().encode


def chunk_writer(endpoint: str, body_id: str, created: int, request: GenerationRequest) -> ChunkWriter:
    """What writes the chunks that `request` asks for."""
    if request.return_token_ids or request.continuous_usage or request.prompt_logprobs is not None:
        return RichChunkWriter(endpoint, body_id, created, request)
    return ChunkWriter(endpoint, body_id, created, request.model, include_usage=request.include_usage)


class RichChunkWriter(ChunkWriter):
    """Adds the ids of its tokens to each chunk, what was asked for of the prompt to the first of each choice, and the
    usage up to it, as far as `request` asks for them. With ids there is a chunk even for tokens whose text is held back."""

    def __init__(self, endpoint: str, body_id: str, created: int, request: GenerationRequest) -> None:
        super().__init__(endpoint, body_id, created, request.model, include_usage=request.include_usage)
        self._has_token_ids = bool(request.return_token_ids)
        self._has_usage = request.continuous_usage
        self._prompt_tokens = self._completion_tokens = 0

    def delta(self, choice: int, delta: Delta) -> bytes:
        self._completion_tokens += len(delta.token_ids)
        if delta.choice == 0:
            self._prompt_tokens += delta.prompt_tokens
        extra = prompt_logprobs_of(delta.prompt_logprobs)
        if self._has_token_ids:
            extra |= token_ids_of(delta.token_ids, delta.prompt_token_ids)
        said = delta.text or delta.reasoning or delta.tool_calls or delta.logprobs or delta.finish_reason
        if not (said or extra):
            return b""
        return self._chunk(choice, delta, b"," + _encode(extra)[1:-1] if extra else b"", self._usage_so_far())

    def _usage_so_far(self) -> bytes:
        if not self._has_usage:
            return self._suffix
        usage = Usage(prompt_tokens=self._prompt_tokens, completion_tokens=self._completion_tokens)
        return b'],"usage":' + _encode(usage_body([usage])) + b"}\n\n"
