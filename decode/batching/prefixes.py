"""Which rows hold the beginning of a prompt, found by hashes of blocks of tokens."""

import collections
from collections.abc import Hashable, Iterator, Sequence
from typing import Generic, TypeVar

BLOCK = 16
"""Tokens of a block: fewer in common are not worth a look."""
_AT_ONCE = 256
"""Tokens that are compared at once, in a loop of C."""


def block_hashes(tokens: Sequence[int]) -> Iterator[int]:
    """A number for each whole block, which stands for it and all before it.

    It is the same in every process. Equal numbers are no proof: whoever finds them compares tokens.
    """
    number = 0
    for end in range(BLOCK, len(tokens) + 1, BLOCK):
        number = hash((number, *tokens[end - BLOCK : end]))
        yield number


_Row = TypeVar("_Row", bound=Hashable)


class Prefixes(Generic[_Row]):
    """Rows, whatever stands for them, by the blocks that they begin with."""

    def __init__(self):
        self._rows: dict[int, dict[_Row, None]] = collections.defaultdict(dict)
        self._blocks: dict[_Row, list[int]] = collections.defaultdict(list)

    def hold(self, row: _Row, tokens: Sequence[int]) -> None:
        """The row holds these tokens: those that it held before and more."""
        known = self._blocks[row]
        if len(tokens) // BLOCK == len(known):
            return
        number = known[-1] if known else 0
        for end in range(BLOCK * (len(known) + 1), len(tokens) + 1, BLOCK):
            number = hash((number, *tokens[end - BLOCK : end]))
            known.append(number)
            self._rows[number][row] = None

    def forget(self, row: _Row) -> None:
        """The row holds nothing any more."""
        for number in self._blocks.pop(row, ()):
            del self._rows[number][row]
            if not self._rows[number]:
                del self._rows[number]

    def alike(self, prompt: Sequence[int]) -> Iterator[list[_Row]]:
        """Rows that begin with blocks of the prompt: those of the most blocks first."""
        found = []
        for number in block_hashes(prompt):
            if number not in self._rows:
                break
            found.append(list(self._rows[number]))
        return reversed(found)


def alike_tokens(one: Sequence[int], other: Sequence[int], most: int) -> int:
    """How many of the first tokens of both are the same, up to `most`; blocks are compared whole.

    A prompt may be a tuple and what a row holds a list, so that slices are compared as lists.
    """
    for start in range(0, most, _AT_ONCE):
        end = min(start + _AT_ONCE, most)
        if list(one[start:end]) != list(other[start:end]):
            return next(n for n in range(start, end) if one[n] != other[n])
    return most
