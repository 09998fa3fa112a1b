"""Which decoding requests share leading blocks, so that attention can read those once.

Requests that share a prefix share its blocks: their block tables begin with the same ids. Ordering a batch by block table
puts sharers beside each other; each tile of neighbours then has a number of leading blocks in common.
"""

from __future__ import annotations

from workers.engine.request import Request

MIN_SHARED_BLOCKS = 2
"""Fewer saved reads than this do not pay for the extra kernel and the merge."""


def order_by_prefix(requests: list[Request], tile: int) -> tuple[list[Request], tuple[int, ...]]:
    """The requests with sharers side by side, and the common leading blocks of each tile of `tile` requests; an empty
    tuple, and the order as it was, where sharing would not pay."""
    firsts = [request.tables[0][0] for request in requests]
    if len(requests) < 4 or len(set(firsts)) > len(firsts) // 2:
        return requests, ()
    ordered = sorted(requests, key=lambda request: request.tables[0])
    shared = tuple(_common(ordered[start : start + tile]) for start in range(0, len(ordered), tile))
    if max(shared) < MIN_SHARED_BLOCKS:
        return requests, ()
    return ordered, shared


def _common(requests: list[Request]) -> int:
    """Leading blocks that sorted requests have in common: those of the first and the last. A tile of one shares nothing."""
    if len(requests) < 2:
        return 0
    first, last = requests[0].tables[0], requests[-1].tables[0]
    length = min(len(first), len(last))
    return next((index for index in range(length) if first[index] != last[index]), length)
