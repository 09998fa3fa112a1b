"""A model of transformers as the engine sees it."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workers.model.backend.attention import NAME, AttentionCall, PagedAttention, set_handler
from workers.model.backend.positions import Positions
from workers.model.backend.probe import CannotServe, probe
from workers.model.batch import Batch
from workers.model.kv_layout import KVLayout, kv_layout

_LENGTHS = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length", "n_ctx")
_UNNAMED_LENGTH = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendConfig:
    """Sizes, as ModelSizes names them; `calls` are the layers of the cache."""

    hidden_size: int
    intermediate_size: int
    vocab_size: int
    max_position: int
    calls: tuple[AttentionCall, ...]

    @property
    def largest(self) -> AttentionCall:
        """The layer that keeps the most, by which the cache is cut."""
        return max(self.calls, key=lambda call: call.kv_heads * call.width)

    @property
    def longest_position(self) -> int:
        return self.max_position

    @property
    def num_layers(self) -> int:
        return len(self.calls)

    @property
    def num_heads(self) -> int:
        return self.largest.heads

    @property
    def num_kv_heads(self) -> int:
        return self.largest.kv_heads

    @property
    def head_dim(self) -> int:
        return self.largest.width

    @property
    def kv_layout(self) -> KVLayout:
        """One group where layers keep different numbers of values: they cut the cache into blocks differently, and so cannot
        share them."""
        windows = [call.options.window for call in self.calls]
        alike = len({(call.kv_heads, call.width) for call in self.calls}) == 1 or len(set(windows)) == 1
        return kv_layout(windows if alike else [0] * self.num_layers)

    @property
    def kv_values_per_token(self) -> int:
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim


class TransformersModel:
    """`forward` computes one batch as one row of tokens; its attention goes to the paged cache. Raises CannotServe where
    the model does something else with its tokens than attend to those before them."""

    def __init__(self, model: Any) -> None:
        if getattr(model, "_is_stateful", False):
            raise CannotServe("it keeps a state from token to token (recurrent layers)")
        self.model = model
        self._parameters = inspect.signature(model.forward).parameters
        self._positions = Positions(model)
        self.static = _is_static(model)
        calls = probe(model, lambda tokens, positions: self._logits(tokens, positions, None))
        self.config = _config(model, calls)
        self._attention = PagedAttention(calls, self.config.largest, self.config.kv_layout.places)
        set_handler(model, self._attention)
        model.set_attn_implementation(NAME)

    def forward(self, batch: Batch, kv_cache: Tensor) -> Tensor:
        """Logits [rows, vocab] in the model's dtype."""
        tokens, positions = batch.tokens[None], batch.positions[None]
        logits: Tensor = self._attention.run(lambda: self._logits(tokens, positions, batch.logit_rows), batch, kv_cache)
        return logits

    def _logits(self, tokens: Tensor, positions: Tensor, rows: Tensor | None) -> Tensor:
        given: dict[str, Any] = self._positions.arguments(positions)
        if "use_cache" in self._parameters:
            given["use_cache"] = False
        if rows is not None and "logits_to_keep" in self._parameters:
            return self.model(input_ids=tokens, logits_to_keep=rows, **given).logits[0]  # type: ignore[no-any-return]
        logits: Tensor = self.model(input_ids=tokens, **given).logits[0]
        return logits if rows is None else logits[rows]

    @torch.inference_mode()
    def own_logits(self, tokens: Tensor) -> Tensor:
        """What the model gives with transformers' own attention, all at once: [tokens, vocab]."""
        self._positions.release()
        self.model.set_attn_implementation("eager")
        try:
            given = {"use_cache": False} if "use_cache" in self._parameters else {}
            logits: Tensor = self.model(input_ids=tokens[None], **given).logits[0]
            return logits
        finally:
            self.model.set_attn_implementation(NAME)


def longest_context(config: Any) -> int:
    """Tokens, by what a transformers config says."""
    text = config.get_text_config()
    return next((int(n) for name in _LENGTHS if (n := getattr(text, name, None))), _UNNAMED_LENGTH)


def _is_static(model: Any) -> bool:
    """What transformers says of the model's code: whether one graph can hold its forward."""
    return bool(getattr(model, "_can_compile_fullgraph", False))


def _config(model: Any, calls: list[AttentionCall]) -> BackendConfig:
    config = model.config.get_text_config()
    layers = getattr(config, "num_hidden_layers", None)
    if layers is not None and len(calls) < layers:
        raise CannotServe(
            f"{layers - len(calls)} of its {layers} layers do not attend to the tokens before, but keep a state"
        )
    hidden = getattr(config, "hidden_size", None) or model.get_input_embeddings().weight.shape[1]
    return BackendConfig(
        hidden_size=hidden,
        intermediate_size=getattr(config, "intermediate_size", None) or 4 * hidden,
        vocab_size=config.vocab_size,
        max_position=longest_context(model.config),
        calls=tuple(calls),
    )
