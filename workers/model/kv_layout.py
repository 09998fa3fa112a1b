"""Which layers keep their keys and values in the same blocks.

Layers that see everything keep a request's blocks until its end; those with a sliding window have no use for what has left
it. So a model of both has groups of layers, each with block tables of its own over one pool: a block holds the keys and
values of one group, which has as many layers as any other. A model of one kind is one group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MOST_GROUPS = 8
"""About; more would be more tables to keep for a request. Rather is a row of some blocks left empty."""


@dataclass(frozen=True, slots=True)
class KVLayout:
    """windows: of each group, 0 for all keys, those first. depth: layers that a block holds. places: of each layer, its group
    and its place in the group's blocks."""

    windows: tuple[int, ...]
    depth: int
    places: tuple[tuple[int, int], ...]


def kv_layout(windows: Sequence[int]) -> KVLayout:
    """The groups of layers with these windows, 0 being all keys."""
    kinds = {kind: [layer for layer, window in enumerate(windows) if window == kind] for kind in sorted(set(windows))}
    depth = len(windows)
    if len(kinds) > 1:
        depth = max(min(map(len, kinds.values())), -(-len(windows) // MOST_GROUPS))
    groups: list[int] = []
    places = [(0, 0)] * len(windows)
    for kind, layers in kinds.items():
        for index, layer in enumerate(layers):
            places[layer] = (len(groups) + index // depth, index % depth)
        groups += [kind] * -(-len(layers) // depth)
    return KVLayout(tuple(groups), depth, tuple(places))
