"""What gated delta layers cost beside their weights: FLOPs of the rule, and bytes of states.

A step reads and writes the whole state of each sequence once, however many tokens came before it:
in these layers neither bytes nor FLOPs grow with the context.
"""

import functools
from typing import NamedTuple

import jax

from model.cache import DELTA_AXES, DeltaState, abstract_cache
from model.config import ModelConfig
from model.dtypes import Dtypes
from profiles.report.numbers import byte_size
from sharding.placement import Placement
from sharding.quantization import stored_bytes


class StateTraffic(NamedTuple):
    """Bytes of states that a pass moves through each device's memory.

    Attributes:
      read: bytes.
      written: bytes.
    """

    read: float
    written: float


@functools.lru_cache(maxsize=4096)
def delta_flops(config: ModelConfig, tokens: int) -> int:
    """FLOPs of one sequence's delta rule and convolutions, all layers and devices together.

    A token meets the state of each value head in three products: it asks for the value of its key,
    corrects it, and asks for that of its query. Chunks of tokens take a little more, to find
    corrections of each other (Yang et al. 2024, section 3.3), which is not the least.

    Args:
      config: the model.
      tokens: new tokens.
    """
    layers = config.layers - len(config.attention_layers)
    if not layers:
        return 0
    sizes = config.delta
    rule = 6 * sizes.value_heads * sizes.key_size * sizes.value_size
    return layers * tokens * (rule + 2 * sizes.key_heads * sizes.convolved * sizes.taps)


def state_bytes(config: ModelConfig, placement: Placement, dtypes: Dtypes) -> float:
    """Bytes of one sequence's states on each device, all layers together."""
    if not config.delta:
        return 0.0
    shares = (placement.share(("cache", axes)) for axes in DELTA_AXES)
    sizes = _whole_bytes(config, dtypes)
    return sum(size * share for size, share in zip(sizes, shares, strict=True))


def state_traffic(each: float, batch: int, context: int) -> StateTraffic:
    """What a pass reads and writes of states.

    Args:
      each: bytes of one sequence's states.
      batch: sequences.
      context: tokens before the pass; a sequence that begins has no state to read.
    """
    return StateTraffic(batch * each * (context > 0), batch * each)


def states_in_words(config: ModelConfig, dtypes: Dtypes) -> list[str]:
    """A line that says what a step moves of states; none for a model without any."""
    others = len(getattr(config, "attention_layers", ()))
    if not getattr(config, "delta", None) or others == config.layers:
        return []
    size = byte_size(sum(_whole_bytes(config, dtypes)))
    return [
        f"{config.layers - others} of {config.layers} layers keep a state: for each sequence a "
        f"step reads and writes {size}, whatever its context; the others alone cache tokens"
    ]


@functools.cache
def _whole_bytes(config: ModelConfig, dtypes: Dtypes) -> tuple[int, int]:
    """Bytes of one sequence's matrices, and of what convolutions remember, on no mesh."""
    states = [state for state in abstract_cache(config, 1, 1, dtypes).states if state]
    whole = jax.tree.map(lambda *arrays: sum(map(stored_bytes, arrays)), *states)
    return (whole.matrices, whole.inputs) if isinstance(whole, DeltaState) else (0, 0)
