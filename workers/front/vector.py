"""One input of an embedding job, from its tokens to its vector."""

from __future__ import annotations

from schemas.messages import Choice
from workers.protocol import TokenOutput


class VectorRun:
    """The counterpart of a ChoiceRun: all of it comes at once."""

    __slots__ = ("cached_tokens", "index", "token_ids", "vector")

    def __init__(self, index: int, token_ids: list[int]) -> None:
        self.index = index
        self.token_ids = token_ids
        self.cached_tokens = 0
        self.vector: bytes | None = None

    def take(self, output: TokenOutput) -> None:
        assert output.vector is not None
        self.vector = output.vector
        self.cached_tokens = output.cached_tokens

    def finished(self) -> Choice:
        assert self.vector is not None
        return Choice(index=self.index, text="", token_ids=[], finish_reason="stop", embedding=self.vector)
