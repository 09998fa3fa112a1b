"""Parameters that would change the output and that this service does not serve: refused by name, never ignored.

Each comes with the values that ask for nothing beyond what is served; null and absence always do.
"""

from __future__ import annotations

from typing import Any

_NOTHING: tuple[Any, ...] = ()

SHARED: dict[str, tuple[Any, ...]] = {
    "use_beam_search": (False,),
    "length_penalty": (1, 1.0),
    "logits_processors": ([],),
}

CHAT: dict[str, tuple[Any, ...]] = SHARED | {
    "functions": ([],),
    "function_call": ("none", "auto"),
    "audio": _NOTHING,
    "modalities": (["text"],),
    "web_search_options": _NOTHING,
    "verbosity": _NOTHING,
}

COMPLETIONS: dict[str, tuple[Any, ...]] = SHARED | {
    "suffix": ("",),
    "prompt_embeds": _NOTHING,
}

EMBEDDINGS: dict[str, tuple[Any, ...]] = {
    "messages": _NOTHING,
    "embed_dtype": ("float32",),
    "endianness": ("native", "little"),
}


def first_unsupported(body: dict[str, Any], table: dict[str, tuple[Any, ...]]) -> str | None:
    """The first parameter of `body` that asks for what `table` refuses."""
    for name, harmless in table.items():
        value = body.get(name)
        if value is not None and value not in harmless:
            return name
    return None
