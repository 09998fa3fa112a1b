"""One vector of each prompt that a decoder has read, in chunks or at once."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from workers.engine.plan import PrefillRow
from workers.engine.upload import upload
from workers.model.batch import Batch
from workers.model.decoder import Decoder
from workers.model.pooling import Pooling
from workers.model.projection import Projection


class Pooler:
    """Keeps the sum of what has been read, for each slot, where the mean is wanted. A prompt that is read anew, after a
    preemption, begins with position 0 again."""

    def __init__(self, pooling: Pooling, slots: int, model: Decoder) -> None:
        if pooling.method == "cls":
            raise ValueError("pooling by the first token needs attention that looks both ways, and this is a decoder")
        self.pooling, self._model = pooling, model
        self._device = model.embedding.weight.device
        self._projection = Projection(pooling.dense, model.head.width, self._device)
        self.width = self._projection.width
        self._sums = torch.zeros(slots, model.head.width, device=self._device) if pooling.method == "mean" else None

    def __call__(self, batch: Batch, kv_cache: Tensor, rows: list[PrefillRow]) -> Tensor | None:
        """Computes the batch of `rows`. Returns fp32 [finished rows, width], None where no row is the last of its prompt."""
        pooled = self._pooled(batch, kv_cache, rows)
        return None if pooled is None else self._projection(pooled)

    def _pooled(self, batch: Batch, kv_cache: Tensor, rows: list[PrefillRow]) -> Tensor | None:
        x, residual = self._model.hidden(batch, kv_cache)
        if self._sums is None:
            assert batch.logit_rows is not None
            return self._model.head.states(x, residual, batch.logit_rows).float() if len(batch.logit_rows) else None
        return self._means(self._sums, self._model.head.states(x, residual, None).float(), rows)

    def _means(self, sums: Tensor, states: Tensor, rows: list[PrefillRow]) -> Tensor | None:
        if begun := [row.slot for row in rows if row.start == 0]:
            sums[self._tensor(begun)] = 0.0
        sums.index_add_(
            0, self._tensor(np.repeat([row.slot for row in rows], [len(row.tokens) for row in rows])), states
        )
        ended = [(row.slot, row.start + len(row.tokens)) for row in rows if row.samples]
        if not ended:
            return None
        slots, counts = self._tensor([slot for slot, _ in ended]), self._tensor([count for _, count in ended])
        return sums[slots] / counts[:, None]

    def _tensor(self, values: list[int] | np.ndarray) -> Tensor:
        return upload(np.asarray(values, dtype=np.int64), self._device)
