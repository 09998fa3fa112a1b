"""What the server-sent events of each streamed operation hold, for /openapi.json.

OpenAPI 3.1 has no word for the items of a stream; `itemSchema` is 3.2's, and readers of 3.1 pass over it.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from schemas.openai.chat import ChatCompletionChunk
from schemas.openai.completions import Completion

COMPONENTS = "#/components/schemas/"

CHUNKS: dict[tuple[str, str], type[BaseModel]] = {
    ("post", "/v1/chat/completions"): ChatCompletionChunk,
    ("post", "/v1/completions"): Completion,
}
"""Operations whose streams are chunks, and end in `[DONE]`."""
NUMBERED = (("post", "/v1/responses"), ("get", "/v1/responses/{response_id}"))
"""Operations whose streams are numbered events."""

_ERROR = {"$ref": f"{COMPONENTS}ErrorResponse"}
_EVENT = {
    "type": "object",
    "required": ["type", "sequence_number"],
    "properties": {
        "type": {"type": "string", "examples": ["response.output_text.delta"]},
        "sequence_number": {"type": "integer", "minimum": 0},
    },
}


def add_stream(method: str, path: str, operation: dict[str, Any], schemas: dict[str, Any]) -> None:
    """Describe the events of an operation that can stream; `schemas` gets what the description refers to."""
    if (chunk := CHUNKS.get((method, path))) is not None:
        made = chunk.model_json_schema(ref_template=COMPONENTS + "{model}")
        schemas.update(made.pop("$defs", {}) | {chunk.__name__: made})
        data = {"anyOf": [{"const": "[DONE]"}, _json({"anyOf": [{"$ref": COMPONENTS + chunk.__name__}, _ERROR]})]}
    elif (method, path) in NUMBERED:
        data = _json(_EVENT)
    else:
        return
    fields = {"event": {"type": "string"}, "data": data}
    item = {"type": "object", "required": ["data"], "properties": fields}
    content = operation["responses"]["200"]["content"]
    content["text/event-stream"] = {"itemSchema": item}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    """A string that is JSON."""
    return {"type": "string", "contentMediaType": "application/json", "contentSchema": schema}
