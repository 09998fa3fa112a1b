"""A model's answers, computed with the paged cache in parts, must be those of transformers' own attention.

What the probe cannot see (a mask built inside the model, biases by distance, states kept between tokens, positions counted by
the model itself) shows here, before the first request.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from kernels.decode_attention import DecodeContext
from kernels.prefill_attention import PrefillContext, Span, plan_tiles
from kernels.rope import CacheSlots
from workers.model.backend.model import TransformersModel
from workers.model.backend.probe import CannotServe, CodeFails
from workers.model.batch import Batch

_TOKENS, _FIRST = 24, 14
_BLOCK_SIZE = 16
_BLOCKS = -(-_TOKENS // _BLOCK_SIZE)
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.1}


@torch.inference_mode()
def check(model: TransformersModel) -> None:
    """Two chunks and one token at a time against all at once. Raises CannotServe where they differ."""
    parameter = next(model.model.parameters())
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, model.config.vocab_size, (_TOKENS,), generator=generator).to(parameter.device)
    cache = _cache(model, parameter)
    bounds = [(0, _FIRST), (_FIRST, _TOKENS - 2), (_TOKENS - 2, _TOKENS - 1), (_TOKENS - 1, _TOKENS)]
    try:
        want = model.own_logits(tokens).float()
        got = torch.cat([model.forward(_batch(tokens, *bound, cache), cache) for bound in bounds]).float()
    except Exception as error:  # the model's own code
        raise CodeFails(f"its code fails: {type(error).__name__}: {error}") from error
    difference = float((got - want).norm() / want.norm())
    if not difference <= _TOLERANCE[parameter.dtype]:
        raise CannotServe(
            f"with the paged cache its logits are not those of transformers (they differ by {difference:.1g})"
        )


def _cache(model: TransformersModel, parameter: Tensor) -> Tensor:
    """Blocks for every group of layers, behind the null block."""
    config = model.config
    blocks = 1 + len(config.kv_layout.windows) * _BLOCKS
    shape = (config.kv_layout.depth, 2, blocks, config.num_kv_heads, _BLOCK_SIZE, config.head_dim)
    return parameter.new_zeros(shape)


def _batch(tokens: Tensor, start: int, end: int, cache: Tensor) -> Batch:
    """Tokens [start, end) of the one sequence: a chunk, or a decode step where it is one token."""
    groups = [_group(tokens, start, end, cache, first) for first in range(1, cache.shape[2], _BLOCKS)]
    return replace(groups[0], others=groups[1:])


def _group(tokens: Tensor, start: int, end: int, cache: Tensor, first_block: int) -> Batch:
    device, count = tokens.device, end - start
    blocks, kv_heads, block_size = cache.shape[2:5]
    tables = torch.arange(first_block, first_block + _BLOCKS, dtype=torch.int32, device=device)[None]
    positions = torch.arange(start, end, device=device)
    decode = prefill = None
    if count == 1:
        first, lengths = positions - start, torch.full((1,), end, device=device)
        decode = DecodeContext(first, tables, lengths, _TOKENS, kv_heads, block_size)
    else:
        spans = [Span(0, 0, count, end)]
        tiles = torch.from_numpy(plan_tiles(spans)).to(device) if device.type == "cuda" else None
        prefill = PrefillContext(spans, tables, tiles)
    slots = CacheSlots(positions + first_block * block_size, blocks, kv_heads, block_size)
    return Batch(tokens[start:end], positions, slots, count if count == 1 else 0, decode, prefill, None)
