"""/tokenize and /detokenize, as vLLM has them."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field

from schemas.messages import MAX_ID_LENGTH
from schemas.openai.chat import ChatMessage
from schemas.openai.common import StrictModel, TokenId
from schemas.openai.completions import Tokens

MAX_DETOKENIZED = 1 << 20


class TokenizeRequest(BaseModel):
    """Any body of /v1/completions (with one prompt) or /v1/chat/completions: what makes the prompt counts, the rest has to
    be valid. `return_token_strs` adds the text of each token."""

    model: Annotated[str, Field(min_length=1, max_length=MAX_ID_LENGTH)]
    prompt: str | Tokens | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1)] | None = None
    return_token_strs: bool | None = None


class TokenizeResponse(BaseModel):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeRequest(StrictModel):
    model: Annotated[str, Field(min_length=1, max_length=MAX_ID_LENGTH)]
    tokens: Annotated[list[TokenId], Field(max_length=MAX_DETOKENIZED)]


class DetokenizeResponse(BaseModel):
    prompt: str
