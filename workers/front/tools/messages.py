"""Tools and their calls in a conversation, as chat templates read them."""

from __future__ import annotations

import json
from typing import Any

from workers.front.tools.hermes import CLOSING, OPENING

Message = dict[str, Any]

_PREAMBLE = """You can call functions. Each is described by a line of JSON:
{functions}
To call one, answer with its name and arguments in this form, once for each call:
{opening}
{{"name": "<name>", "arguments": {{"<parameter>": <value>}}}}
{closing}"""


def decoded_calls(message: Message) -> Message:
    """Arguments of an earlier answer's calls as objects: clients have them as JSON text. Raises ValueError that says
    which are none."""
    calls = message.get("tool_calls")
    if not calls or not isinstance(calls, list):
        return message
    return {**message, "tool_calls": [_decoded(call, index) for index, call in enumerate(calls)]}


def _decoded(call: Any, index: int) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise ValueError(f"tool_calls[{index}].function.arguments should be a JSON object")
    return {**call, "function": {**function, "arguments": arguments}}


def in_words(messages: list[Message], tools: list[dict[str, Any]]) -> list[Message]:
    """The conversation for a template that knows of no tools: they are told to the system, in the form that the hermes
    parser reads, and calls are written out."""
    functions = "\n".join(json.dumps(tool.get("function", tool)) for tool in tools)
    preamble = _PREAMBLE.format(functions=functions, opening=OPENING, closing=CLOSING)
    first, rest = ([messages[0]], messages[1:]) if messages[0].get("role") == "system" else ([], messages)
    own = "\n\n".join(message["content"] for message in first if message.get("content"))
    system = {"role": "system", "content": f"{own}\n\n{preamble}" if own else preamble}
    return [system, *(_written_out(message) for message in rest)]


def _written_out(message: Message) -> Message:
    calls = message.get("tool_calls") or []
    written = [f"{OPENING}\n{json.dumps(_plain(call['function']))}\n{CLOSING}" for call in calls]
    return {**message, "content": "\n".join([*([message["content"]] if message.get("content") else []), *written])}


def _plain(function: dict[str, Any]) -> dict[str, Any]:
    return {"name": function.get("name"), "arguments": function.get("arguments", {})}
