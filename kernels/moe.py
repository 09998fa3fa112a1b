"""Mixture of experts (Shazeer et al. 2017, arXiv:1701.06538):

y_t = sum over the chosen experts e of weight_te * down_e (gate(gate_e x_t, up_e x_t))
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import linear

from kernels.moe_experts import Experts, gated_torch
from kernels.moe_gemm import experts_gemm_triton
from kernels.moe_matvec import experts_matvec_triton
from kernels.moe_router import MOST_TOKENS
from kernels.moe_routing import Routes

_FEW_PAIRS = 32
"""Pairs of token and expert that are nearly all of different experts: reading each one's weights apart costs no more."""


def use_buckets(x: Tensor, top_k: int) -> bool:
    """Whether routing is to fill buckets: in decode steps of more than a few tokens. x: [tokens, hidden]."""
    tokens = x.shape[0]
    return x.is_cuda and tokens <= MOST_TOKENS and tokens * top_k > _FEW_PAIRS


def mix_experts_triton(x: Tensor, routes: Routes, experts: Experts) -> Tensor:
    """As mix_experts; rows are contiguous."""
    few = routes.ids.numel() <= _FEW_PAIRS
    return experts_matvec_triton(x, routes, experts) if few else experts_gemm_triton(x, routes, experts)


def mix_experts_torch(x: Tensor, routes: Routes, experts: Experts) -> Tensor:
    """As mix_experts. One expert after the other."""
    top_k, flat = routes.ids.shape[1], routes.ids.flatten()
    by_pair = x.new_empty(len(flat), experts.down.shape[1])
    rows_of = flat.argsort(stable=True).split(flat.bincount(minlength=experts.count).tolist())
    for expert, pairs in enumerate(rows_of):
        if len(pairs):
            by_pair[pairs] = _one_expert(x[pairs // top_k], experts, expert)
    weighted = by_pair.view(*routes.ids.shape, -1).float() * routes.weights[:, :, None]
    return weighted.sum(1).to(x.dtype)


def _one_expert(x: Tensor, experts: Experts, expert: int) -> Tensor:
    gate_up_bias, down_bias = (
        None if bias is None else bias[expert] for bias in (experts.gate_up_bias, experts.down_bias)
    )
    inner = gated_torch(linear(x, experts.gate_up[expert], gate_up_bias), experts)
    return linear(inner, experts.down[expert], down_bias)


def mix_experts(x: Tensor, routes: Routes, experts: Experts) -> Tensor:
    """x: [tokens, hidden]; returns the same shape."""
    return mix_experts_triton(x, routes, experts) if x.is_cuda else mix_experts_torch(x, routes, experts)
