"""Bytes and FLOPs of a pass by block of the model; they add up to those of the whole pass."""

import functools
from collections.abc import Callable
from typing import NamedTuple

from model.config import ModelConfig
from model.declarations import Path
from model.dtypes import Dtypes
from profiles.chips.chip import Peaks
from profiles.floor.bytes_and_flops import PassCounter
from profiles.floor.passes import Pass
from sharding.placement import Placement

EMBEDDING, NORMS, QUERY_KEY_VALUE = "embedding", "norms", "query/key/value"
CACHE_WRITE, ATTENTION, OUTPUT = "cache write", "attention", "output projection"
DELTA_RULE = "delta rule"
MLP, EXPERTS, UNEMBEDDING = "MLP", "experts", "unembedding"
LAYER_INPUTS = "per-layer inputs"
BLOCKS = (
    EMBEDDING, NORMS, QUERY_KEY_VALUE, CACHE_WRITE, ATTENTION, DELTA_RULE, OUTPUT, MLP, EXPERTS,
    LAYER_INPUTS,
    UNEMBEDDING,
)  # fmt: skip
"""All blocks, in the order in which a step runs through them."""
SAMPLING = "sampling"

SCOPES = {
    "embedding": EMBEDDING,
    "norm": NORMS,
    "rotary_angles": QUERY_KEY_VALUE,
    "query_key_value": QUERY_KEY_VALUE,
    "cache_write": CACHE_WRITE,
    "attention": ATTENTION,
    "delta_rule": DELTA_RULE,
    "attention_output": OUTPUT,
    "mlp": MLP,
    "mixture": EXPERTS,
    "layer_inputs": LAYER_INPUTS,
    "experts_touched": EXPERTS,
    "unembedding": UNEMBEDDING,
    "sample": SAMPLING,
}
"""Scopes of the model, and the block that each belongs to."""


class BlockCounts(NamedTuple):
    """The least work of a block for each device.

    Attributes:
      bytes: of weights and cache that it must read or write.
      flops: of its products; a multiply-add is two.
    """

    bytes: float
    flops: float

    def floor_s(self, peaks: Peaks) -> float:
        """The least seconds that the block takes by itself."""
        return max(self.bytes / peaks.bandwidth, self.flops / peaks.flops)


def block_of_weight(path: Path, config: ModelConfig) -> str:
    """The block that a parameter belongs to: the one that multiplies by it, or looks it up.

    Args:
      path: its path among the model's parameters, such as ``("layers", 0, "mlp", "down")``.
      config: the model.
    """
    parts = [str(part) for part in path]
    if parts[0] == "unembedding" or (parts[0] == "embedding" and config.tied_embedding):
        return UNEMBEDDING
    if parts[0] == "embedding":
        return EMBEDDING
    if "layer_inputs" in parts or parts[2:3] == ["input"]:
        return LAYER_INPUTS
    if parts[0] != "layers" or "norm" in parts[2] or parts[2] == "block_scale":
        return NORMS
    if parts[2] == "shared":
        return MLP
    if parts[2] == "mlp":
        return EXPERTS if config.has_experts(int(parts[1])) else MLP
    if parts[3] in ("taps", "rates", "rates_bias"):
        return DELTA_RULE
    return OUTPUT if parts[3].startswith(("output", "value")) else QUERY_KEY_VALUE


def block_counts(
    config: ModelConfig,
    placement: Placement,
    dtypes: Dtypes,
    pass_: Pass,
    experts: float | str | None = None,
) -> dict[str, BlockCounts]:
    """The work of a pass, of each block that has any, in the order of `BLOCKS`.

    Args:
      config: the model.
      placement: its layout on a mesh.
      dtypes: how its numbers are stored.
      pass_: the pass.
      experts: distinct experts that a layer reads, see `PassCounter`.
    """
    found = {}
    for block in BLOCKS:
        only = _weights_of(block, config)
        counter = PassCounter(config, placement, dtypes, only)
        found[block] = BlockCounts(
            counter.weights_read(pass_.batch * pass_.tokens, experts),
            pass_.batch * counter.weight_flops(pass_.tokens),
        )
    whole = PassCounter(config, placement, dtypes)
    counts = whole.count(pass_, experts)
    rule, states = pass_.batch * whole.delta_flops(pass_.tokens), whole.states(pass_)
    attention = pass_.batch * whole.attention_flops(pass_) - rule
    found[ATTENTION] = BlockCounts(counts.kv_read - states.read, attention)
    found[CACHE_WRITE] = BlockCounts(counts.kv_written - states.written, 0.0)
    weights = found[DELTA_RULE]  # of convolutions
    found[DELTA_RULE] = BlockCounts(weights.bytes + sum(states), weights.flops + rule)
    return {name: BlockCounts(*map(float, work)) for name, work in found.items() if any(work)}


@functools.cache
def _weights_of(block: str, config: ModelConfig) -> Callable[[Path], bool]:
    """Whether a parameter belongs to a block."""
    return lambda path: block_of_weight(path, config) == block
