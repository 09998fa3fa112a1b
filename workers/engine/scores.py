"""Log probabilities of tokens that are given, not sampled: those of a prompt."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from schemas.messages import MAX_LOGPROBS
from workers.protocol import TokenLogprobs


@dataclass(frozen=True, slots=True)
class Scores:
    """Of the given tokens: logprobs and ranks [rows], the best alternatives [rows, MAX_LOGPROBS]."""

    logprobs: Tensor
    ranks: Tensor
    top_ids: Tensor
    top_logprobs: Tensor

    def rows(self, start: int, stop: int, wanted: int) -> list[TokenLogprobs]:
        """Rows start..stop-1 with `wanted` alternatives each."""
        part = slice(start, stop)
        columns = (self.logprobs[part], self.top_ids[part, :wanted], self.top_logprobs[part, :wanted], self.ranks[part])
        return [TokenLogprobs(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def score(logits: Tensor, targets: Tensor) -> Scores:
    """logits: [rows, vocab] of the model's own distribution; targets: [rows] token ids."""
    logprobs = logits.float().log_softmax(-1)
    given = logprobs.gather(-1, targets[:, None])
    top = logprobs.topk(min(MAX_LOGPROBS, logits.shape[-1]), dim=-1)
    return Scores(given[:, 0], (logprobs > given).sum(-1) + 1, top.indices, top.values)
