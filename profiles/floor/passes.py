"""A forward pass of a deployment, and the work that it is for each device."""

import dataclasses
from typing import NamedTuple


@dataclasses.dataclass(frozen=True)
class Pass:
    """One forward pass of a deployment.

    Attributes:
      batch: number of sequences.
      context: tokens in the cache of each sequence before the pass.
      tokens: new tokens of each sequence: 1 in a decode step, more in a pass over prompts.
      slots: tokens that the cache of each sequence has room for; no more than there are after the
        pass if None.
    """

    batch: int
    context: int
    tokens: int = 1
    slots: int | None = None

    @property
    def over_prompts(self) -> bool:
        """Whether this is a prefill, and not a decode step."""
        return self.tokens > 1

    @property
    def phase(self) -> str:
        """``decode`` or ``prefill``."""
        return "prefill" if self.over_prompts else "decode"

    @property
    def room(self) -> int:
        """Tokens that the cache of each sequence has room for."""
        return self.slots or self.context + self.tokens

    def of_batch(self, batch: int) -> "Pass":
        """The same pass with another number of sequences."""
        return dataclasses.replace(self, batch=batch)


@dataclasses.dataclass(frozen=True)
class Counts:
    """The least work of a pass for each device, in bytes and FLOPs (a multiply-add is two).

    Also the memory that it holds meanwhile, which no floor counts.

    Attributes:
      weights_resident: stored weights; a replicated array counts whole on every device.
      weights_read: the same, but of an embedding that is only looked up, the rows looked up, and
        no row twice where there are more tokens than rows.
      kv_resident: the allocated cache.
      kv_read: cached tokens of all sequences.
      kv_written: the new tokens, of layers with a window those that it holds.
      flops: matrix multiplications and attention.
      weights_gathered: whole copies of weights that a weight-gathered layout makes of its shards.
        No floor counts them: they could stay on the chip. An expected time does, twice.
      activations: held beside weights and cache where that is most, as the program makes them:
        those of all sequences, and where weights are gathered one layer of them.
    """

    weights_resident: float
    weights_read: float
    kv_resident: float
    kv_read: float
    kv_written: float
    flops: float
    weights_gathered: float = 0.0
    activations: float = 0.0

    @property
    def memory(self) -> float:
        """Bytes moved per step."""
        return self.weights_read + self.kv_read + self.kv_written

    @property
    def held(self) -> float:
        """Bytes that must fit in memory."""
        return self.weights_resident + self.kv_resident + self.activations


class BatchLine(NamedTuple):
    """Decode steps of any batch at one context, per device, as lines that plans are made with.

    Attributes:
      resident: bytes held whatever the batch: stored weights, and a layer of gathered ones.
      plain: bytes of weights that every step reads.
      experts: bytes of all experts; a step reads the part that is touched.
      gathered: bytes of gathered weights, see `Counts.weights_gathered`.
      moved: bytes that each sequence adds.
      kept: bytes of each sequence's cache and activations.
      flops: FLOPs of each sequence.
      replicas: into which touched experts part the batch.
    """

    resident: float
    plain: float
    experts: float
    gathered: float
    moved: float
    kept: float
    flops: float
    replicas: int


def pairs_seen(cached: int, tokens: int, window: int) -> int:
    """Pairs of query and key where new tokens see those before them, up to a window.

    Args:
      cached: tokens before the new ones.
      tokens: new ones; each sees itself too.
      window: tokens that one sees at most, itself included.
    """
    growing = max(min(tokens, window - cached), 0)  # tokens that see all before them
    return growing * cached + growing * (growing + 1) // 2 + (tokens - growing) * window
