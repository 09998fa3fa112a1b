"""The one decoder. Families differ in its config, not in its code."""

from __future__ import annotations

from torch import Tensor

from kernels.rope import Rotation
from workers.model.batch import Batch, Step
from workers.model.config import DecoderConfig
from workers.model.embedding import Embedding, Head
from workers.model.layer import build_layer
from workers.model.rope import rotation_tables
from workers.model.weights import GetWeight, Weights


class Decoder:
    """`forward` computes one batch; keys and values go to `kv_cache` [layers, 2, blocks, kv_heads, block_size, head_dim].

    `get` is asked for tensors by the names of `config.names`, under the first of its prefixes.
    """

    def __init__(self, config: DecoderConfig, get: GetWeight, max_positions: int) -> None:
        self.config, self.static = config, True
        names = config.names
        whole = Weights(get, "", names.transposed)
        weights = whole.under(names.prefixes[0])
        self.embedding = Embedding(config, weights)
        ropes = list(dict.fromkeys(layer.attention.rope for layer in config.layers))
        self.layers = [
            build_layer(
                layer, config.hidden_size, weights.under(names.layer.format(index)), names,
                ropes.index(layer.attention.rope),
            )
            for index, layer in enumerate(config.layers)
        ]  # fmt: skip
        self.head = Head(config, weights, whole, self.embedding)
        device = self.embedding.weight.device
        self.tables = [
            tuple(table.to(device) for table in rotation_tables(rope, config.head_dim, max_positions)) for rope in ropes
        ]

    def forward(self, batch: Batch, kv_cache: Tensor) -> Tensor:
        """Logits [rows, vocab] in the model's dtype."""
        x, residual = self.hidden(batch, kv_cache)
        return self.head(x, residual, batch.logit_rows)

    def hidden(self, batch: Batch, kv_cache: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the last layer gives, [tokens, hidden] each: their sum, before the final norm."""
        step = Step(batch, [Rotation(cos, sin, batch.positions) for cos, sin in self.tables])
        x, residual = self.embedding(batch), None
        for layer, cache in zip(self.layers, kv_cache, strict=True):
            x, residual = layer(x, residual, step, cache)
        return x, residual
