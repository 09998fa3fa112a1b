"""Which blocks hold a request's keys and values: a block table for each group of the model's layers, over one pool.

Every group has its own blocks for the same tokens. One whose layers have a sliding window gives back, as the request goes
on, those that lie wholly before it; their places in the table keep 0. Nobody looks there: attention starts at the window.
Blocks given back keep their names until they are taken again, so a prefix is found where each group has what the next
token needs to see: all blocks, or the last ones.
"""

from __future__ import annotations

from itertools import compress

from workers.engine.block_pool import BlockPool, block_hash, root_hash
from workers.engine.plan import BlockUpdate
from workers.engine.request import Request

Tables = list[list[int]]
"""Block ids by group and index; 0 where there is no block any more."""


class BlockTables:
    """Takes blocks from the pool for requests, and gives them back. `windows`: of each group, 0 for all keys."""

    def __init__(self, pool: BlockPool, block_size: int, windows: tuple[int, ...] = (0,)) -> None:
        self.pool, self.block_size, self.windows = pool, block_size, windows
        assert list(windows[: windows.count(0)]) == [0] * windows.count(0), "those that see all keys come first"
        self._windowed = [group for group, window in enumerate(windows) if window]
        self._full = [group for group, window in enumerate(windows) if not window]

    def blocks_for(self, tokens: int) -> int:
        """Blocks of a group that hold `tokens`."""
        return -(-tokens // self.block_size)

    def most_held(self, tokens: int, chunk: int) -> int:
        """The most blocks that a request of `tokens` holds, in all groups, computed at most `chunk` tokens a step."""
        whole = self.blocks_for(tokens)
        spans = [whole if not window else 1 + self.blocks_for(window + chunk - 2) for window in self.windows]
        return sum(min(whole, span) for span in spans)

    def longest(self, limit: int, chunk: int) -> int:
        """Tokens, up to `limit`, that the pool can hold of one request."""
        for blocks in range(self.blocks_for(limit), 0, -1):
            if self.most_held(blocks * self.block_size, chunk) < self.pool.num_blocks:
                return min(limit, blocks * self.block_size)
        return 0

    def cached_prefix(self, request: Request, limit: int) -> Tables:
        """What holds the longest cached prefix, of up to `limit` blocks. The blocks are not yet referenced."""
        self._extend_hashes(request, limit)
        hashes = request.block_hashes[:limit]
        tables = [self.pool.lookup(self._names(hashes, group)) for group in self._full]
        length = min(map(len, tables), default=limit)
        found = [(group, list(map(self.pool.find, self._names(hashes[:length], group)))) for group in self._windowed]
        length = self._longest_seen(found, length)
        tables = [table[:length] for table in tables]
        for group, table in found:
            kept = self._in_window(table, group, length)
            tables.append([0] * (length - len(kept)) + kept)
        return tables

    def _longest_seen(self, found: list[tuple[int, list[int]]], length: int) -> int:
        """The longest prefix, of up to `length` blocks, after which each windowed group has all that is in its window."""
        while length and not all(all(self._in_window(table, group, length)) for group, table in found):
            length -= 1
        return length

    def _in_window(self, table: list[int], group: int, length: int) -> list[int]:
        """Of the first `length` blocks, those of which the next token sees anything."""
        return table[self._first_seen(length * self.block_size, group) : length]

    def _first_seen(self, position: int, group: int) -> int:
        """Index of the first block of which a token at `position` sees anything."""
        return max(0, position - self.windows[group] + 1) // self.block_size

    def share(self, request: Request, tables: Tables) -> None:
        """Give a request the blocks that `cached_prefix` found."""
        self.pool.share([block for table in tables for block in table if block])
        request.tables = [list(table) for table in tables]
        request.num_blocks = request.num_registered = len(tables[0])
        request.num_dropped = [next((i for i, block in enumerate(table) if block), len(table)) for table in tables]

    def num_unreferenced(self, tables: Tables) -> int:
        """How many of these blocks would leave the free list if shared."""
        return sum(self.pool.num_unreferenced([block for block in table if block]) for table in tables)

    def extend(self, request: Request, tokens: int) -> list[BlockUpdate]:
        """Take what a request lacks to hold `tokens`; what to write to the device's tables."""
        index, count = request.num_blocks, self.blocks_for(tokens) - request.num_blocks
        updates = []
        for group, table in enumerate(request.tables):
            blocks = self.pool.allocate(count)
            table.extend(blocks)
            updates.append(BlockUpdate(request.slot, index, blocks, group))
        request.num_blocks += count
        return updates

    def drop_unseen(self, request: Request) -> None:
        """Give back what none of the tokens still to be computed can see. A step under way may still read it: it comes
        before whatever is written there."""
        for group in self._windowed:
            table, start = request.tables[group], request.num_dropped[group]
            first = min(self._first_seen(request.num_computed, group), len(table))
            if first > start:
                self.pool.release(table[start:first])
                table[start:first] = [0] * (first - start)
                request.num_dropped[group] = first

    def release(self, request: Request) -> None:
        """Give everything back."""
        for table, start in zip(request.tables, request.num_dropped, strict=True):
            self.pool.release(table[start:])
        request.tables, request.num_dropped = [], []
        request.num_blocks = request.num_registered = 0

    def register(self, request: Request, full: int) -> None:
        """Name the first `full` blocks of each group, whose tokens the host knows."""
        self._extend_hashes(request, full)
        hashes = request.block_hashes[request.num_registered : full]
        for group, table in enumerate(request.tables):
            blocks = table[request.num_registered : full]
            for block, name in compress(zip(blocks, self._names(hashes, group), strict=True), blocks):
                self.pool.register(block, name)
        request.num_registered = full

    def _names(self, hashes: list[bytes], group: int) -> list[bytes]:
        """The same tokens are in other blocks for each group."""
        return hashes if group == 0 else [name + bytes((group,)) for name in hashes]

    def _extend_hashes(self, request: Request, count: int) -> None:
        size, hashes = self.block_size, request.block_hashes
        for index in range(len(hashes), count):
            parent = hashes[-1] if hashes else root_hash(request.cache_salt)
            hashes.append(block_hash(parent, request.known_tokens(index * size, (index + 1) * size)))
