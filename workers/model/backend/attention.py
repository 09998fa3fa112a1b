"""transformers' attention interface, answered by attention over the paged cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import pad

from kernels.attention import AttentionOptions
from kernels.cache_write import write_cache
from kernels.decode_attention import sequences_per_tile
from workers.model.attention import paged_attention
from workers.model.batch import Batch

NAME = "headrace"
"""Of our attention, as transformers' models know it: without masks, which our kernels do without."""
_HANDLER = "headrace_attention"

Handler = Callable[..., Tensor]
"""handler(module, q, k, v, mask, given): one call of attention. q, k, v: [1, heads, tokens, dim], returns [1, tokens, heads,
dim]. `given`: keyword arguments that the model passed."""


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None, **given: Any
) -> tuple[Tensor, None]:
    """What a model calls: it goes to the handler of the model that `module` is a part of."""
    handler: Handler = getattr(module, _HANDLER)
    return handler(module, query, key, value, attention_mask, given), None


def set_handler(model: nn.Module, handler: Handler) -> None:
    for module in model.modules():
        setattr(module, _HANDLER, handler)


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """One of the calls of attention in a forward pass: its shape and its options.

    head_dim: of queries and keys; value_dim: of values. Both are padded to `width` in the cache.
    """

    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    options: AttentionOptions

    @property
    def width(self) -> int:
        """A multiple of 8: the GPU copies blocks in units of 16 bytes."""
        return -(-max(self.head_dim, self.value_dim) // 8) * 8


@dataclass(slots=True)
class _Pass:
    """One forward pass under way. index: calls of attention so far; groups: the batch for each group of layers."""

    groups: list[Batch]
    kv_cache: Tensor
    index: int = 0
    by_heads: dict[tuple[int, int, int], Batch] = field(default_factory=dict)


class PagedAttention:
    """The handler of a model that is served. `run` is one forward pass, whose n-th call of attention keeps its keys and
    values where the layout has the n-th layer, whichever module makes it. places: group and place of each, as in KVLayout."""

    def __init__(self, calls: list[AttentionCall], largest: AttentionCall, places: tuple[tuple[int, int], ...]) -> None:
        self._calls, self._places = calls, places
        self._tile = sequences_per_tile(largest.heads, largest.kv_heads)
        self._pass: _Pass | None = None

    def run(self, forward: Callable[[], Any], batch: Batch, kv_cache: Tensor) -> Any:
        current = self._pass = _Pass([batch, *batch.others], kv_cache)
        try:
            result = forward()
        finally:
            self._pass = None
        assert current.index == len(self._calls), "the model called attention for fewer layers than at its start"
        return result

    def __call__(
        self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, given: dict[str, Any]
    ) -> Tensor:
        current = self._pass
        assert current is not None
        call, (group, place) = self._calls[current.index], self._places[current.index]
        current.index += 1
        queries, keys, values = (_packed(x, call.width) for x in (q, k, v))
        cache = _view(current.kv_cache[place], call)
        batch = self._batch(current, group, call)
        write_cache(keys, values, cache, batch.cache_slots)
        out = paged_attention(queries.contiguous(), cache, batch, call.options)
        return (out if call.value_dim == call.width else out[..., : call.value_dim])[None]

    def _batch(self, current: _Pass, group: int, call: AttentionCall) -> Batch:
        """The batch as layers of these heads see it."""
        key = group, call.heads, call.kv_heads
        if key not in current.by_heads:
            current.by_heads[key] = _with_heads(current.groups[group], call, self._tile)
        return current.by_heads[key]


def _packed(x: Tensor, width: int) -> Tensor:
    """[1, heads, tokens, dim] as [tokens, heads, width], without a copy where there is nothing to pad."""
    x = x[0].transpose(0, 1)
    if x.shape[-1] < width:
        return pad(x, (0, width - x.shape[-1]))
    return x if x.stride(-1) == 1 else x.contiguous()


def _view(cache: Tensor, call: AttentionCall) -> Tensor:
    """A layer of the cache as this call sees it: the cache is as wide as the layer that keeps the most."""
    _, blocks, kv_heads, block_size, dim = cache.shape
    if (kv_heads, dim) == (call.kv_heads, call.width):
        return cache
    shape = (2, blocks, call.kv_heads, block_size, call.width)
    return cache.view(-1)[: 2 * blocks * call.kv_heads * block_size * call.width].view(shape)


def _with_heads(batch: Batch, call: AttentionCall, tile: int) -> Batch:
    decode = batch.decode
    if decode is not None:
        same = sequences_per_tile(call.heads, call.kv_heads) == tile
        decode = replace(decode, kv_heads=call.kv_heads, shared_blocks=decode.shared_blocks if same else None)
    return replace(batch, cache_slots=replace(batch.cache_slots, kv_heads=call.kv_heads), decode=decode)
