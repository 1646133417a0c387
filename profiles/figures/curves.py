"""Data of the figures: time and cost against batch, chips and sparsity, bytes sent per layout.

Pure functions from estimators to arrays, in seconds and bytes; they are drawn in
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
"""A rule of thumb for chips of 2023 to 2025: 300 FLOPs per byte, an eighth of a model active."""
_MANY = 2**40  # sequences; all terms that do not grow with them are negligible then
_SCALED_INPUTS = 8192  # inputs per output of a large matrix, which share its scales


def spaced(low: int, high: int, count: int = 60) -> list[int]:
    """Distinct integers from `low` to `high`, evenly spaced on a logarithmic axis."""
    return sorted({round(value) for value in np.geomspace(low, high, count)} | {low, high})


# Against batch -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class StepCurves:
    """Decode steps at one context against batch; times in seconds.

    Attributes:
      context: tokens in the cache of each sequence.
      batches: numbers of sequences; the curves have one value for each.
      weights: time to read the weights, at the floor.
      kv_cache: time to read and write the KV cache, at the floor.
      compute: time of arithmetic, at the floor.
      communication: time of collectives, at the floor.
      floor: the largest of memory, compute and communication.
      expected: expected time.
      fits_to: the largest batch that fits in memory, 0 if none does.
      takeover: the batch from which compute takes longer than memory; None if it never does.
      limit: lowest floor per sequence that large batches approach.
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
        """Seconds to read weights and to read and write the cache."""
        return self.weights + self.kv_cache

    def at(self, name: str, batch: int) -> float:
        """A curve's value at any batch, interpolated."""
        return float(np.interp(batch, self.batches, getattr(self, name)))


def step_curves(estimator: Estimator, context: int, batches: Sequence[int]) -> StepCurves:
    """Curves of decode steps of these batches at one context."""
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
    """The smallest batch at which compute takes longer than memory, both at the floor.

    For a dense model it is weights / (compute - KV cache), in seconds, the last two per sequence.
    None where the cache of a sequence takes at least as long as its arithmetic.
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
    """The limit of floor over batch as batches grow: the largest of three slopes, in seconds."""
    links = estimator.decode(_MANY, context).floor.communication or 0.0
    return max(slopes(estimator, context).floor_per_token, links / _MANY)


@dataclasses.dataclass(frozen=True)
class Unit:
    """The unit of a cost.

    Attributes:
      chips: number of chips that are paid for.
      price: price of a chip-hour; None where it is not known, so that costs are in chip-seconds.
    """

    chips: int
    price: Price | None

    @property
    def name(self) -> str:
        """The unit's name, for an axis."""
        return "chip-seconds per token" if self.price is None else "USD per million tokens"

    def cost(self, seconds: np.ndarray | float, batch: np.ndarray | float) -> np.ndarray | float:
        """Cost of a token, if a step of `batch` sequences takes so many seconds."""
        chip_seconds = self.chips * seconds / batch
        return chip_seconds if self.price is None else chip_seconds * self.price.usd / 3600 * 1e6


# Against chips -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ChipCurve:
    """Decode steps of one batch and context on slices of rising size; times in seconds.

    Attributes:
      name: name of the layout, or of the rule that chose one on each slice.
      chips: number of chips of each slice.
      floor: floor of the step on each slice.
      expected: expected time of the step on each slice.
      fits: whether weights and cache fit on each slice.
      layouts: words for the layout on each slice.
    """

    name: str
    chips: np.ndarray
    floor: np.ndarray
    expected: np.ndarray
    fits: np.ndarray
    layouts: list[str]


def chip_curve(name: str, estimators: Sequence[Estimator], step: Pass) -> ChipCurve:
    """The curve of a step over slices, with one estimator for each slice."""
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
      estimator: the model on one device, or in a layout that replicates nothing.
      chips: numbers of chips.
    """
    deployment = estimator.deployment
    chip_seconds = slopes(estimator, 0).weights * deployment.slice.chips
    return chip_seconds / np.array(chips)


def layout_words(estimator: Estimator) -> str:
    """Layout, attention and mesh of an estimator in words."""
    deployment = estimator.deployment
    if deployment.layout is None:
        return "divided evenly over the chips"
    mesh = "x".join(str(size) for size in deployment.mesh.values())
    return f"{deployment.layout.name}, attention by {deployment.layout.attends}, mesh {mesh}"


# Cost against latency ----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Tradeoff:
    """Latency and cost on one slice, for all batches that fit.

    Attributes:
      topology: the slice.
      batches: numbers of sequences; the arrays have one value for each.
      expected: expected seconds per step.
      expected_cost: expected cost of a token, in the unit that `Unit` names.
      floor: floor of a step in seconds.
      floor_cost: cost of a token at the floor.
      layouts: words for the layout that is expected to be fastest at each batch.
    """

    topology: str
    batches: np.ndarray
    expected: np.ndarray
    expected_cost: np.ndarray
    floor: np.ndarray
    floor_cost: np.ndarray
    layouts: list[str]


def tradeoff(estimators: Mapping[int, Estimator], context: int) -> Tradeoff:
    """Latency and cost on a slice, with the estimator that was chosen for each batch."""
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
    """Indices of the Pareto front: no other point is better in one value and as good in the other.

    They are in order of rising latency, and so of falling cost.
    """
    indices: list[int] = []
    for index in sorted(range(len(latency)), key=lambda i: (latency[i], cost[i])):
        if not indices or cost[index] < cost[indices[-1]]:
            indices.append(index)
    return indices


# Critical batch against sparsity -----------------------------------------------------------------


def weight_bytes(dtypes: Dtypes) -> float:
    """Bytes of one number of a large matrix, scales included."""
    if not isinstance(dtypes.weights, Quantization):
        return float(dtypes.weights.itemsize)
    arrays = jax.tree.leaves(dtypes.weights.abstract((1, _SCALED_INPUTS), outputs=1))
    return sum(map(stored_bytes, arrays)) / _SCALED_INPUTS


def dense_batch(estimator: Estimator) -> float:
    """Critical batch of a dense model by the rule peak * bytes per weight / (2 * bandwidth)."""
    peaks = estimator.peaks
    return peaks.flops * weight_bytes(estimator.deployment.dtypes) / (2 * peaks.bandwidth)


def sparsity(estimator: Estimator) -> float:
    """Total over active parameters."""
    counted = estimator.counter.parameters
    return counted["total"] / counted["active"]


# Communication against tokens --------------------------------------------------------------------


def layer_bytes(
    config: ModelConfig, placement: Placement, dtypes: Dtypes, *, batch: int, tokens: int
) -> float:
    """Bytes that a chip sends for one layer of a pass, as Pope et al. 2022 count them.

    An all-gather or reduce-scatter counts its larger side, and an all-reduce counts as one of each.
    The 1/n of it that a chip already has is not subtracted.
    """
    listed = expected_collectives(config, placement, dtypes, batch=batch, tokens=tokens)
    sent = 0.0
    for each in listed:
        if each.in_layers:
            times = 2 if each.kind == "all-reduce" else 1
            sent += times * each.count * each.payload_bytes
    return sent / config.layers


@dataclasses.dataclass(frozen=True)
class Volumes:
    """Bytes that a chip sends for one layer of a prefill, by layout.

    Attributes:
      batch: number of prompts, whose length varies.
      mesh: sizes of x, y and z.
      tokens: numbers of tokens of all prompts together.
      sent: by name of the layout, the bytes for each number of tokens.
    """

    batch: int
    mesh: Mapping[str, int]
    tokens: np.ndarray
    sent: Mapping[str, np.ndarray]

    @property
    def best(self) -> list[str]:
        """The layout that sends least, for each number of tokens."""
        names = list(self.sent)
        indices = np.argmin([self.sent[name] for name in names], axis=0)
        return [names[index] for index in indices]

    def begins(self) -> dict[str, int]:
        """The first number of tokens at which each layout sends least, for those that ever do."""
        first: dict[str, int] = {}
        for name, tokens in zip(self.best, self.tokens.tolist(), strict=True):
            first.setdefault(name, tokens)
        return first


def volumes(
    config: ModelConfig, placements: Sequence[Placement], dtypes: Dtypes, lengths: Sequence[int]
) -> Volumes:
    """Bytes that layouts on one mesh send, for the smallest batch of prompts that all can divide.

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
