"""An example answer of each operation that answers with JSON, by method and path: tests hold them against their schemas."""

from __future__ import annotations

from typing import Any

from api.examples import MODEL

_ID = "4f1c0b9d2a7e4d1f8a6b3c5d7e9f0a1b"
_CREATED = 1767225600
_USAGE = {
    "prompt_tokens": 37,
    "completion_tokens": 8,
    "total_tokens": 45,
    "prompt_tokens_details": {"cached_tokens": 32},
    "completion_tokens_details": {"reasoning_tokens": 0},
}
_SAID = "The capital of France is Paris."

_MODEL = {
    "id": MODEL,
    "object": "model",
    "created": _CREATED,
    "owned_by": "headrace",
    "max_model_len": 8192,
    "embedding_dimensions": None,
    "sampling_defaults": {},
}
_FILE = {
    "id": "file-0123456789abcdef",
    "object": "file",
    "bytes": 183,
    "created_at": _CREATED,
    "expires_at": None,
    "filename": "lines.jsonl",
    "purpose": "batch",
    "status": "processed",
}
_BATCH = {
    "id": "batch_0123456789abcdef",
    "object": "batch",
    "endpoint": "/v1/chat/completions",
    "errors": None,
    "input_file_id": "file-0123456789abcdef",
    "completion_window": "24h",
    "status": "in_progress",
    "output_file_id": None,
    "error_file_id": None,
    "created_at": _CREATED,
    "in_progress_at": _CREATED + 1,
    "expires_at": _CREATED + 86_400,
    **dict.fromkeys(f"{end}_at" for end in ("finalizing", "completed", "failed", "expired", "cancelling", "cancelled")),
    "request_counts": {"total": 100, "completed": 40, "failed": 0},
    "metadata": {"job": "nightly"},
    "usage": {
        "input_tokens": 1480,
        "input_tokens_details": {"cached_tokens": 1280},
        "output_tokens": 320,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 1800,
    },
}
_QUESTION = {
    "id": f"msg_{_ID}_0",
    "type": "message",
    "role": "user",
    "status": "completed",
    "content": [{"type": "input_text", "text": "What is the capital of France?"}],
}
_RESPONSE = {
    "id": f"resp_{_ID}",
    "object": "response",
    "created_at": _CREATED,
    "completed_at": _CREATED + 1,
    "status": "completed",
    "background": False,
    "error": None,
    "incomplete_details": None,
    "instructions": None,
    "max_output_tokens": 16,
    "metadata": {},
    "model": MODEL,
    "output": [
        {
            "id": f"msg_{_ID}",
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": _SAID, "annotations": []}],
        }
    ],
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "reasoning": {"effort": None, "summary": None},
    "store": True,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": 1.0,
    "truncation": "disabled",
    "usage": {
        "input_tokens": 37,
        "input_tokens_details": {"cached_tokens": 32, "cache_write_tokens": 0},
        "output_tokens": 8,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 45,
    },
    "user": None,
}


def _page(item: dict[str, Any]) -> dict[str, Any]:
    return {"object": "list", "data": [item], "first_id": item["id"], "last_id": item["id"], "has_more": False}


ANSWERS: dict[tuple[str, str], dict[str, Any]] = {
    ("post", "/v1/chat/completions"): {
        "id": f"chatcmpl-{_ID}",
        "object": "chat.completion",
        "created": _CREATED,
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": _SAID, "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": _USAGE,
    },
    ("post", "/v1/completions"): {
        "id": f"cmpl-{_ID}",
        "object": "text_completion",
        "created": _CREATED,
        "model": MODEL,
        "choices": [{"index": 0, "text": ", there was a mill.", "logprobs": None, "finish_reason": "length"}],
        "usage": _USAGE,
    },
    ("post", "/v1/embeddings"): {
        "id": f"embd-{_ID}",
        "object": "list",
        "created": _CREATED,
        "data": [{"object": "embedding", "index": 0, "embedding": [0.0123, -0.0456, 0.0789]}],
        "model": MODEL,
        "usage": {"prompt_tokens": 5, "total_tokens": 5},
    },
    ("post", "/v1/responses"): _RESPONSE,
    ("get", "/v1/responses/{response_id}"): _RESPONSE,
    ("post", "/v1/responses/{response_id}/cancel"): _RESPONSE
    | {"status": "cancelled", "background": True, "completed_at": None, "output": [], "usage": None},
    ("delete", "/v1/responses/{response_id}"): {"id": f"resp_{_ID}", "object": "response", "deleted": True},
    ("get", "/v1/responses/{response_id}/input_items"): _page(_QUESTION),
    ("get", "/v1/models"): {"object": "list", "data": [_MODEL]},
    ("get", "/v1/models/{model}"): _MODEL,
    ("post", "/v1/files"): _FILE,
    ("get", "/v1/files"): _page(_FILE),
    ("get", "/v1/files/{file_id}"): _FILE,
    ("delete", "/v1/files/{file_id}"): {"id": _FILE["id"], "object": "file", "deleted": True},
    ("post", "/v1/batches"): _BATCH
    | {"status": "validating", "in_progress_at": None, "request_counts": {"total": 0, "completed": 0, "failed": 0}},
    ("get", "/v1/batches"): _page(_BATCH),
    ("get", "/v1/batches/{batch_id}"): _BATCH,
    ("post", "/v1/batches/{batch_id}/cancel"): _BATCH | {"status": "cancelling", "cancelling_at": _CREATED + 60},
    ("post", "/v1/tokenize"): {
        "count": 4,
        "max_model_len": 8192,
        "tokens": [6403, 1980, 253, 655],
        "token_strs": ["Once", " upon", " a", " time"],
    },
    ("post", "/v1/detokenize"): {"prompt": "Once upon a time"},
    ("get", "/v1/usage"): {
        "object": "list",
        "key": "key_0123456789abcdef",
        "data": [
            {
                "object": "usage",
                "day": "2026-03-01",
                "model": MODEL,
                "requests": 120,
                "prompt_tokens": 4440,
                "completion_tokens": 960,
                "total_tokens": 5400,
                "cached_tokens": 3840,
            }
        ],
    },
    ("get", "/health"): {"status": "ok"},
    ("get", "/ready"): {"status": "ready"},
    ("get", "/version"): {"version": "0.1.0"},
}
