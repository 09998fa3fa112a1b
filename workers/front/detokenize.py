"""Token ids to text, one token at a time, and never half a character.

The text so far is a function of the token ids so far: a detokenizer is rebuilt by feeding it those ids again. What a
text's end leaves unfinished comes out of `flush`, as U+FFFD, so that the whole equals the decoding of all ids at once.
`tokenizers.DecodeStream` is not used: it holds back for ever a model that goes on emitting invalid bytes, and raises
where byte-fallback tokens turn out invalid.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from workers.front.token_bytes import DecoderKind, TokenBytes, decoder_kind

REPLACEMENT = "\ufffd"
MAX_HELD_TOKENS = 8
"""A character has at most four bytes; after that many tokens what looks unfinished is invalid and is shown."""


class Detokenizer(Protocol):
    """Incremental text of one choice."""

    def step(self, token_id: int) -> str:
        """The text that this token completes."""
        ...

    def flush(self) -> str:
        """What is still held back; the text ends here."""
        ...


class ByteDetokenizer:
    """For tokens that spell bytes: looks up, then decodes UTF-8 incrementally (0.3 us a token)."""

    __slots__ = ("_decode", "_strip", "_table")

    def __init__(self, table: TokenBytes, *, strip_space: bool) -> None:
        self._table = table
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._strip = strip_space

    def step(self, token_id: int) -> str:
        text = self._decode(self._table[token_id])
        if self._strip and text:
            self._strip = False
            return text.removeprefix(" ")
        return text

    def flush(self) -> str:
        return self._decode(b"", True)


class PrefixDetokenizer:
    """For any other tokenizer: decodes a short window with and without the new token, shows the difference."""

    __slots__ = ("_before", "_decode", "_read", "_window")

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._window: list[int] = []
        self._read = 0
        self._before = ""

    def step(self, token_id: int) -> str:
        self._window.append(token_id)
        whole = self._decode(self._window)
        if whole.endswith(REPLACEMENT) and len(self._window) - self._read < MAX_HELD_TOKENS:
            return ""
        text = whole[len(self._before) :]
        self._window = self._window[self._read :]
        self._read = len(self._window)
        self._before = self._decode(self._window)
        return text

    def flush(self) -> str:
        return self._decode(self._window)[len(self._before) :]


class Vocabulary:
    """What a tokenizer's ids stand for: bytes of single tokens, and detokenizers for sequences.

    `tokenizer` is a transformers `PreTrainedTokenizerBase`.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.items()
        self.special_ids = frozenset(token_id for token_id, token in added if token.special)
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._kind = decoder_kind(backend)
        if self._kind is not None:
            self._shown = TokenBytes(backend, self._kind, self.special_ids)
            self._all = TokenBytes(backend, self._kind)
        self._tables: dict[frozenset[str], TokenBytes] = {}

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token, special or not; part of a character for some."""
        if self._kind is not None:
            return self._all[token_id]
        return self._text([token_id], skip_special_tokens=False).encode()

    def detokenizer(
        self, prompt: Iterable[int], *, skip_special_tokens: bool, keep: frozenset[str] = frozenset()
    ) -> Detokenizer:
        """For text that continues `prompt`: a space between both is kept, unless the prompt shows no text. Special
        tokens in `keep` are not skipped; where tokens are no plain bytes, none is skipped then."""
        if self._kind is None:
            skip = skip_special_tokens and not keep
            return PrefixDetokenizer(lambda ids: self._text(ids, skip_special_tokens=skip))
        strip = self._kind.strips_space and skip_special_tokens and self.special_ids.issuperset(prompt)
        if not skip_special_tokens:
            return ByteDetokenizer(self._all, strip_space=strip)
        return ByteDetokenizer(self._table(self._kind, keep) if keep else self._shown, strip_space=strip)

    def _table(self, kind: DecoderKind, keep: frozenset[str]) -> TokenBytes:
        if keep not in self._tables:
            kept = self._tokenizer.convert_tokens_to_ids(sorted(keep))
            hidden = self.special_ids.difference(kept)
            self._tables[keep] = TokenBytes(self._tokenizer.backend_tokenizer, kind, hidden)
        return self._tables[keep]

    def token_texts(self, token_ids: Iterable[int]) -> list[str]:
        """The text of each token, special or not; U+FFFD for what is part of a character."""
        return [self.token_bytes(token_id).decode("utf-8", "replace") for token_id in token_ids]

    def text(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        """The text of a whole sequence."""
        return self._text(token_ids, skip_special_tokens=skip_special_tokens)

    def _text(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        text = self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False)
        return str(text)
