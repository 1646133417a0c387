"""A forward pass of a deployment, and the work of each device in it."""

import dataclasses
from typing import NamedTuple

import numpy as np


@dataclasses.dataclass(frozen=True)
class Pass:
    """One forward pass of a deployment.

    Attributes:
      batch: number of sequences.
      context: tokens in the cache of each sequence before the pass.
      tokens: new tokens of each sequence: 1 in a decode step, more in a pass over prompts.
      slots: tokens that the cache of each sequence has room for; if None, as many as there are
        after the pass.
      spare: slots that a window's ring has more than its window, for refused drafts.
    """

    batch: int
    context: int
    tokens: int = 1
    slots: int | None = None
    spare: int = 0

    @property
    def over_prompts(self) -> bool:
        """Whether this is a prefill rather than a decode step."""
        return self.tokens > 1

    @property
    def continues(self) -> bool:
        """Whether it is over prompts that have tokens in the cache already."""
        return self.over_prompts and self.context > 0

    @property
    def phase(self) -> str:
        """``decode`` or ``prefill``."""
        return "prefill" if self.over_prompts else "decode"

    @property
    def cache_slots(self) -> int:
        """Tokens that the cache of each sequence has room for."""
        return self.slots or self.context + self.tokens

    def last_chunk(self, chunk: int) -> "Pass":
        """The last whole chunk of prompts, as they run; of all it attends to the most tokens.

        Args:
          chunk: tokens of the prompts that run at once; prompts of no more are one pass.
        """
        if self.tokens <= chunk:
            return self
        before = self.context + (self.tokens // chunk - 1) * chunk
        return dataclasses.replace(self, context=before, tokens=chunk, slots=self.cache_slots)

    def of_batch(self, batch: int) -> "Pass":
        """The same pass with another number of sequences."""
        return self if batch == self.batch else dataclasses.replace(self, batch=batch)


@dataclasses.dataclass(frozen=True)
class Counts:
    """The least work of a pass for each device, in bytes and FLOPs (a multiply-add is two).

    Also the bytes in memory during the pass, which are no part of a floor.

    Attributes:
      weights_resident: bytes of stored weights; every device counts all of a replicated array.
      weights_read: bytes of weights that are read: all of them, but of an embedding that is only
        looked up one row per token, at most each row once.
      kv_resident: bytes of the allocated cache.
      kv_read: bytes of cached tokens that attention reads.
      kv_written: bytes of new tokens in the cache; layers with a window keep the last ones alone.
      flops: FLOPs of matrix multiplications and attention.
      weights_gathered: bytes of gathered weights that a weight-gathered layout makes of its shards.
        A floor does not count them, because they could stay on the chip; an expected time counts
        them twice.
      activations: largest number of bytes that the program holds in addition to weights and cache:
        activations of all sequences, and the gathered weights of the layer that has most.
      attention: those of `flops` in which the tokens of a decode step meet what is cached.
      rows: tokens that the device multiplies with each matrix.
      expert_flops: those of `flops` in the products of a mixture's experts.
      sequences: sequences that all devices together advance.
    """

    weights_resident: float
    weights_read: float
    kv_resident: float
    kv_read: float
    kv_written: float
    flops: float
    weights_gathered: float = 0.0
    activations: float = 0.0
    attention: float = 0.0
    rows: float = 1.0
    expert_flops: float = 0.0
    sequences: float = 1.0

    def as_python_numbers(self) -> "Counts":
        """The same with Python's numbers in place of NumPy's; arrays, for many meshes, stay."""
        return Counts(*[v.item() if isinstance(v, np.generic) else v for v in vars(self).values()])

    def bytes_of(self, devices: float) -> dict[str, float]:
        """The fields that are bytes, of so many devices; those of gathered weights if any are."""
        beside = ["flops", "attention", "rows", "expert_flops", "sequences"]
        beside += ["weights_gathered"] * (not self.weights_gathered)
        return {n: v * devices for n, v in vars(self).items() if n not in beside}

    @property
    def memory(self) -> float:
        """Bytes moved per step."""
        return self.weights_read + self.kv_read + self.kv_written

    @property
    def held(self) -> float:
        """Bytes that must fit in memory."""
        return self.weights_resident + self.kv_resident + self.activations


class BatchLine(NamedTuple):
    """Decode steps at one context, per device, as linear functions of batch; plans use them.

    Attributes:
      resident: bytes in memory at any batch: stored weights, and the gathered ones of that layer
        which has most.
      dense_weights: bytes of weights that every step reads, experts aside.
      experts: bytes of all experts, of which a step reads those that its tokens choose.
      gathered: the same as `Counts.weights_gathered`.
      bytes_per_sequence: bytes that each sequence adds to what a step reads and writes, a row of an
        embedding that is looked up among them, even where there are fewer rows than sequences.
      memory_per_sequence: bytes of each sequence's cache and activations.
      flops: FLOPs of each sequence.
      replicas: number of parts of the batch that choose experts apart from each other.
      attention: those of `flops` that are of attention.
      parts: number of parts of the batch that are multiplied apart from each other.
      expert_flops: those of `flops` that are of experts.
      stored: bytes of stored weights, those of `resident` that stages of a pipeline divide.
    """

    resident: float
    dense_weights: float
    experts: float
    gathered: float
    bytes_per_sequence: float
    memory_per_sequence: float
    flops: float
    replicas: int
    attention: float
    parts: int
    expert_flops: float
    stored: float


class PromptLine(NamedTuple):
    """What each prompt of a service adds to the steps that it joins in, per device.

    Attributes:
      written: bytes of its keys and values.
      flops: its FLOPs.
      rows: its tokens that the device multiplies with each matrix.
      gathered: bytes of weights that are gathered for any number of prompts.
      looked_up: bytes of an embedding that is only looked up, one row of it.
      table: bytes of all its rows.
      expert_flops: those of `flops` in the products of experts.
    """

    written: float
    flops: float
    rows: float
    gathered: float
    looked_up: float
    table: float
    expert_flops: float


def attended_pairs(cached: int, tokens: int, window: int) -> int:
    """Pairs of query and key, if new tokens attend to the tokens before them within a window.

    Args:
      cached: tokens before the new ones.
      tokens: new tokens; each also attends to itself.
      window: most tokens that a token attends to, itself included.
    """
    growing = max(min(tokens, window - cached), 0)  # new tokens that attend to all before them
    return growing * cached + growing * (growing + 1) // 2 + (tokens - growing) * window


def chunk_pairs(cached: int, tokens: int, chunk: int) -> int:
    """The same, if new tokens attend to those of their own chunk of so many tokens alone."""

    def first(count: int) -> int:
        """Pairs of a sequence's first tokens, so many."""
        whole, rest = divmod(count, chunk)
        return (whole * chunk * (chunk + 1) + rest * (rest + 1)) // 2

    return first(cached + tokens) - first(cached)
