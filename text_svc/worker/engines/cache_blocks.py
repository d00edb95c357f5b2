"""How many blocks of a paged key-value cache with prefix caching have been written so far.

OpenVINO GenAI does not tell: its metrics count the blocks of generations that run. Its allocator
hands out blocks that were never used before it overwrites those of ended generations, which it
keeps for prompts that begin alike; so the memory of the cache grows by each block that holds
something new, until all have been used (`BlockAllocator` in its `block_manager.hpp`).
"""

from __future__ import annotations

from collections.abc import Sequence


class CacheBlocks:
    """Counts the blocks that generations have written.

    Args:
        blocks: of the cache.
        block_tokens: tokens of a block.
    """

    def __init__(self, blocks: int, block_tokens: int) -> None:
        self.blocks = blocks
        self._block_tokens = block_tokens
        self.clear()

    def clear(self) -> None:
        """The cache was made anew."""
        self.written = 0
        # What the blocks hold: a hash of all tokens up to the end of the block.
        self._known: set[int] = set()

    def write(self, tokens: Sequence[int], *, ended: bool) -> int:
        """Notes what a generation holds: its prompt at first, and all its tokens in the end.

        Args:
            tokens: all, from the first one.
            ended: whether the last block is not written further; before, only full ones count.

        Returns:
            How many of the tokens were not in the cache. Once all blocks have been used, what they
            hold is overwritten, and this is an estimate.
        """
        if len(self._known) > 2 * self.blocks:
            self._known.clear()
        size, content, known = self._block_tokens, 0, 0
        end = len(tokens) if ended else len(tokens) // size * size
        for start in range(0, end, size):
            content = hash((content, *tokens[start : start + size]))
            if content in self._known:
                known += size
            else:
                self._known.add(content)
                self.written += 1
        self.written = min(self.written, self.blocks)
        return max(len(tokens) - known, 0)
