"""What a step of a batching engine has room for: sizes of chunks, and of decode steps."""

import dataclasses

from decode.chunks import FEW, TILE
from decode.drafts import check_takes_back
from decode.engine import Engine
from sharding.error_types import UsageError

SPARE_ON_CPU = 31
"""Tokens that fill a chunk up at most on a CPU, where each takes time; `chunks.FEW` elsewhere. So a
chunk of 64 runs from 33 tokens on, and no more than two of 16 run in its place."""
FULL_ON_CPU = 256
"""Tokens of a chunk from which on its time on a CPU follows its tokens: weights are read within a
twentieth of it, so that none of twice as many is worth its compilation."""
STEP_RATIO = 4
"""How many times the rows of a smaller decode step each has at most. With 2 there would be twice as
many programs to compile, for steps that are at most a third shorter."""
TOGETHER = 4
"""Prompts that a chunk of several has. On two cores four times 128 tokens of a small model take 0.8
of the time that they take one after another: weights are put in order for each product."""


@dataclasses.dataclass(frozen=True)
class Shape:
    """What a step has room for.

    Attributes:
      rows: sequences of the cache.
      groups: parts of the rows, each on devices of its own; a row is copied within its part.
      lanes: prompts that run in a chunk, as many of each group.
      sizes: tokens that a chunk may have for each lane, rising.
      spare: tokens that a chunk may be longer than its prompts, so that no chunk more is needed.
      budget: tokens of all lanes of a step's chunks.
      window: tokens that the shortest window of the model's layers keeps; None without windows.
      whole: whether what a row holds is of use whole alone, as a state is.
      steps: rows of the decode steps that are smaller than one of all rows, rising. A step has as
        many of each group, its first ones.
      context: tokens that each row has room for.
      drafted: tokens of drafts that a decode step verifies in each row beside the newest; 0 without
        drafts.
      together: tokens of each prompt in a chunk of `TOGETHER` prompts; 0 where there is none.
    """

    rows: int
    groups: int
    lanes: int
    sizes: tuple[int, ...]
    spare: int
    budget: int
    window: int | None = None
    whole: bool = False
    steps: tuple[int, ...] = ()
    context: int = 0
    drafted: int = 0
    together: int = 0

    @property
    def uncertain(self) -> int:
        """Positions past a row's known tokens that refused drafts may have written."""
        return spare_slots(self.drafted)

    @property
    def chunks(self) -> list[tuple[int, int]]:
        """Tokens of each lane and lanes of all chunks that there may be."""
        several = [(self.together, TOGETHER)] if self.together else []
        return [(size, self.lanes) for size in self.sizes] + several

    def size(self, tokens: int) -> int:
        """Tokens of the next chunk of a prompt of which so many are left."""
        above = next((size for size in self.sizes if size >= tokens), None)
        below = next((size for size in reversed(self.sizes) if size <= tokens), None)
        if below is None or (above is not None and above - tokens <= self.spare):
            return above
        return below

    def step(self, most: int) -> int:
        """Rows of the smallest decode step that has so many of each group."""
        return next((rows for rows in self.steps if rows >= most * self.groups), self.rows)

    def in_step(self, number: int, rows: int) -> int:
        """Which row of a decode step of so many a row is."""
        group, place = self.within_group(number)
        return group * (rows // self.groups) + place

    def within_group(self, number: int) -> tuple[int, int]:
        """The group of a row, and which of its group's rows it is."""
        return divmod(number, self.rows // self.groups)


def spare_slots(drafted: int) -> int:
    """Slots that a window's ring has more than its window, so that a text can go on at its end.

    Two steps may have run since a row's known tokens were read, each past what stands by `drafted`.
    """
    return 2 * drafted


def shape_of(engine: Engine, rows: int, context: int, budget: int, drafted: int = 0) -> Shape:
    """What a step has room for.

    Raises:
      DraftError: the model's cache cannot give refused drafts back.
      LayoutError: a number of rows that the layout does not divide.
      UsageError: numbers that are not positive, or a budget below a tile of each lane.
    """
    placement, config = engine.placement, engine.config
    lanes = placement.multiple("B")
    for name, value in (("slots_of_sequences", rows), ("context", context)):
        if value < 1:
            raise UsageError(f"{name} is {value}; use a positive integer")
    placement.check_batch(rows)
    if drafted:
        check_takes_back(config)
    if budget < TILE * lanes:
        raise UsageError(
            f"token_budget is {budget}, but a chunk takes {TILE} tokens of {lanes} prompts each; "
            f"use at least {TILE * lanes}"
        )
    largest = min(engine.chunk, budget // lanes, -(-context // TILE) * TILE)
    sizes = [TILE << n for n in range(32) if TILE << n <= largest]
    on_cpu = engine.mesh.devices.flat[0].platform == "cpu"
    if on_cpu:  # where compilation takes longest, and a small chunk costs little
        sizes = sorted({*sizes[::2], min(sizes[-1], FULL_ON_CPU)})
    windows = [w for w in map(config.window, range(config.layers)) if w]
    return Shape(
        rows=rows,
        groups=placement.parts(("cache", "B")),
        lanes=lanes,
        sizes=tuple(sizes),
        spare=SPARE_ON_CPU if on_cpu else FEW,
        budget=budget,
        window=min(windows, default=None),
        whole=config.delta is not None,
        steps=smaller_steps(rows, lanes) if on_cpu else (),
        context=context,
        drafted=drafted,
        together=together(rows, budget, largest) if on_cpu and lanes == 1 else 0,
    )


def together(rows: int, budget: int, largest: int) -> int:
    """Tokens of each prompt in a chunk of several, on a CPU whose rows no mesh axis divides.

    Args:
      rows: sequences of the cache.
      budget: tokens of all prompts of a chunk, at most.
      largest: those of one prompt.
    """
    most = min(largest, budget // TOGETHER, FULL_ON_CPU // 2)
    return 0 if rows < TOGETHER or most < TILE else TILE << (most // TILE).bit_length() - 1


def smaller_steps(rows: int, least: int) -> tuple[int, ...]:
    """Rows of decode steps below one of all `rows`, from `least` on.

    They are for CPUs, whose steps take longer the more rows they have. A chip waits for its weights
    most of the time, and reads of the cache what is filled: there all rows run. So they do where
    there are fewer than four times the least, and no step has more than half of them.
    """
    if rows < STEP_RATIO * least:
        return ()
    powers = (least * STEP_RATIO**power for power in range(rows.bit_length()))
    return tuple(size for size in powers if 2 * size <= rows)
