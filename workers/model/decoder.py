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
    """`forward` computes one batch; keys and values go to `kv_cache`, [depth, 2, blocks, kv_heads, block_size,
    head_dim], depth being the layers of a group.

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
        self.places = config.kv_layout.places
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
        rotations = [Rotation(cos, sin, batch.positions) for cos, sin in self.tables]
        steps = [Step(batch, rotations), *(Step(other, rotations) for other in batch.others)]
        caches = kv_cache.unbind()
        x, residual = self.embedding(batch), None
        for layer, (group, place) in zip(self.layers, self.places, strict=True):
            x, residual = layer(x, residual, steps[group], caches[place])
        return x, residual
