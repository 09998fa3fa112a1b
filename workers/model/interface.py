"""What the engine asks of a model, be it the decoder or one of transformers'."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from workers.model.batch import Batch
from workers.model.kv_layout import KVLayout


class ModelSizes(Protocol):
    """Numbers that the engine sizes its buffers by. num_heads, num_kv_heads and head_dim are those of the layer that keeps
    the most; max_position: tokens of the context; longest_position: the most that may be asked for."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def max_position(self) -> int: ...
    @property
    def longest_position(self) -> int: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def num_kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def kv_layout(self) -> KVLayout:
        """Which layers share blocks."""
        ...

    @property
    def kv_values_per_token(self) -> int:
        """Numbers that one token keeps in the cache, all layers."""
        ...


class CausalModel(Protocol):
    """static: whether a step's work depends on the batch's sizes alone, as a CUDA graph needs it."""

    @property
    def config(self) -> ModelSizes: ...
    @property
    def static(self) -> bool: ...

    def forward(self, batch: Batch, kv_cache: Tensor) -> Tensor:
        """Logits [rows, vocab] in the model's dtype; keys and values go to `kv_cache` [depth of the layout, 2, blocks,
        kv_heads, block_size, head_dim]."""
        ...
