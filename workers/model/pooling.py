"""How a model's token states become one vector: what its files say, and the last step, which is on the host."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from schemas.messages import EmbeddingParams

Method = Literal["mean", "last", "cls"]


@dataclass(frozen=True, slots=True)
class Pooling:
    """mean: of all tokens' states; last, cls: the state of the last, the first token. `normalize`: to length 1.
    `max_length`: tokens that the model was made for, where its files say that. `dense`: folders of the products that come
    behind the pooling."""

    method: Method
    normalize: bool
    max_length: int | None = None
    dense: tuple[Path, ...] = ()


def finished(state: np.ndarray[Any, Any], wanted: EmbeddingParams, pooling: Pooling) -> bytes:
    """The vector as asked for, of the pooled `state` [hidden]: little-endian float32."""
    kept = state[: wanted.dimensions].astype(np.float64)
    normalize = wanted.normalize
    if normalize is None:
        normalize = pooling.normalize or wanted.dimensions is not None
    if normalize:
        kept /= max(float(np.linalg.norm(kept)), 1e-12)
    return kept.astype("<f4").tobytes()
