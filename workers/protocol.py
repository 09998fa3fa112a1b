"""What the front process and the engine process say to each other: msgpack over a pipe, one message per engine step.

Token ids only; text never reaches the engine. A request id is unique among the running; a job of n choices is n
requests.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

from schemas.messages import EmbeddingParams, FinishReason, SamplingParams

BATCH_PRIORITY = 2**32
"""Added to a batch job's own priority, which is smaller than half of it: it never leaves its class."""


class AddRequest(Struct, frozen=True, tag="add", array_like=True):
    """Run a request. `output_token_ids` are tokens made before (resume): generation continues after them, they count
    toward max_tokens and penalties, and are not reported again. Lower `priority` values run first. Prefixes are shared
    only between requests of the same `cache_salt`. `sampling.max_tokens` is set and `sampling.n` is 1; stop strings and
    bad words are the front's affair."""

    id: str
    prompt_token_ids: list[int]
    sampling: SamplingParams
    output_token_ids: list[int] = []
    priority: int = 0
    cache_salt: str = ""
    embedding: EmbeddingParams | None = None


class AbortRequests(Struct, frozen=True, tag="abort", array_like=True):
    """Forget these requests and free their blocks; unknown ids are ignored."""

    ids: list[str]


class LoadGrammars(Struct, frozen=True, tag="grammars", array_like=True):
    """From now on requests may have grammars. `tokenizer` is the JSON text of a `tokenizers.Tokenizer`."""

    tokenizer: str


class Shutdown(Struct, frozen=True, tag="shutdown", array_like=True):
    """Leave the loop and end the process."""


ToEngine = AddRequest | AbortRequests | LoadGrammars | Shutdown


class TokenLogprobs(Struct, frozen=True, array_like=True):
    """Log probabilities at one position: the sampled token's, then the most likely ids with theirs, best first. Of a
    prompt's token also its rank, from 1."""

    sampled: float
    top_ids: list[int]
    top_logprobs: list[float]
    rank: int = 0


class TokenOutput(Struct, frozen=True, array_like=True):
    """New tokens of one request. `finish_reason` is set on its last output; an end-of-sequence or stop token that ended
    it is included in `token_ids`. `stopped_by` is that token's id. `error` is set, without tokens, where it failed.
    `prompt_logprobs` comes with the first output: of each of the prompt's tokens but the first. `vector` is the only
    output of a request for an embedding: little-endian float32."""

    id: str
    token_ids: list[int]
    finish_reason: FinishReason | None = None
    stopped_by: int | None = None
    cached_tokens: int = 0
    logprobs: list[TokenLogprobs] | None = None
    error: str | None = None
    prompt_logprobs: list[TokenLogprobs] | None = None
    vector: bytes | None = None


class EngineStats(Struct, frozen=True, array_like=True):
    """The engine's load as of one step."""

    running: int
    waiting: int
    kv_blocks_used: int
    kv_blocks_total: int
    prefix_hit_tokens: int
    prefix_query_tokens: int
    preemptions: int


class StepOutput(Struct, frozen=True, tag="step", array_like=True):
    """All that one engine step produced."""

    outputs: list[TokenOutput]
    stats: EngineStats


class Ready(Struct, frozen=True, tag="ready", array_like=True):
    """The engine has loaded its model and takes requests of up to `max_model_len` tokens, what the model and the cache allow:
    for embeddings of `embedding_dimensions` values, or where those are 0 for text. `kv_blocks` is 0 where nothing is
    cached."""

    max_model_len: int
    vocab_size: int
    kv_blocks: int
    block_size: int
    max_running: int
    eos_token_ids: list[int]
    embedding_dimensions: int = 0


class EngineFailed(Struct, frozen=True, tag="failed", array_like=True):
    """The engine cannot start or go on; one line that says why."""

    reason: str


FromEngine = Ready | StepOutput | EngineFailed

to_engine_encoder = msgspec.msgpack.Encoder()
to_engine_decoder = msgspec.msgpack.Decoder(list[ToEngine])
from_engine_encoder = msgspec.msgpack.Encoder()
from_engine_decoder: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)
