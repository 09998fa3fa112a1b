"""Parsers by name, and which of them a chat template asks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from workers.front.tools.enforce import HERMES_FORM, LLAMA3_FORM, MISTRAL_FORM, CallForm
from workers.front.tools.hermes import hermes, qwen3
from workers.front.tools.llama3 import TAG, llama3_json
from workers.front.tools.mistral import ARGUMENTS, CALL_ID, mistral
from workers.front.tools.mistral import OPENING as TOOL_CALLS
from workers.front.tools.pythonic import CLOSING as PYTHON_END
from workers.front.tools.pythonic import OPENING as PYTHON_START
from workers.front.tools.pythonic import pythonic
from workers.front.tools.reasoning import ReasoningStyle
from workers.front.tools.sink import Sink
from workers.front.tools.source import Scan, Source

ToolParserName = Literal["auto", "none", "hermes", "llama3_json", "mistral", "qwen3", "pythonic"]
ReasoningParserName = Literal["auto", "none", "qwen3", "deepseek"]


@dataclass(frozen=True, slots=True)
class ToolParser:
    """Reads text and calls until the text ends. `specials` are special tokens that it must see, `form` says how a call is
    enforced, and ids of calls are of `id_prefix` and `id_length` characters in all, where templates check them."""

    read: Callable[[Source, Sink], Scan[None]]
    specials: frozenset[str] = frozenset()
    form: CallForm | None = None
    id_prefix: str = "call_"
    id_length: int = 29


TOOL_PARSERS = {
    "hermes": ToolParser(hermes, form=HERMES_FORM),
    "qwen3": ToolParser(qwen3, form=HERMES_FORM),
    "llama3_json": ToolParser(llama3_json, frozenset({TAG}), LLAMA3_FORM),
    "mistral": ToolParser(mistral, frozenset({TOOL_CALLS, ARGUMENTS, CALL_ID}), MISTRAL_FORM, "", 9),
    "pythonic": ToolParser(pythonic, frozenset({PYTHON_START, PYTHON_END})),
}
REASONING_PARSERS = {"qwen3": ReasoningStyle(), "deepseek": ReasoningStyle(implied=True)}

_TOOL_SIGNS: tuple[tuple[tuple[str, ...], str | None], ...] = (
    (("<tool_call>", "<function="), "qwen3"),
    (("<tool_call>", "<arg_key>"), None),  # GLM's, which is neither JSON nor Qwen's XML
    (("<tool_call>",), "hermes"),
    (("[TOOL_CALLS]",), "mistral"),
    (("func_name1(",), "pythonic"),
    (('function name, "parameters":',), "llama3_json"),  # Llama 4's own template asks for this form, too
    (("<|python_start|>",), "pythonic"),
)
"""What a template shows of the syntax, all of it, and the parser for that; the first that fits counts."""
_DEEPSEEK = "<\uff5cAssistant\uff5c>"


def tool_parser(name: ToolParserName, template: str) -> ToolParser | None:
    """The parser of that name; for auto the one whose syntax the chat template shows, if it takes tools at all."""
    if name == "auto":
        shown = template.replace('\\"', '"') if "tools" in template else ""
        fitting = (parser for signs, parser in _TOOL_SIGNS if all(sign in shown for sign in signs))
        found = next(fitting, None)
        return None if found is None else TOOL_PARSERS[found]
    return None if name == "none" else TOOL_PARSERS[name]


def reasoning_style(name: ReasoningParserName, template: str) -> ReasoningStyle | None:
    """The same for reasoning; a template without `<think>` is one of a model that does not reason. One in which thinking
    can be turned off opens or closes it in the prompt: then nothing is implied."""
    if name == "auto":
        if "<think>" not in template and "</think>" not in template:
            return None
        implied = _DEEPSEEK in template and "thinking" not in template
        return REASONING_PARSERS["deepseek" if implied else "qwen3"]
    return None if name == "none" else REASONING_PARSERS[name]
