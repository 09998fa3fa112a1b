"""KV blocks: reference counts, free list and the prefix cache over hash-chained full blocks.

A full block is named by a 128-bit BLAKE2b digest of its parent's digest and its token ids, so equal digests mean equal
prefixes (collisions are out of reach even for somebody who looks for them). Freed blocks keep their contents and their name
until they are taken again, oldest first; block 0 is the null block, which padding reads and writes.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from hashlib import blake2b

ROOT_HASH = b""


def root_hash(salt: str) -> bytes:
    """The name of what comes before the first block: prompts with different salts share none."""
    return blake2b(salt.encode(), digest_size=16).digest() if salt else ROOT_HASH


def block_hash(parent: bytes, tokens: list[int]) -> bytes:
    """The name of the full block that holds `tokens` after the prefix named `parent`."""
    return blake2b(array("i", tokens).tobytes(), key=parent, digest_size=16).digest()


class BlockPool:
    """`num_blocks` blocks, of which block 0 is never given out. Every other block is free or referenced, never both."""

    def __init__(self, num_blocks: int) -> None:
        assert num_blocks >= 2
        self.num_blocks = num_blocks
        self._references = [0] * num_blocks
        self._hash_of: list[bytes | None] = [None] * num_blocks
        self._block_of: dict[bytes, int] = {}
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(1, num_blocks))

    @property
    def num_free(self) -> int:
        """Blocks that can be taken, cached contents or not."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Blocks that requests hold."""
        return self.num_blocks - 1 - len(self._free)

    def allocate(self, count: int) -> list[int]:
        """Take `count` free blocks, those longest unused first; their cached contents are forgotten."""
        assert count <= self.num_free
        taken = [self._free.popitem(last=False)[0] for _ in range(count)]
        for block in taken:
            self._references[block] = 1
            self._forget(block)
        return taken

    def lookup(self, hashes: list[bytes]) -> list[int]:
        """The blocks that hold the longest cached prefix of the chain `hashes`. They are not yet referenced."""
        found: list[int] = []
        for name in hashes:
            block = self._block_of.get(name)
            if block is None:
                break
            found.append(block)
        return found

    def find(self, name: bytes) -> int:
        """The block of that name, not yet referenced; 0 where there is none."""
        return self._block_of.get(name, 0)

    def num_unreferenced(self, blocks: list[int]) -> int:
        """How many of `blocks` are free now, and would leave the free list if shared."""
        return sum(1 for block in blocks if self._references[block] == 0)

    def share(self, blocks: list[int]) -> None:
        """Reference blocks that `lookup` found."""
        for block in blocks:
            if self._references[block] == 0:
                del self._free[block]
            self._references[block] += 1

    def release(self, blocks: list[int]) -> None:
        """Drop one reference of each. Blocks freed here are taken again last block first, so that prefixes live longest."""
        for block in reversed(blocks):
            self._references[block] -= 1
            assert self._references[block] >= 0
            if self._references[block] == 0:
                self._free[block] = None
                if self._hash_of[block] is None:
                    self._free.move_to_end(block, last=False)

    def register(self, block: int, name: bytes) -> None:
        """Name a full block, so that later requests find it. The first block of a name keeps it."""
        if self._hash_of[block] is None and name not in self._block_of:
            self._hash_of[block] = name
            self._block_of[name] = block

    def _forget(self, block: int) -> None:
        name = self._hash_of[block]
        if name is not None:
            self._hash_of[block] = None
            del self._block_of[name]

    def check(self) -> None:
        """Assert the invariants: free and referenced partition the blocks, names and blocks agree."""
        for block in range(1, self.num_blocks):
            assert (self._references[block] == 0) == (block in self._free)
        assert all(self._hash_of[block] == name for name, block in self._block_of.items())
        assert 0 not in self._free
