"""Prompts cut into chunks of few sizes, so that few programs are compiled.

A chunk bounds what a prompt takes beside weights and cache, whatever the prompt's length.
"""

import itertools
from typing import NamedTuple

from sharding.error_types import UsageError

TILE = 16
"""Tokens of the smallest chunk; each is a multiple."""
CHUNK_ON_CPU, CHUNK = 512, 2048
"""Tokens of the largest chunk by default: on a TPU or GPU enough that arithmetic takes longer than
reading the weights again (the critical batch of most chips is 200 to 600)."""
SPARE, FEW = 8, 127
"""A prompt's last chunk is filled up by at most one part in so many of the prompt, or by so few
tokens that another chunk, which reads the weights again, would take as long."""


class Chunk(NamedTuple):
    """A part of prompts that runs at once.

    Attributes:
      start: tokens of the prompts that run before it.
      size: tokens of each prompt that it has room for.
      continues: whether its program looks for earlier tokens in the cache.
    """

    start: int
    size: int
    continues: bool


def default_chunk(platform: str) -> int:
    """Tokens of the largest chunk on this platform."""
    return CHUNK_ON_CPU if platform == "cpu" else CHUNK


def check_chunk(chunk: int) -> None:
    """Refuses a size that chunks cannot have.

    Raises:
      UsageError: it is no positive multiple of the tile.
    """
    if chunk < TILE or chunk % TILE:
        below = chunk // TILE * TILE
        near = f"{below} or {below + TILE}" if below > 0 else f"{TILE}"
        raise UsageError(
            f"chunk is {chunk} tokens, which is no positive multiple of {TILE}; use {near}"
        )


def chunk_sizes(tokens: int, chunk: int) -> list[int]:
    """Sizes of the chunks of a prompt: full ones, then powers of two for the rest.

    Args:
      tokens: of the longest prompt, at least one.
      chunk: tokens of a full chunk, a multiple of `TILE`.

    Returns:
      Sizes that add up to `tokens` and at most an eighth of it, or `FEW`, more.
    """
    sizes, rest = [chunk] * (tokens // chunk), tokens % chunk
    ladder = [*_powers(chunk), chunk]
    while rest > 0:
        above = next(size for size in ladder if size >= rest)
        fits = above - rest <= max(tokens // SPARE, FEW)
        size = above if fits else max(size for size in ladder if size < rest)
        sizes.append(size)
        rest -= size
    return sizes


def cut(tokens: int, chunk: int, continued: bool, one_program: bool) -> list[Chunk]:
    """The chunks of a prompt.

    Args:
      tokens: of the longest prompt, at least one.
      chunk: tokens of a full chunk.
      continued: whether the cache may hold tokens before the prompts.
      one_program: whether the first of several chunks runs the program of those behind it, which
        costs it nothing where prompts attend to their cache as it lies.
    """
    sizes = chunk_sizes(tokens, chunk)
    continued |= one_program and len(sizes) > 1
    starts = itertools.accumulate(sizes, initial=0)
    return [Chunk(at, size, continued or at > 0) for at, size in zip(starts, sizes, strict=False)]


def _powers(chunk: int) -> list[int]:
    return [TILE << power for power in range((chunk // TILE).bit_length()) if TILE << power < chunk]
