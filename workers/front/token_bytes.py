"""The bytes that each token stands for, read off the tokenizer's decoder.

Two kinds of decoder cover nearly all language models: byte-level BPE, whose tokens spell bytes in an alphabet of 256,
and SentencePiece's, whose tokens are text with U+2581 for a space and `<0xNN>` for single bytes. For both the text of a
sequence is the UTF-8 decoding of the concatenated bytes, so text can be made one token at a time.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Literal

BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
SPACE = "\u2581"


@dataclass(frozen=True, slots=True)
class DecoderKind:
    """How tokens spell bytes. `strips_space`: the decoder drops one space at the beginning of a text."""

    alphabet: Literal["byte_level", "sentencepiece"]
    byte_fallback: bool = False
    strips_space: bool = False


def decoder_kind(backend: Any) -> DecoderKind | None:
    """The kind of a `tokenizers.Tokenizer`'s decoder; None where tokens are not plain bytes (WordPiece, CTC)."""
    if backend is None or backend.decoder is None:
        return None
    parts = _flatten(json.loads(backend.decoder.__getstate__()))
    types = {part["type"] for part in parts}
    if types == {"ByteLevel"}:
        return DecoderKind("byte_level")
    if types == {"Metaspace"}:
        return DecoderKind("sentencepiece", strips_space=parts[0].get("prepend_scheme") != "never")
    if types <= {"Replace", "ByteFallback", "Fuse", "Strip"} and all(_plain(part) for part in parts):
        return DecoderKind("sentencepiece", "ByteFallback" in types, "Strip" in types)
    return None


def _flatten(decoder: dict[str, Any]) -> list[dict[str, Any]]:
    if decoder["type"] != "Sequence":
        return [decoder]
    return [part for inner in decoder["decoders"] for part in _flatten(inner)]


def _plain(part: dict[str, Any]) -> bool:
    """Whether this part does what SentencePiece's decoder does, and nothing else."""
    if part["type"] == "Replace":
        return bool(part["pattern"] == {"String": SPACE} and part["content"] == " ")
    if part["type"] == "Strip":
        return bool(part["content"] == " " and part["start"] == 1 and part["stop"] == 0)
    return True


class TokenBytes(dict[int, bytes]):
    """Token id -> bytes, filled on first use. Ids in `hidden` and ids without a token (padding rows) have no bytes."""

    def __init__(self, backend: Any, kind: DecoderKind, hidden: frozenset[int] = frozenset()) -> None:
        super().__init__()
        self._backend = backend
        self._kind = kind
        self._hidden = hidden

    def __missing__(self, token_id: int) -> bytes:
        token = None if token_id in self._hidden else self._backend.id_to_token(token_id)
        spelled = b"" if token is None else _spell(token, self._kind)
        self[token_id] = spelled
        return spelled


def _spell(token: str, kind: DecoderKind) -> bytes:
    if kind.alphabet == "byte_level":
        # A token with a letter outside of the alphabet is an added one, and stands for itself.
        letters = [_ALPHABET.get(letter) for letter in token]
        return token.encode() if None in letters else bytes(byte for byte in letters if byte is not None)
    if kind.byte_fallback and (match := BYTE_TOKEN.fullmatch(token)):
        return bytes([int(match[1], 16)])
    return token.replace(SPACE, " ").encode()


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's letters: a printable Latin-1 byte is its own letter, the others follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(0x100 + index): byte for index, byte in enumerate(others)}


_ALPHABET = _byte_alphabet()
