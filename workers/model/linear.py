"""The one seam for weights: dense now; quantized weights, shards and adapters belong here and nowhere else."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

from kernels.activation import silu_mul
from kernels.matvec import matvec_triton

_packed_linear = torch.ops.mkldnn._linear_pointwise.default


class Linear:
    """y = x W^T + b. x: [tokens, in]; W: [out, in]; b: [out].

    On the CPU bf16 weights are kept in oneDNN's blocked layout: a plain product reorders them at every call (249
    against 168 us for one row of 3072 x 576 on two cores).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.bias = bias
        self.packed = weight.device.type == "cpu" and weight.dtype == torch.bfloat16
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight) if self.packed else weight

    def __call__(self, x: Tensor) -> Tensor:
        if self.packed:
            rows = x.shape[0]
            padded = _padded(rows)
            if padded > rows:
                x = pad(x, (0, 0, 0, padded - rows))
            out: Tensor = _packed_linear(x, self.weight, self.bias, "none", [], "")
            return out[:rows] if padded > rows else out
        if x.is_cuda and x.shape[0] == 1:
            return matvec_triton(x, self.weight, self.bias)
        return linear(x, self.weight, self.bias)

    def gated(self, x: Tensor) -> Tensor:
        """silu(gate) * up of a product that holds both, gate first: [tokens, out / 2]."""
        if x.is_cuda and x.shape[0] == 1 and self.bias is None:
            return matvec_triton(x, self.weight, gated=True)
        return silu_mul(self(x))


def _padded(rows: int) -> int:
    """At most an eighth more rows than given. oneDNN compiles and keeps a kernel for every count of rows that it meets:
    without rounding, mixed batches cost it a new one at nearly every step (0.1 MB a request)."""
    step = 1 << max(0, (rows - 1).bit_length() - 4)
    return -(-rows // step) * step
