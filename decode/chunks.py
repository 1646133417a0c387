"""Prompts cut into chunks of few sizes, so that few programs are compiled.

A chunk bounds what a prompt takes beside weights and cache, whatever the prompt's length.
"""

from sharding.error_types import UsageError

TILE = 16
"""Tokens of the smallest chunk; each is a multiple."""
CHUNK_ON_CPU, CHUNK = 512, 2048
"""Tokens of the largest chunk by default: on a TPU or GPU enough that arithmetic takes longer than
reading the weights again (the critical batch of most chips is 200 to 600)."""
SPARE = 8
"""A prompt's last chunk is filled up by at most one part in so many of the prompt, or a tile."""


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
      Sizes that add up to `tokens` and at most an eighth of it, or a tile, more.
    """
    sizes, rest = [chunk] * (tokens // chunk), tokens % chunk
    ladder = [*_powers(chunk), chunk]
    while rest > 0:
        above = next(size for size in ladder if size >= rest)
        fits = above - rest <= max(tokens // SPARE, TILE - 1)
        size = above if fits else max(size for size in ladder if size < rest)
        sizes.append(size)
        rest -= size
    return sizes


def _powers(chunk: int) -> list[int]:
    return [TILE << power for power in range((chunk // TILE).bit_length()) if TILE << power < chunk]
