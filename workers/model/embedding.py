"""The two ends of the decoder: tokens in, logits out."""

from __future__ import annotations

import torch
from torch import Tensor

from workers.model.batch import Batch
from workers.model.config import DecoderConfig
from workers.model.linear import Linear
from workers.model.weights import Weights


class Embedding:
    """Token embeddings, with what a family adds: a scale, learned positions, a norm, a projection to the layers' width."""

    def __init__(self, config: DecoderConfig, weights: Weights) -> None:
        names, size, hidden = config.names, config.embedding_size or config.hidden_size, config.hidden_size
        self.weight = weights.tensor(f"{names.embedding}.weight", (config.vocab_size, size))
        self.positions = (
            weights.tensor(f"{names.positions}.weight", (config.positions, hidden)) if config.positions else None
        )
        self.project = Linear(weights.tensor(f"{names.project_in}.weight", (hidden, size))) if size != hidden else None
        self.norm = weights.norm(names.embedding_norm, config.embedding_norm, hidden)
        self.plain = config.embedding_norm is None and not config.positions and size == hidden
        self.scale = float(torch.tensor(config.embedding_scale, dtype=self.weight.dtype))  # as the model's dtype has it
        self.offset = config.position_offset

    def __call__(self, batch: Batch) -> Tensor:
        """[tokens, hidden], nobody else's memory."""
        x = self.weight[batch.tokens]
        if self.scale != 1.0:
            x = x * self.scale
        return x if self.plain else self._extended(x, batch.positions)

    def _extended(self, x: Tensor, positions: Tensor) -> Tensor:
        if self.project is not None:
            x = self.project(x)
        if self.positions is not None:
            x = x + self.positions[positions + self.offset]
        return self.norm(x)


class Head:
    """From the last layer to logits."""

    def __init__(self, config: DecoderConfig, weights: Weights, whole: Weights, embedding: Embedding) -> None:
        """`whole`: weights by full names, which a head of its own has."""
        names, hidden = config.names, config.hidden_size
        size = config.embedding_size or hidden
        self.norm = weights.norm(names.final_norm, config.final_norm, hidden)
        self.project = Linear(weights.tensor(f"{names.project_out}.weight", (size, hidden))) if size != hidden else None
        self.width = size
        self.linear = None if config.headless else self._linear(config, whole, embedding)
        self.scale, self.cap = config.logit_scale, config.logit_cap

    def __call__(self, x: Tensor, residual: Tensor | None, rows: Tensor | None) -> Tensor:
        """x, residual: [tokens, hidden]; returns logits [rows, vocab] of `rows`, or of all."""
        assert self.linear is not None
        logits = self.linear(self.states(x, residual, rows))
        if self.scale != 1.0:
            logits = logits * self.scale
        return (logits / self.cap).tanh() * self.cap if self.cap else logits

    def states(self, x: Tensor, residual: Tensor | None, rows: Tensor | None) -> Tensor:
        """Hidden states [rows, width] behind the final norm."""
        if rows is not None:
            x, residual = x[rows], None if residual is None else residual[rows]
        x, _ = self.norm.add(x, residual)
        return x if self.project is None else self.project(x)

    def _linear(self, config: DecoderConfig, whole: Weights, embedding: Embedding) -> Linear:
        name, shape = config.names.heads[0], (config.vocab_size, self.width)
        weight = embedding.weight if config.tie_embeddings else whole.tensor(f"{name}.weight", shape)
        return Linear(weight, whole.tensor(f"{name}.bias", (config.vocab_size,)) if config.head_bias else None)
