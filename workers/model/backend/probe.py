"""What a model's attention looks like, seen in one forward pass of a few tokens; nothing of it is computed.

Masks are asked for in that pass alone, through transformers' mask interface: what a layer's mask lets a query see must be
what our kernels can do, all keys before it or a sliding window.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from kernels.attention import AttentionOptions
from workers.model.backend.attention import NAME, AttentionCall, set_handler

PROBE = "headrace_probe"
"""Of our attention with masks, which the probe looks at."""
NO_INTERFACE = "its attention does not go through transformers' attention interface"
TOKENS = 4
_REACH = 1 << 17
"""Positions at which masks are looked at: beyond the windows and chunks of all models."""


class CannotServe(ValueError):
    """The model does what the backend cannot; the message says what."""


class CodeFails(CannotServe):
    """The model's code raises something."""


def probe_mask(
    *, batch_size: int, q_length: int, kv_length: int, mask_function: Callable[..., Any], device: Any = "cpu", **_: Any
) -> Tensor:
    """A mask whose every value is the width of its window, 0 for none."""
    if q_length != kv_length:
        raise CannotServe("a layer attends to other states than the decoder's own (cross attention)")
    window = _window(mask_function)
    return torch.full((batch_size, 1, q_length, kv_length), float(window), device=device)


def _window(mask_function: Callable[..., Any]) -> int:
    """Keys that a query sees where they are the last ones and end with its own; 0 is all. Raises CannotServe."""
    found = {_seen(mask_function, query) for query in (_REACH - 1, _REACH * 2 // 3)}
    if found == {_REACH, _REACH * 2 // 3 + 1}:
        return 0
    if len(found) == 1:
        return found.pop()
    raise CannotServe("its attention mask is neither causal nor a sliding window")


def _seen(mask_function: Callable[..., Any], query: int) -> int:
    keys = torch.arange(_REACH)
    zero = torch.zeros((), dtype=torch.int64)
    try:
        seen = torch.as_tensor(mask_function(zero, zero, torch.tensor(query), keys)).expand(_REACH)
    except IndexError:
        raise CannotServe("its attention mask depends on the tokens") from None
    count = int(seen.sum())
    if not count or not bool(seen[query + 1 - count : query + 1].all()):
        raise CannotServe("its attention mask is neither causal nor a sliding window")
    return count


class Probe:
    """The handler that notes each call, and answers with zeros."""

    def __init__(self) -> None:
        self.calls: list[AttentionCall] = []

    def __call__(
        self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, given: dict[str, Any]
    ) -> Tensor:
        self.calls.append(_call(module, q, k, v, mask, given))
        return q.new_zeros(q.shape[0], q.shape[2], q.shape[1], v.shape[-1])


def _call(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, given: dict[str, Any]
) -> AttentionCall:
    if q.shape[2] != k.shape[2] or q.shape[0] != 1:
        raise CannotServe("a layer attends to other states than the decoder's own (cross attention)")
    if q.shape[1] % k.shape[1] or k.shape[1] != v.shape[1]:
        raise CannotServe(f"{q.shape[1]} query heads share {k.shape[1]} key heads and {v.shape[1]} value heads")
    if given.get("position_bias") is not None:
        raise CannotServe("its attention takes a bias by position, which the kernels do not have")
    window = given.get("sliding_window") or 0
    if mask is not None:
        window = float(mask.flatten()[0])
        if not 0 <= window <= _REACH or bool((mask != window).any()):
            raise CannotServe("it changes its attention mask by what the tokens are")
    scale, sinks = given.get("scaling"), given.get("s_aux")
    options = AttentionOptions(
        scale=q.shape[-1] ** -0.5 if scale is None else float(scale),
        window=int(window),
        soft_cap=float(given.get("softcap") or 0.0),
        sinks=None if sinks is None else sinks.detach().flatten().float(),
    )
    return AttentionCall(q.shape[1], k.shape[1], q.shape[-1], v.shape[-1], options)


@torch.inference_mode()
def probe(model: Any, forward: Callable[[Tensor, Tensor], Any]) -> list[AttentionCall]:
    """The calls of attention of one `forward(input_ids, position_ids)`, both [1, tokens]. Raises CannotServe."""
    noted = Probe()
    set_handler(model, noted)
    device = next(model.parameters()).device
    # without weights masks cannot be made: windows are then what a layer says of itself
    model.set_attn_implementation(NAME if device.type == "meta" else PROBE)
    positions = torch.arange(TOKENS, device=device)[None]
    try:
        forward(positions + 3, positions)
    except CannotServe:
        raise
    except Exception as error:  # the model's own code, of which nothing is known yet
        raise CodeFails(f"its code fails: {type(error).__name__}: {error}") from error
    if not noted.calls:
        raise CannotServe(NO_INTERFACE)
    return noted.calls
