"""From terminal Results to whole response bodies, and the pieces that streamed chunks share with them."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from api.requests import CHAT_COMPLETIONS
from schemas.messages import Choice, PositionLogprobs, Result, ScoredToken, TokenLogprob, ToolCall, Usage

LOWEST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON cannot hold."""


def response_id(endpoint: str, job_id: str) -> str:
    """The id of the answer to one job."""
    return f"{'chatcmpl' if endpoint == CHAT_COMPLETIONS else 'cmpl'}-{job_id}"


def body_from_result(endpoint: str, result: Result) -> dict[str, Any]:
    """The whole `chat.completion` or `text_completion` of a completed Result that carries its choices."""
    return body_from_results(endpoint, response_id(endpoint, result.job), [result])


def body_from_results(endpoint: str, body_id: str, results: Sequence[Result]) -> dict[str, Any]:
    """One body of several prompts' Results, in the prompts' order; choices are numbered on."""
    chat = endpoint == CHAT_COMPLETIONS
    choices = [choice for result in results for choice in sorted(result.choices, key=lambda choice: choice.index)]
    build = _chat_choice if chat else _completion_choice
    return {
        "id": body_id,
        "object": "chat.completion" if chat else "text_completion",
        "created": int(results[0].created or time.time()),
        "model": results[0].model,
        "choices": [build(index, choice) for index, choice in enumerate(choices)],
        "usage": usage_body([result.usage for result in results]),
    }


def usage_body(usages: Sequence[Usage]) -> dict[str, Any]:
    """The sum of `usages` as OpenAI writes it."""
    prompt = sum(usage.prompt_tokens for usage in usages)
    completion = sum(usage.completion_tokens for usage in usages)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(usage.cached_tokens for usage in usages)},
        "completion_tokens_details": {"reasoning_tokens": sum(usage.reasoning_tokens for usage in usages)},
    }


def chat_logprobs(positions: list[PositionLogprobs]) -> dict[str, Any]:
    """`{content: [{token, logprob, bytes, top_logprobs}], refusal}`."""
    content = [
        _chat_logprob(position.sampled) | {"top_logprobs": [_chat_logprob(top) for top in position.top]}
        for position in positions
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(positions: list[PositionLogprobs], first_offset: int = 0) -> dict[str, Any]:
    """`{text_offset, token_logprobs, tokens, top_logprobs}`; offsets in characters, from `first_offset`. The sampled
    token is always among its alternatives, so that there may be one more than asked for."""
    offsets = []
    offset = first_offset
    for position in positions:
        offsets.append(offset)
        offset += len(position.sampled.token)
    return {
        "text_offset": offsets,
        "token_logprobs": [_finite(position.sampled.logprob) for position in positions],
        "tokens": [position.sampled.token for position in positions],
        "top_logprobs": [
            None
            if position.sampled.logprob is None
            else {token.token: _finite(token.logprob) for token in [*position.top, position.sampled]}
            for position in positions
        ],
    }


def _chat_logprob(token: TokenLogprob) -> dict[str, Any]:
    return {"token": token.token, "logprob": _finite(token.logprob), "bytes": token.token_bytes}


def _finite(logprob: float | None) -> float | None:
    return logprob if logprob is None or math.isfinite(logprob) else LOWEST_LOGPROB


def token_ids_of(token_ids: list[int], prompt_token_ids: list[int] | None) -> dict[str, Any]:
    """The ids of an output, and with its first piece those of its prompt, as both were asked for."""
    prompt = {} if prompt_token_ids is None else {"prompt_token_ids": prompt_token_ids}
    return {"token_ids": token_ids, **prompt}


def prompt_logprobs_of(positions: list[list[ScoredToken]] | None) -> dict[str, Any]:
    """Log probabilities of the prompt's tokens, where they were asked for; the first token has none."""
    if positions is None:
        return {}
    return {"prompt_logprobs": [None, *({str(one.token_id): _scored(one) for one in each} for each in positions)]}


def _scored(token: ScoredToken) -> dict[str, Any]:
    return {"logprob": _finite(token.logprob), "rank": token.rank, "decoded_token": token.token}


def _chat_choice(index: int, choice: Choice) -> dict[str, Any]:
    return {
        "index": index,
        "message": _message(choice),
        "logprobs": None if choice.logprobs is None else chat_logprobs(choice.logprobs),
        "finish_reason": choice.finish_reason,
        **({} if choice.prompt_token_ids is None else token_ids_of(choice.token_ids, choice.prompt_token_ids)),
        **prompt_logprobs_of(choice.prompt_logprobs),
    }


def _message(choice: Choice) -> dict[str, Any]:
    content = choice.text or (None if choice.tool_calls else "")
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    if choice.reasoning:
        message |= reasoning_fields(choice.reasoning)
    if choice.tool_calls:
        message["tool_calls"] = [_tool_call(call) for call in choice.tool_calls]
    return message


def reasoning_fields(reasoning: str) -> dict[str, str]:
    """Under both names that clients look for."""
    return {"reasoning_content": reasoning, "reasoning": reasoning}


def _tool_call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def tool_call_delta(call: ToolCall) -> dict[str, Any]:
    """A piece of a call as a chunk has it: what names the call comes with its first piece."""
    if call.id:
        return {"index": call.index} | _tool_call(call)
    return {"index": call.index, "function": {"arguments": call.arguments}}


def _completion_choice(index: int, choice: Choice) -> dict[str, Any]:
    return {
        "index": index,
        "text": choice.text,
        "logprobs": None if choice.logprobs is None else completion_logprobs(choice.logprobs),
        "finish_reason": choice.finish_reason,
        **({} if choice.prompt_token_ids is None else token_ids_of(choice.token_ids, choice.prompt_token_ids)),
        **prompt_logprobs_of(choice.prompt_logprobs),
    }
