"""Curves of decode steps: time and cost against batch, chips and sparsity, bytes sent per layout.

Pure functions from estimators to arrays, in seconds and bytes; drawing them is the business of
`profiles.figures.curve_figures` and `profiles.figures.slice_figures`. Source of the equations: Pope
et al. 2022, section 2 (time and cost against batch) and figure 3 (communication); Google's scaling
book, "All about transformer inference".
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from model.config import ModelConfig
from model.dtypes import Dtypes
from profiles.chips.chip import Price
from profiles.expected.balance import largest_batch, slopes
from profiles.expected.estimate import Estimator
from profiles.floor.communication import expected_collectives
from profiles.floor.passes import Pass
from sharding.placement import Placement
from sharding.quantization import Quantization, stored_bytes

RULE_RATIO, RULE_SPARSITY = 300, 8
"""A rule of thumb for chips of 2023 to 2025: 300 FLOPs a byte, and an eighth of the model used."""
_MANY = 2**40  # sequences, at which everything but what grows with them is gone
_SCALED_INPUTS = 8192  # numbers of an output, over which a scale is spread


def spaced(low: int, high: int, count: int = 60) -> list[int]:
    """Whole numbers from `low` to `high`, evenly on a logarithmic axis, each once."""
    return sorted({round(value) for value in np.geomspace(low, high, count)} | {low, high})


# Against batch -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class StepCurves:
    """Decode steps at one context against batch; times in seconds.

    Attributes:
      context: tokens in the cache of each sequence.
      batches: sequences.
      weights: reading them, at the floor; so are the next three.
      kv_cache: reading and writing it.
      compute: arithmetic.
      communication: collectives.
      floor: the largest of memory, compute and communication.
      expected: expected time.
      fits_to: the largest batch that fits in memory, 0 if none does.
      takeover: the batch from which compute takes longer than memory; None if none does.
      limit: seconds of floor per sequence that no batch gets below.
    """

    context: int
    batches: np.ndarray
    weights: np.ndarray
    kv_cache: np.ndarray
    compute: np.ndarray
    communication: np.ndarray
    floor: np.ndarray
    expected: np.ndarray
    fits_to: int
    takeover: int | None
    limit: float

    @property
    def memory(self) -> np.ndarray:
        """Seconds for weights and cache."""
        return self.weights + self.kv_cache

    def at(self, name: str, batch: int) -> float:
        """A curve's value between the batches that it has."""
        return float(np.interp(batch, self.batches, getattr(self, name)))


def step_curves(estimator: Estimator, context: int, batches: Sequence[int]) -> StepCurves:
    """Decode steps of these batches at one context."""
    steps = [estimator.decode(batch, context) for batch in batches]
    floors = [step.floor for step in steps]
    return StepCurves(
        context=context,
        batches=np.array(batches),
        weights=np.array([floor.weights for floor in floors]),
        kv_cache=np.array([floor.kv_cache for floor in floors]),
        compute=np.array([floor.compute for floor in floors]),
        communication=np.array([floor.communication or 0.0 for floor in floors]),
        floor=np.array([floor.seconds for floor in floors]),
        expected=np.array([step.expected.seconds for step in steps]),
        fits_to=largest_batch(estimator, context),
        takeover=takeover(estimator, context),
        limit=limit(estimator, context),
    )


def takeover(estimator: Estimator, context: int) -> int | None:
    """The least batch whose arithmetic takes longer than its memory, both at the floor.

    For a dense model weights / (compute - KV cache), in seconds of which the last two are per
    sequence. None where the cache of another sequence takes as long as its arithmetic or longer.
    """

    def computes(batch: int) -> bool:
        floor = estimator.quick(Pass(batch, context)).floor
        return floor.compute >= floor.memory

    if not computes(_MANY):
        return None
    low, high = 0, _MANY
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if computes(middle) else (middle, high)
    return high


def limit(estimator: Estimator, context: int) -> float:
    """Seconds of floor per sequence as batches grow: the largest of three slopes."""
    links = estimator.decode(_MANY, context).floor.communication or 0.0
    return max(slopes(estimator, context).limit, links / _MANY)


@dataclasses.dataclass(frozen=True)
class Unit:
    """What a cost is in.

    Attributes:
      chips: how many are paid for.
      price: what a chip-hour costs; None where that is not known, and chip-seconds stand for it.
    """

    chips: int
    price: Price | None

    @property
    def name(self) -> str:
        """Of an axis."""
        return "chip-seconds per token" if self.price is None else "USD per million tokens"

    def cost(self, seconds: np.ndarray | float, batch: np.ndarray | float) -> np.ndarray | float:
        """Of a token, at so many seconds per step of so many sequences."""
        chip_seconds = self.chips * seconds / batch
        return chip_seconds if self.price is None else chip_seconds * self.price.usd / 3600 * 1e6


# Against chips -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ChipCurve:
    """Decode steps of one batch and context on slices of more and more chips; times in seconds.

    Attributes:
      name: of the layout, or of what it was chosen by.
      chips: of each slice.
      floor: of its step.
      expected: expected time.
      fits: whether weights and cache fit.
      layouts: what was chosen on each.
    """

    name: str
    chips: np.ndarray
    floor: np.ndarray
    expected: np.ndarray
    fits: np.ndarray
    layouts: list[str]


def chip_curve(name: str, estimators: Sequence[Estimator], step: Pass) -> ChipCurve:
    """The same step by each of these estimators, one for each slice."""
    steps = [estimator.estimate(step) for estimator in estimators]
    return ChipCurve(
        name=name,
        chips=np.array([step.deployment.slice.chips for step in steps]),
        floor=np.array([step.floor.seconds for step in steps]),
        expected=np.array([step.expected.seconds for step in steps]),
        fits=np.array([step.fits for step in steps]),
        layouts=[layout_words(estimator) for estimator in estimators],
    )


def ideal_weight_read(estimator: Estimator, chips: Sequence[int]) -> np.ndarray:
    """Seconds to read one copy of all weights divided evenly over so many chips.

    Args:
      estimator: on one device, or in a layout that copies nothing.
      chips: numbers of them.
    """
    deployment = estimator.deployment
    chip_seconds = slopes(estimator, 0).weights * deployment.slice.chips
    return chip_seconds / np.array(chips)


def layout_words(estimator: Estimator) -> str:
    """Layout, attention and mesh in a few words."""
    deployment = estimator.deployment
    if deployment.layout is None:
        return "divided evenly over the chips"
    mesh = "x".join(str(size) for size in deployment.mesh.values())
    return f"{deployment.layout.name}, attention by {deployment.layout.attends}, mesh {mesh}"


# Cost against latency ----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Tradeoff:
    """Latency and cost on one slice, over batches that fit.

    Attributes:
      topology: the slice.
      batches: sequences.
      expected: seconds per step.
      expected_cost: of a token, as `Unit` has it.
      floor: seconds per step.
      floor_cost: of a token.
      layouts: what is expected to be fastest at each batch.
    """

    topology: str
    batches: np.ndarray
    expected: np.ndarray
    expected_cost: np.ndarray
    floor: np.ndarray
    floor_cost: np.ndarray
    layouts: list[str]


def tradeoff(estimators: Mapping[int, Estimator], context: int) -> Tradeoff:
    """Latency and cost of each batch with the estimator that was chosen for it; all of a slice."""
    steps = [estimator.decode(batch, context) for batch, estimator in estimators.items()]
    deployment = steps[0].deployment
    unit = Unit(deployment.slice.chips, deployment.price)
    batches = np.array(list(estimators))
    expected = np.array([step.expected.seconds for step in steps])
    floor = np.array([step.floor.seconds for step in steps])
    return Tradeoff(
        topology=str(deployment.slice),
        batches=batches,
        expected=expected,
        expected_cost=unit.cost(expected, batches),
        floor=floor,
        floor_cost=unit.cost(floor, batches),
        layouts=[layout_words(estimator) for estimator in estimators.values()],
    )


def front(latency: Sequence[float], cost: Sequence[float]) -> list[int]:
    """Places of the points that no other point beats in one of the two and equals in the other.

    In order of rising latency, so of falling cost.
    """
    found: list[int] = []
    for place in sorted(range(len(latency)), key=lambda i: (latency[i], cost[i])):
        if not found or cost[place] < cost[found[-1]]:
            found.append(place)
    return found


# Critical batch against sparsity -----------------------------------------------------------------


def weight_bytes(dtypes: Dtypes) -> float:
    """Bytes of one number of a large matrix, scales included."""
    if not isinstance(dtypes.weights, Quantization):
        return float(dtypes.weights.itemsize)
    arrays = jax.tree.leaves(dtypes.weights.abstract((1, _SCALED_INPUTS), outputs=1))
    return sum(map(stored_bytes, arrays)) / _SCALED_INPUTS


def dense_batch(estimator: Estimator) -> float:
    """The rule's critical batch of a dense model: peak * bytes per weight / (2 * bandwidth)."""
    peaks = estimator.peaks
    return peaks.flops * weight_bytes(estimator.deployment.dtypes) / (2 * peaks.bandwidth)


def sparsity(estimator: Estimator) -> float:
    """Parameters over those that one token meets."""
    counted = estimator.counter.parameters
    return counted["total"] / counted["active"]


# Communication against tokens --------------------------------------------------------------------


def layer_bytes(
    config: ModelConfig, placement: Placement, dtypes: Dtypes, *, batch: int, tokens: int
) -> float:
    """Bytes that a chip sends for one layer of a pass, as Pope et al. 2022 count them.

    An all-gather or reduce-scatter counts its larger side; an all-reduce counts as one of each; the
    share of a chip's own, 1/n, is not taken off.
    """
    listed = expected_collectives(config, placement, dtypes, batch=batch, tokens=tokens)
    sent = 0.0
    for each in listed:
        if each.where.startswith("layer"):
            times = 2 if each.kind == "all-reduce" else 1
            sent += times * each.count * each.payload_bytes
    return sent / config.layers


@dataclasses.dataclass(frozen=True)
class Volumes:
    """Bytes that a chip sends for one layer of a prefill, by layout.

    Attributes:
      batch: prompts; their length makes the tokens.
      mesh: sizes of x, y and z.
      tokens: of all prompts together.
      sent: bytes by name of the layout, one for each number of tokens.
    """

    batch: int
    mesh: Mapping[str, int]
    tokens: np.ndarray
    sent: Mapping[str, np.ndarray]

    @property
    def best(self) -> list[str]:
        """The layout that sends least, for each number of tokens."""
        names = list(self.sent)
        least = np.argmin([self.sent[name] for name in names], axis=0)
        return [names[place] for place in least]

    def begins(self) -> dict[str, int]:
        """The number of tokens from which each layout is best, of those that ever are, in order."""
        found: dict[str, int] = {}
        for name, tokens in zip(self.best, self.tokens.tolist(), strict=True):
            found.setdefault(name, tokens)
        return found


def volumes(
    config: ModelConfig, placements: Sequence[Placement], dtypes: Dtypes, lengths: Sequence[int]
) -> Volumes:
    """Bytes sent by layouts on one mesh, for as many prompts as all of them divide.

    Args:
      config: the model.
      placements: the layouts on the mesh.
      dtypes: how its numbers are stored.
      lengths: tokens of each prompt, at least 2.
    """
    batch = math.lcm(*(placement.multiple("B") for placement in placements))
    sent = {
        placement.layout.name: np.array(
            [layer_bytes(config, placement, dtypes, batch=batch, tokens=each) for each in lengths]
        )
        for placement in placements
    }
    return Volumes(batch, placements[0].mesh, batch * np.array(lengths), sent)
