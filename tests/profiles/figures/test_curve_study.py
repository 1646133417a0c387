"""What is chosen for curves: layouts, slices, models."""

import dataclasses

import jax.numpy as jnp
import pytest

from model.catalog import find_model
from model.dtypes import BFLOAT16, Dtypes
from profiles.chips.calibration import calibration_of
from profiles.chips.chip import Price
from profiles.chips.slices import parse_slice
from profiles.expected.balance import critical_batch
from profiles.expected.candidates import LayoutNames, candidates
from profiles.expected.estimate import best, ranked
from profiles.figures.study import MODELS, Study, StudyOptions
from profiles.floor.deployment import Deployment
from profiles.floor.passes import Pass
from profiles.floor.sized_models import sized_models
from sharding.error_types import LayoutError, UsageError
from sharding.quantization import QUANTIZATIONS
from tests.profiles.sized import WINDOWED

EVERY = LayoutNames().layouts(find_model("llama3-8b"))


def deployment(model="llama3-8b", topology="v5e:2x2", price: float | None = 1.5) -> Deployment:
    slice = parse_slice(topology)
    known = sized_models() | {WINDOWED.name: WINDOWED}
    config = known.get(model) or find_model(model)
    calibration = calibration_of(slice.chip.name)
    return Deployment(
        model=config,
        slice=slice,
        dtypes=BFLOAT16,
        calibration=calibration,
        price=price and Price(price),
    )


def study(model="llama3-8b", topology="v5e:2x2", **more) -> Study:
    sizes = {"batches": (1, 16, 256), "contexts": (1024, 0), "max_chips": 8, "chips_batch": 16}
    price = more.pop("price", 1.5)
    named = {name: more.pop(name) for name in ("layout", "attention") if name in more}
    sizes |= {"names": LayoutNames(**named)}
    return Study(StudyOptions(deployment=deployment(model, topology, price), **sizes | more))


@pytest.fixture(scope="module")
def small() -> Study:
    return study()


def test_as_many_as_asked_for_are_ranked_as_if_all_were_looked_at():
    found = candidates(deployment(topology="v5e:2x2"), EVERY)
    steps = [Pass(16, 2048)]
    every = ranked(found, steps, count=len(found))
    seconds = [each.quick(steps[0], links=True).expected.seconds for each in every]
    assert len(every) == len(found) and seconds == sorted(seconds)
    assert ranked(found, steps, count=3) == every[:3]


@pytest.mark.parametrize("passes", [[Pass(1, 100)], [Pass(3, 8192), Pass(700, 10)]])
def test_the_best_is_the_best_of_all_though_not_all_are_looked_at(passes):
    found = candidates(deployment(topology="v5e:2x4"), EVERY)
    steps = [[each.estimate(one) for one in passes] for each in found]
    ranks = [
        (sum(not s.fits for s in all_), sum(s.expected.seconds for s in all_)) for all_ in steps
    ]
    assert best(found, passes) is found[ranks.index(min(ranks))]


def test_the_chosen_layout_is_no_slower_than_one_that_is_named(small):
    named = study(layout="weight_stationary_2d", attention="heads").estimator
    fitting = [b for b in (1, 16, 256) if small.estimator.decode(b, 1024).fits]
    times = [sum(e.decode(b, 1024).expected.seconds for b in fitting)
             for e in (small.estimator, named)]  # fmt: skip
    assert times[0] <= times[1] and named.deployment.layout.name == "weight_stationary_2d"


def test_of_a_mixture_layouts_that_divide_experts_are_tried_too():
    dtypes = Dtypes(jnp.bfloat16, QUANTIZATIONS["int8"])
    mixture = dataclasses.replace(deployment("qwen3-30b-a3b", "v5p:2x2x2"), dtypes=dtypes)
    found = Study(StudyOptions(deployment=mixture, batches=(64,), contexts=(2048,)))
    assert found.estimator.deployment.layout.expert_parallel


def test_a_mesh_that_is_given_is_kept_and_one_of_another_size_refused():
    mesh = {"x": 2, "y": 1, "z": 2}
    assert study(mesh=mesh).estimator.deployment.mesh == mesh
    with pytest.raises(LayoutError, match="product is 4"):
        study(mesh={"x": 1, "y": 1, "z": 2})


def test_curves_have_no_batch_between_those_that_a_layout_divides():
    found = study(attention="batch")
    one = found.estimator.padded(1)
    assert one > 1 and all(b < one or b % one == 0 for b in found.batches)
    assert found.batches[0] == 1 and found.batches[-1] == 256


def test_steps_of_every_context_come_in_the_order_given(small):
    assert [curves.context for curves in small.steps] == [1024, 0]


def test_layouts_are_compared_on_slices_of_rising_size(small):
    found = small.scaling()
    assert [curve.name for curve in found.curves][-1].startswith("fastest")
    one, two, fastest = found.curves
    assert one.chips.tolist() == two.chips.tolist() == [1, 4, 8] == list(found.ideal)
    assert (fastest.expected <= one.expected).all() and (fastest.expected <= two.expected).all()
    assert "mesh 2x" in two.layouts[-1]  # a division of d_model, not 1D by another name


def test_costs_and_latencies_are_of_batches_that_fit():
    found = study("llama2-13b").tradeoffs()
    assert [each.topology for each in found.slices] == ["v5e:2x2", "v5e:2x4"]
    assert "v5e:1x1" in found.notes[0] and "USD" in found.unit
    beaten = dict.fromkeys(topology for topology, _ in found.front)
    assert set(beaten) <= {"v5e:2x2", "v5e:2x4"} and found.front[-1][1] > found.front[0][1]
    assert [each.batches.tolist() for each in found.slices] == [[1, 16], [1, 16]]


def test_slices_of_another_chip_have_its_price_and_rates():
    def other(slice):
        return dataclasses.replace(deployment(topology=str(slice)), price=Price(7.0))

    slices = tuple(map(parse_slice, ("v5e:2x2", "h100:1")))
    found = study(slices=slices, on_slice=other)
    assert [each.deployment.price.usd for each in found.compared()] == [1.5, 7.0]
    assert [each.topology for each in found.tradeoffs().slices] == ["v5e:2x2", "h100:1"]
    unpriced = study(slices=slices, on_slice=lambda w: deployment(topology=str(w), price=None))
    with pytest.raises(UsageError, match="price of h100 is not known"):
        unpriced.tradeoffs()


def test_models_beside_the_chosen_one_are_at_their_exact_sizes(small):
    found = small.sparsities()
    assert list(found.models) == ["llama3-8b", *MODELS]
    assert found.models["llama3-8b"][1] == pytest.approx(critical_batch(small.estimator), rel=0.01)
    sparse = [ratio for ratio, _ in found.models.values()]
    assert max(sparse) > 20 and sparse[0] == pytest.approx(1, abs=0.1)


def test_layouts_of_prompts_are_compared_on_the_most_cubic_mesh():
    found = study(topology="v5e:2x4").volumes()
    assert found.mesh == {"x": 2, "y": 2, "z": 2} and len(found.sent) == 5
    assert found.tokens[-1] <= 2**21


@pytest.mark.parametrize(
    ("model", "topology"), [("deepseek-v3-even", "h200:8"), ("tiny", "h100:1")]
)
def test_communication_is_left_out_where_there_is_none_to_count(model, topology):
    assert study(model, topology).volumes() is None


def test_a_model_known_by_its_sizes_is_divided_evenly():
    found = study(WINDOWED.name, "h200:8").scaling()
    assert [curve.name for curve in found.curves] == ["divided evenly"]
