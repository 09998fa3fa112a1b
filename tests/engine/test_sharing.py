"""Ordering a batch so that sharers stand together."""

from __future__ import annotations

from schemas.messages import SamplingParams
from workers.engine.request import Request
from workers.engine.sharing import order_by_prefix


def request(name: str, blocks: list[int]) -> Request:
    return Request(name, [1], SamplingParams(), 1, 0, tables=[blocks])


def test_sharers_come_together_and_tiles_know_what_they_share() -> None:
    tables = [[9, 8, 7, 1], [5, 4, 2], [9, 8, 7, 3], [5, 4, 6], [9, 8, 7], [5, 4, 11]]
    ordered, shared = order_by_prefix([request(str(i), blocks) for i, blocks in enumerate(tables)], 3)
    assert [r.tables[0][0] for r in ordered] == [5, 5, 5, 9, 9, 9]
    assert shared == (2, 3)


def test_a_tile_with_a_stranger_shares_nothing() -> None:
    tables = [[1, 2, 3], [1, 2, 4], [1, 2, 5], [8, 9]]
    assert order_by_prefix([request(str(i), blocks) for i, blocks in enumerate(tables)], 4)[1] == ()


def test_strangers_keep_their_order() -> None:
    requests = [request(str(i), [20 - i, 1]) for i in range(8)]
    assert order_by_prefix(requests, 4) == (requests, ())
