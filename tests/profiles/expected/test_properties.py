"""What must hold of every deployment, tried on 100 that are drawn at random from a seed.

The slow set has 100 more.

Settings are drawn from the catalogue, slices of every kind, layouts, attention, schedules, meshes,
types and phases; a drawing that is refused is drawn again.
"""

import functools
import itertools
import random
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest

from model.cache import abstract_cache, cache_axes
from model.catalog import CATALOG
from model.config import ModelConfig
from model.declarations import declarations, matrices
from model.dtypes import Dtypes
from model.transformer import Transformer
from profiles.chips.calibration import calibration_of
from profiles.chips.chip import Price
from profiles.chips.slices import Slice, parse_slice
from profiles.expected.candidates import meshes
from profiles.expected.estimate import Estimate, Estimator
from profiles.floor.alike_layers import alike_layers
from profiles.floor.bytes_and_flops import PassCounter
from profiles.floor.deployment import Deployment
from profiles.floor.passes import Pass
from profiles.plan.space import Space
from sharding.catalog import (
    ATTENTION,
    COLLECTIVES,
    LAYOUTS,
    attend_by,
    divide_experts,
    prefill_by,
    schedule_by,
)
from sharding.error_types import LayoutError
from sharding.layout import Layout
from sharding.placement import Placement, division, shards
from sharding.quantization import QUANTIZATIONS

COUNT = 100
SLICES = (
    "v3:2x2", "v4:2x2x2", "v4:2x2x4", "v5e:1x1", "v5e:2x2", "v5e:2x4", "v5e:4x4", "v5p:2x2x2",
    "v5p:2x2x4", "v6e:2x4", "v6e:4x4", "tpu7x:2x2x1", "a100-80gb:4", "h100:1", "h100:8", "h100:16",
    "h200:4", "b200:8", "gb200:36", "l4:2", "mi300x:8",
)  # fmt: skip
ALONE = {"x": 1, "y": 1, "z": 1}
BFLOAT16 = jnp.bfloat16
WEIGHTS = (BFLOAT16, BFLOAT16, jnp.float32, *QUANTIZATIONS.values())
CACHES = (BFLOAT16, BFLOAT16, QUANTIZATIONS["int8"], QUANTIZATIONS["fp8"])
MODELS = [entry.config for name, entry in CATALOG.items() if name != "tiny"]


class Drawn(NamedTuple):
    """A setting, and the sizes of a pass of it."""

    estimator: Estimator
    batch: int
    context: int
    prefill: bool

    def at(self, batch: int, context: int) -> Estimate:
        """The pass at other sizes."""
        ask = self.estimator.prefill if self.prefill else self.estimator.decode
        return ask(batch, context)

    def __str__(self) -> str:
        deployment, layout = self.estimator.deployment, self.estimator.deployment.layout
        mesh = "x".join(map(str, deployment.mesh.values()))
        return (
            f"{deployment.model.name} {deployment.slice} {mesh} {layout.name} {layout.attends} "
            f"{layout.collectives} {deployment.dtypes} {'prefill' if self.prefill else 'decode'} "
            f"{self.batch} {self.context}"
        )


def _layout(draw: random.Random, experts: bool) -> Layout:
    layout = attend_by(draw.choice(list(LAYOUTS.values())), draw.choice(ATTENTION))
    alike = [other for other in LAYOUTS.values() if other.weights == layout.weights]
    if draw.random() < 0.3:
        layout = prefill_by(layout, draw.choice(alike))
    if experts and draw.random() < 0.5:
        layout = divide_experts(layout)
    return schedule_by(layout, draw.choice(COLLECTIVES))


def _drawn(draw: random.Random, slice: Slice) -> Drawn:
    while True:
        model = draw.choice(MODELS)
        deployment = Deployment(
            model=model,
            slice=slice,
            dtypes=Dtypes(BFLOAT16, draw.choice(WEIGHTS), draw.choice(CACHES)),
            calibration=calibration_of(slice.chip.name),
            layout=_layout(draw, bool(model.experts)),
            mesh=draw.choice(meshes(slice.devices)),
            experts=draw.choice(("coverage", "least", "all")),
            price=Price(1.0),
        )
        try:
            estimator = Estimator(deployment)
        except LayoutError:
            continue
        context = draw.randint(2, min(model.max_context, 16_384) - 2)
        return Drawn(estimator, draw.randint(1, 256), context, draw.random() < 0.4)


both = pytest.mark.parametrize("seed", [20261129, pytest.param(1, marks=pytest.mark.slow)])


@functools.cache
def _all(seed: int) -> list[Drawn]:
    draw = random.Random(seed)
    slices = itertools.islice(itertools.cycle(map(parse_slice, SLICES)), COUNT)
    return [_drawn(draw, slice) for slice in slices]


@both
def test_settings_are_of_every_kind(seed):
    kinds = [str(drawn).split() for drawn in _all(seed)]
    assert {kind[3] for kind in kinds} == set(LAYOUTS)
    assert {kind[4] for kind in kinds} == set(ATTENTION)
    assert {kind[1] for kind in kinds} == set(SLICES)
    assert 30 < sum(drawn.prefill for drawn in _all(seed)) < 70


@both
def test_no_floor_is_above_what_is_expected(seed):
    for drawn in _all(seed):
        found = drawn.at(drawn.batch, drawn.context)
        assert 0 < found.floor.seconds <= found.expected.seconds, drawn


@both
def test_no_more_is_read_than_lies_there(seed):
    for drawn in _all(seed):
        traffic = drawn.at(drawn.batch, drawn.context).counts
        assert 0 < traffic.weights_read <= traffic.weights_resident * (1 + 1e-12), drawn
        most = traffic.kv_resident * (1 + 1e-12)
        read = most * _readers(drawn.estimator.deployment.model)
        assert 0 <= traffic.kv_read <= read and 0 < traffic.kv_written <= most, drawn


def _readers(model: ModelConfig) -> float:
    """Layers that read a cache for each that has one, at the most: more where some borrow."""
    return max(each.count / each.writing for each in alike_layers(model))


@both
def test_all_devices_together_hold_and_compute_at_least_what_one_would(seed):
    for drawn in _all(seed):
        deployment, context = drawn.estimator.deployment, drawn.context
        placement = Placement.of(LAYOUTS["weight_stationary_1d"], deployment.model.sizes, ALONE)
        costs = PassCounter(deployment.model, placement, deployment.dtypes)
        pass_ = Pass(drawn.batch, 0, context) if drawn.prefill else Pass(drawn.batch, context)
        one = costs.count(pass_, deployment.experts)
        many = drawn.at(drawn.batch, context).counts
        for name in ("weights_resident", "kv_resident", "kv_read", "kv_written", "flops"):
            copies = deployment.slice.devices * getattr(many, name) / max(getattr(one, name), 1)
            assert copies >= 1 - 1e-9 or not getattr(one, name), (name, drawn)


@both
def test_more_sequences_and_tokens_never_take_less(seed):
    for drawn in _all(seed):
        passes = [drawn.at(drawn.batch, drawn.context)]
        passes.append(drawn.at(drawn.batch + 7, drawn.context))
        passes.append(drawn.at(drawn.batch + 7, drawn.context + 100))
        for less, more in itertools.pairwise(passes):
            assert less.floor.seconds <= more.floor.seconds * (1 + 1e-9), drawn
            assert less.expected.seconds <= more.expected.seconds * (1 + 1e-9), drawn
            assert less.counts.held <= more.counts.held * (1 + 1e-9), drawn


@both
@pytest.mark.parametrize("third", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))])
def test_plans_take_as_long_as_estimates(third, seed):
    """But where sequences look up more rows of the embedding than it has: plans count them all."""
    draw = random.Random(7)
    for drawn in _all(seed)[third::3]:
        deployment = drawn.estimator.deployment
        space = Space(
            model=deployment.model,
            slices=((deployment.slice, Price(1.0)),),
            dtype_sets=(deployment.dtypes,),
            layouts=(deployment.layout,),
            calibration=calibration_of,
            context=drawn.context,
            slots=drawn.context + 1,
            experts=deployment.experts,
        )
        (cell,) = space.cells
        number = draw.randrange(len(cell.rows))
        steps = cell.steps[number]
        for place in (0, 4, -1):
            if batch := int(cell.batches[number][place]):
                found = cell.estimate(number, batch)
                assert found.fits, drawn
                near = 1e-9 if batch <= deployment.model.vocabulary else 1e-3
                assert found.expected.seconds == pytest.approx(steps[place], rel=near), drawn


@both
def test_what_is_admitted_divides_every_array_of_the_engine(seed):
    """Shapes are refused by JAX where a mesh axis does not divide a dimension evenly."""
    for drawn in _all(seed):
        deployment, placement = drawn.estimator.deployment, drawn.estimator.placement
        config = deployment.model.one_of_each()
        model = Transformer(config, deployment.dtypes)
        for path, param in declarations(model).items():
            for each in (placement, placement.prefill):
                for spec in (each.weights(param.axes), each.use(param.axes)):
                    _check_even(param.shape, spec, placement, (path, drawn))
        for path, matrix in matrices(model).items():
            group = deployment.dtypes.quantization.group_of(matrix.shape[-1]) or 1
            parts = shards(division(placement.weights(matrix.axes))[-1], placement.mesh)
            assert matrix.shape[-1] % (parts * group) == 0, (path, drawn)
        batch, multiple = drawn.estimator.padded(drawn.batch), placement.multiple("S")
        cache = abstract_cache(config, batch, drawn.context + 1, deployment.dtypes, multiple)
        for array, axes in zip(
            *map(jax.tree.leaves, (cache, cache_axes(cache, config))), strict=True
        ):
            _check_even(array.shape, placement.cache(axes), placement, drawn)


def _check_even(shape: tuple[int, ...], spec: jax.P, placement: Placement, what: object) -> None:
    for size, axes in zip(shape, division(spec), strict=True):
        assert size == 1 or size % shards(axes, placement.mesh) == 0, what
