"""Log probabilities of a prompt's tokens, in vLLM's shape: a list over positions, null for the first, of token id to this."""

from __future__ import annotations

from pydantic import BaseModel


class PromptLogprob(BaseModel):
    logprob: float
    rank: int
    decoded_token: str
