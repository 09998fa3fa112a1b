"""Grammars that an output must follow: compiled once, then followed token by token (by llguidance)."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
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
COMPILE_SECONDS = 2.0
"""What took longer to compile is refused: the usual millisecond grows to minutes where regular expressions nest."""
COMPILE_THREADS = 4
COMPILE_STACK = 512 << 20
"""Bytes of address space: a chain of references in MAX_GRAMMAR_LENGTH characters overflows the usual 8 MB."""
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
        self._tokenizer, self.vocab_size, self._eos_token_ids = tokenizer, vocab_size, eos_token_ids
        self._limits = llguidance.LLParserLimits(max_lexer_states=MAX_LEXER_STATES, verbose_errors=False)
        self._vocabulary = lru_cache(1)(self._make_vocabulary)
        self._compiled = lru_cache(CACHED_GRAMMARS)(self._compile)
        self._threads = lru_cache(1)(_deep_threads)

    def load(self) -> None:
        """Raises GrammarError for a tokenizer whose tokens are not plain bytes."""
        self._vocabulary()

    def compile(self, grammar: Grammar) -> Future[llguidance.LLMatcher]:
        """In a thread, unless it is cached; the future raises GrammarError."""
        return self._threads().submit(self._compiled, grammar.kind, grammar.value)

    def matcher(self, grammar: Grammar) -> Matcher:
        """A new matcher at the beginning of an output; waits for the compilation (about a millisecond) where the grammar
        is not cached. Raises GrammarError."""
        return Matcher(self.compile(grammar).result().deep_copy())

    def _make_vocabulary(self) -> llguidance.LLTokenizer:
        try:
            if not self._tokenizer:
                raise ValueError("it is not a fast one")
            ends = self._eos_token_ids or None
            return llguidance.LLTokenizer(self._tokenizer, n_vocab=self.vocab_size, eos_token=ends)
        except ValueError as error:
            raise GrammarError(f"this model's tokenizer cannot follow a grammar: {_reason(str(error))}") from error

    def _compile(self, kind: str, value: str) -> llguidance.LLMatcher:
        vocabulary = self._vocabulary()
        started = time.monotonic()
        made = llguidance.LLMatcher(vocabulary, _source(kind, value), log_level=0, limits=self._limits)
        if made.is_error():
            raise GrammarError(_reason(made.get_error()))
        # some that nothing can match compile, and fail at their first mask
        Matcher(made.deep_copy()).fill(np.empty(-(-self.vocab_size // 32), dtype=np.int32))
        if time.monotonic() - started > COMPILE_SECONDS:
            raise GrammarError(f"it takes more than {COMPILE_SECONDS:g} s to compile")
        return made


def _deep_threads() -> ThreadPoolExecutor:
    """Threads with a stack of COMPILE_STACK bytes, started here: the size is the process's, for the threads to come."""
    threads = ThreadPoolExecutor(COMPILE_THREADS, thread_name_prefix="grammar")
    started = threading.Barrier(COMPILE_THREADS)
    usual = threading.stack_size(COMPILE_STACK)
    try:
        for done in [threads.submit(started.wait) for _ in range(COMPILE_THREADS)]:
            done.result()
    finally:
        threading.stack_size(usual)
    return threads


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
