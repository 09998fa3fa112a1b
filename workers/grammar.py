"""Grammars that an output must follow: compiled once, then followed token by token (by llguidance)."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import llguidance
import msgspec
import numpy as np
from numpy.typing import NDArray

from schemas.messages import Grammar

CACHED_GRAMMARS = 32
MAX_LEXER_STATES = 50_000
"""Of one grammar, at 1 to 2 KB a state: what a hostile one may take, and the cache holds CACHED_GRAMMARS of them."""
WHITESPACE = r" ?|\n {0,32}"
"""Between the tokens of JSON: compact, spaced or indented. Without a bound small models write blanks until they are cut."""
MAX_MESSAGE = 500


class GrammarError(ValueError):
    """The grammar cannot be compiled or followed; the message says why."""


class Matcher:
    """Follows one output through its grammar."""

    def __init__(self, inner: llguidance.LLMatcher) -> None:
        self._inner = inner

    @property
    def is_complete(self) -> bool:
        """The output satisfies the grammar, and nothing but an end-of-sequence token may follow."""
        return self._inner.is_stopped()

    def take(self, tokens: list[int]) -> None:
        """Tokens that came next. Raises GrammarError where the grammar has no place for them."""
        if not all(map(self._inner.consume_token, tokens)):
            raise GrammarError(_reason(self._inner.get_error()))

    def fill(self, bits: NDArray[np.int32]) -> None:
        """Set the bit of each token that may come next, and clear the others. bits: [words], contiguous, bit i % 32 of
        word i // 32 is token i. End-of-sequence tokens may come where the output satisfies the grammar. Raises
        GrammarError where the step takes more work than llguidance allows."""
        self._inner.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)
        if self._inner.is_error():
            raise GrammarError(_reason(self._inner.get_error()))


def tokenizer_json(tokenizer: Any) -> str:
    """The JSON text of a transformers `PreTrainedTokenizerBase`; empty where it is none of `tokenizers`'."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return "" if backend is None else str(backend.to_str())


class Grammars:
    """Compiles grammars for one vocabulary; the last CACHED_GRAMMARS are kept.

    `tokenizer` is the JSON text of a `tokenizers.Tokenizer`, `vocab_size` the number of logits, which may be more than
    its tokens. Loading takes 0.2 s for 49,000 tokens and is done by `load` or at the first use.
    """

    def __init__(self, tokenizer: str, vocab_size: int, eos_token_ids: list[int]) -> None:
        self._tokenizer, self._vocab_size, self._eos_token_ids = tokenizer, vocab_size, eos_token_ids
        self._limits = llguidance.LLParserLimits(max_lexer_states=MAX_LEXER_STATES, verbose_errors=False)
        self._vocabulary = lru_cache(1)(self._make_vocabulary)
        self._compiled = lru_cache(CACHED_GRAMMARS)(self._compile)

    def load(self) -> None:
        """Raises GrammarError for a tokenizer whose tokens are not plain bytes."""
        self._vocabulary()

    def matcher(self, grammar: Grammar) -> Matcher:
        """A new matcher at the beginning of an output; compiles where the grammar is not cached (about a millisecond).
        Raises GrammarError. May be called from any thread."""
        return Matcher(self._compiled(grammar.kind, grammar.value).deep_copy())

    def _make_vocabulary(self) -> llguidance.LLTokenizer:
        try:
            if not self._tokenizer:
                raise ValueError("it is not a fast one")
            ends = self._eos_token_ids or None
            return llguidance.LLTokenizer(self._tokenizer, n_vocab=self._vocab_size, eos_token=ends)
        except ValueError as error:
            raise GrammarError(f"this model's tokenizer cannot follow a grammar: {_reason(str(error))}") from error

    def _compile(self, kind: str, value: str) -> llguidance.LLMatcher:
        source = _source(kind, value)
        made = llguidance.LLMatcher(self._vocabulary(), source, log_level=0, limits=self._limits)
        if made.is_error():
            raise GrammarError(_reason(made.get_error()))
        return made


def _source(kind: str, value: str) -> str:
    """The grammar as llguidance reads it."""
    try:
        if kind == "json":
            schema = msgspec.json.decode(value, type=dict[str, Any] | bool)
            return llguidance.LLMatcher.grammar_from_json_schema(
                msgspec.json.encode(schema).decode(), defaults={"whitespace_pattern": WHITESPACE}
            )
        if kind == "choice" and not msgspec.json.decode(value, type=list[str]):
            raise GrammarError("the list of choices is empty")
        return llguidance.grammar_from(kind, value)  # type: ignore[arg-type]
    except (ValueError, RecursionError) as error:
        raise GrammarError(_reason(str(error))) from error


def _reason(message: str) -> str:
    """llguidance's message without its marks, in bounds."""
    return message.replace("<non-verbose/>", "").strip()[:MAX_MESSAGE]
