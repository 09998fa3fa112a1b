"""Rotary position embedding with optional norms of q and k, and the write of k and v into the paged cache, in one pass.

Rotate-half layout: (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin), x1 and x2 the halves of a head (Su et al. 2021,
arXiv:2104.09864). The cache of a layer is [2, blocks, kv_heads, block_size, head_dim], keys first.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.norm import rms_norm


@dataclass
class Rotation:
    """The angles of a step's tokens. cos, sin: [max positions, head_dim / 2] fp32; positions: [tokens] int64."""

    cos: Tensor
    sin: Tensor
    positions: Tensor

    @cached_property
    def rows(self) -> tuple[Tensor, Tensor]:
        """Factors of x and of x with its halves swapped: [tokens, 1, head_dim] fp32 each."""
        cos, sin = self.cos[self.positions], self.sin[self.positions]
        return torch.cat((cos, cos), -1).unsqueeze(1), torch.cat((-sin, sin), -1).unsqueeze(1)


@dataclass
class CacheSlots:
    """Where the tokens of a step go in the cache. slots: [tokens] int64, block * block_size + offset."""

    slots: Tensor
    blocks: int
    kv_heads: int
    block_size: int

    @cached_property
    def rows(self) -> Tensor:
        """Rows of the cache viewed as [2 * blocks * kv_heads * block_size, head_dim], by token: the keys of its heads, then
        the values."""
        heads = torch.arange(self.kv_heads, device=self.slots.device)
        heads = torch.cat((heads, heads + self.blocks * self.kv_heads))
        blocks = (self.slots // self.block_size)[:, None] * self.kv_heads + heads
        return (blocks * self.block_size + (self.slots % self.block_size)[:, None]).flatten()


@triton.jit
def _rope_and_cache_kernel(
    qkv, q_out, cache, slots, positions, cos, sin, q_weight, k_weight, eps, value_offset,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    NORM: tl.constexpr, HALF: tl.constexpr, ROWS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, HALF)
    inside = (head < HEADS + 2 * KV_HEADS)[:, None] & (column < DIM // 2)[None, :]
    is_query = head < HEADS
    rotates = (head < HEADS + KV_HEADS)[:, None]
    source = qkv + token * ((HEADS + 2 * KV_HEADS) * DIM) + head[:, None] * DIM + column[None, :]
    first = tl.load(source, mask=inside, other=0.0)
    second = tl.load(source + DIM // 2, mask=inside, other=0.0)
    kind = first.dtype
    x1, x2 = first.to(tl.float32), second.to(tl.float32)
    if NORM:
        scale = tl.rsqrt((tl.sum(x1 * x1, 1) + tl.sum(x2 * x2, 1)) / DIM + eps)[:, None]
        half = column < DIM // 2
        q1 = tl.load(q_weight + column, mask=half, other=0.0).to(tl.float32)[None, :]
        q2 = tl.load(q_weight + DIM // 2 + column, mask=half, other=0.0).to(tl.float32)[None, :]
        k1 = tl.load(k_weight + column, mask=half, other=0.0).to(tl.float32)[None, :]
        k2 = tl.load(k_weight + DIM // 2 + column, mask=half, other=0.0).to(tl.float32)[None, :]
        x1 = (x1 * scale).to(kind).to(tl.float32) * tl.where(is_query[:, None], q1, k1)
        x2 = (x2 * scale).to(kind).to(tl.float32) * tl.where(is_query[:, None], q2, k2)
        x1, x2 = x1.to(kind).to(tl.float32), x2.to(kind).to(tl.float32)
    angle = tl.load(positions + token) * (DIM // 2) + column
    c = tl.load(cos + angle, mask=column < DIM // 2, other=0.0)[None, :]
    s = tl.load(sin + angle, mask=column < DIM // 2, other=0.0)[None, :]
    first = tl.where(rotates, (x1 * c - x2 * s).to(kind), first)
    second = tl.where(rotates, (x2 * c + x1 * s).to(kind), second)
    q_target = q_out + token * (HEADS * DIM) + head[:, None] * DIM + column[None, :]
    tl.store(q_target, first, mask=inside & is_query[:, None])
    tl.store(q_target + DIM // 2, second, mask=inside & is_query[:, None])
    slot = tl.load(slots + token)
    kv_head = (head - HEADS) % KV_HEADS
    row = ((slot // BLOCK_SIZE) * KV_HEADS + kv_head) * BLOCK_SIZE + slot % BLOCK_SIZE
    offset = row * DIM + tl.where(head < HEADS + KV_HEADS, 0, value_offset)
    kv_target = cache + offset[:, None] + column[None, :]
    tl.store(kv_target, first, mask=inside & (head >= HEADS)[:, None])
    tl.store(kv_target + DIM // 2, second, mask=inside & (head >= HEADS)[:, None])


def rope_and_cache_triton(
    qkv: Tensor,
    rotation: Rotation,
    kv_cache: Tensor,
    slots: CacheSlots,
    heads: int,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """As rope_and_cache."""
    _, _, kv_heads, block_size, dim = kv_cache.shape
    q = qkv.new_empty(qkv.shape[0], heads, dim)
    rows = 2 if qkv.shape[0] <= 16 else 8 if qkv.shape[0] < 1024 else 16
    grid = (qkv.shape[0], triton.cdiv(heads + 2 * kv_heads, rows))
    q_weight, k_weight = (qkv, qkv) if q_norm is None or k_norm is None else (q_norm, k_norm)
    _rope_and_cache_kernel[grid](
        qkv, q, kv_cache, slots.slots, rotation.positions, rotation.cos, rotation.sin, q_weight, k_weight, eps,
        kv_cache.stride(0),
        heads, kv_heads, dim, block_size, q_norm is not None, triton.next_power_of_2(dim // 2), rows, qkv.is_cuda,
        num_warps=2, launch_pdl=qkv.is_cuda,
    )  # fmt: skip
    return q


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """x: [tokens, heads, head_dim]; returns it rotated, in fp32."""
    cos, sin = rotation.rows
    wide = x.float()
    return (wide * cos).addcmul_(wide.roll(x.shape[-1] // 2, -1), sin)


def rope_and_cache_torch(
    qkv: Tensor,
    rotation: Rotation,
    kv_cache: Tensor,
    slots: CacheSlots,
    heads: int,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """As rope_and_cache."""
    kv_heads, dim = kv_cache.shape[2], kv_cache.shape[4]
    parts = qkv.view(qkv.shape[0], -1, dim)
    rotating = parts[:, : heads + kv_heads]
    if q_norm is not None and k_norm is not None:
        weights = torch.cat((q_norm.expand(heads, dim), k_norm.expand(kv_heads, dim)))
        rotating = rms_norm(rotating, weights, eps)
    parts[:, : heads + kv_heads] = rotate(rotating, rotation)
    kv_cache.view(-1, dim).index_copy_(0, slots.rows, parts[:, heads:].reshape(-1, dim))
    return parts[:, :heads]


def rope_and_cache(
    qkv: Tensor,
    rotation: Rotation,
    kv_cache: Tensor,
    slots: CacheSlots,
    heads: int,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """Returns rotated q [tokens, heads, head_dim]; writes rotated k, and v, to the cache. `qkv` may be overwritten.

    qkv: [tokens, (heads + 2 kv_heads) * head_dim]; q_norm, k_norm: [head_dim], RMSNorm weights.
    """
    run = rope_and_cache_triton if qkv.is_cuda else rope_and_cache_torch
    return run(qkv, rotation, kv_cache, slots, heads, q_norm, k_norm, eps)
