"""A job's grammar, compiled before the job runs: what is wrong with it its publisher hears before any token."""

from __future__ import annotations

import asyncio
from typing import Any

from schemas.messages import Grammar
from workers.grammar import Grammars, tokenizer_json


class GrammarCheck:
    """Loads the tokenizer for it at the first grammar, and compiles off the event loop."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._grammars: Grammars | None = None

    async def check(self, grammar: Grammar, vocab_size: int) -> None:
        """Raises GrammarError."""
        if self._grammars is None:
            end = self._tokenizer.eos_token_id
            self._grammars = Grammars(tokenizer_json(self._tokenizer), vocab_size, [] if end is None else [end])
        await asyncio.wrap_future(self._grammars.compile(grammar))
