"""Curves of steps against closed forms."""

import dataclasses
import itertools

import numpy as np
import pytest

from model.catalog import find_model
from model.dtypes import BFLOAT16, Dtypes
from profiles.chips.calibration import calibration_of
from profiles.chips.chip import Price
from profiles.chips.slices import parse_slice
from profiles.expected.balance import balanced_context, critical_batch, slopes
from profiles.expected.estimate import Estimator
from profiles.figures.curves import (
    Unit,
    Volumes,
    chip_curve,
    dense_batch,
    front,
    ideal_weight_read,
    layer_bytes,
    limit,
    spaced,
    sparsity,
    step_curves,
    takeover,
    tradeoff,
    volumes,
)
from profiles.floor.deployment import Deployment
from profiles.floor.passes import Pass
from profiles.floor.sized_models import sized_models
from sharding.catalog import LAYOUTS
from sharding.mesh import parse_mesh
from sharding.placement import Placement
from sharding.quantization import QUANTIZATIONS


def estimator(model="llama3-8b", topology="v5e:2x2", layout="weight_stationary_1d", **changes):
    slice = parse_slice(topology)
    sized = sized_models().get(model)
    deployment = Deployment(
        model=sized or find_model(model),
        slice=slice,
        dtypes=BFLOAT16,
        calibration=calibration_of(slice.chip.name),
        layout=None if sized else LAYOUTS[layout],
        mesh=None if sized else {"x": 1, "y": 1, "z": slice.devices},
        price=Price(1.5),
    )
    return Estimator(dataclasses.replace(deployment, **changes))


@pytest.fixture(scope="module")
def four():
    return estimator()


def test_batches_are_whole_rise_and_have_both_ends():
    found = spaced(1, 4096, 60)
    assert found[0] == 1 and found[-1] == 4096 and found == sorted(set(found))
    assert all(isinstance(each, int) for each in found)
    assert max(two / one for one, two in itertools.pairwise(found[20:])) < 1.25


def test_the_floor_is_the_largest_of_straight_lines(four):
    curves = step_curves(four, 1024, [1, 10, 100, 1000])
    lines = slopes(four, 1024)
    np.testing.assert_allclose(curves.weights, lines.weights, rtol=1e-3)  # but for looked-up rows
    np.testing.assert_allclose(curves.kv_cache, lines.kv_cache * curves.batches)
    np.testing.assert_allclose(curves.compute, lines.compute * curves.batches)
    largest = np.max([curves.memory, curves.compute, curves.communication], axis=0)
    np.testing.assert_array_equal(curves.floor, largest)
    assert (curves.expected > curves.floor).all()


@pytest.mark.parametrize("context", [0, 64, 256])
def test_compute_takes_over_where_the_lines_cross(four, context):
    lines = slopes(four, context)
    crossing = lines.weights / (lines.compute - lines.kv_cache)
    found = takeover(four, context)
    assert found == pytest.approx(crossing, abs=1.01, rel=1e-3)
    after, before = (four.decode(batch, context).floor for batch in (found, found - 1))
    assert after.compute >= after.memory and before.compute < before.memory


def test_from_the_balanced_context_compute_never_takes_over(four):
    balanced = int(balanced_context(four))
    assert takeover(four, balanced) is None
    assert takeover(four, balanced - 1) > 10 * takeover(four, 0)


def test_compute_takes_over_later_in_a_sparse_model():
    dense, sparse = (
        takeover(estimator(name, "h100:8"), 0) for name in ("llama3-8b", "mixtral-8x7b")
    )
    assert 3 < sparse / dense < 4  # 8 experts, two of them used, and attention that all use


@pytest.mark.parametrize("context", [0, 4096])
def test_cost_falls_to_its_limit_and_not_below(four, context):
    unit, bound = Unit(4, Price(1.5)), limit(four, context)
    batches = np.array([1, 64, 4096, 10**7])
    curves = step_curves(four, context, batches.tolist())
    costs = unit.cost(curves.floor, batches)
    floor_cost = unit.cost(bound, 1)
    assert (np.diff(costs[:3]) < 0).all() and (costs >= floor_cost * (1 - 1e-9)).all()
    assert costs[-1] == pytest.approx(floor_cost, rel=1e-3)


def test_the_limit_is_communication_where_links_are_slowest():
    slow = parse_slice("v5e:2x2")
    slow = dataclasses.replace(slow, chip=slow.chip.override(ici=1e8))
    narrow = estimator(slice=slow)
    assert limit(narrow, 0) > 10 * slopes(narrow, 0).floor_per_token
    assert limit(narrow, 0) == pytest.approx(narrow.decode(10**6, 0).floor.seconds / 10**6)


def test_a_cost_is_price_times_chips_times_time_over_tokens():
    assert Unit(16, Price(1.2)).cost(0.010, 32) == pytest.approx(16 * 1.2 * 0.010 / 32 / 3600 * 1e6)
    assert Unit(16, None).cost(0.010, 32) == pytest.approx(16 * 0.010 / 32)
    assert "USD" in Unit(16, Price(1.2)).name and "chip-seconds" in Unit(16, None).name


def test_a_curve_knows_what_fits(four):
    curves = step_curves(four, 8192, [1, 4096])
    assert four.decode(curves.fits_to, 8192).fits
    assert not four.decode(curves.fits_to + 1, 8192).fits


def test_weights_read_alone_fall_with_chips(four):
    ideal = ideal_weight_read(four, [1, 2, 8])
    np.testing.assert_allclose(ideal[0] / ideal, [1, 2, 8])
    lone = step_curves(estimator(topology="v5e:1x1"), 0, [1])
    assert ideal[0] == pytest.approx(lone.weights[0], rel=1e-3)


def test_a_step_stops_falling_with_chips_where_collectives_take_over():
    slices = ("v5e:1x1", "v5e:2x2", "v5e:4x8")
    found = chip_curve("1d", [estimator("llama2-7b", each) for each in slices], Pass(8, 1024))
    assert found.chips.tolist() == [1, 4, 32]
    assert found.fits.tolist() == [False, True, True]
    gain = found.expected[:-1] / found.expected[1:]
    assert gain[0] > 3.5 and gain[1] < 5  # of 4 and 8
    assert "mesh 1x1x32" in found.layouts[-1]


def test_points_of_a_front_are_beaten_by_none():
    latency, cost = [3, 1, 2, 2, 5, 1], [1, 9, 4, 5, 1, 10]
    assert front(latency, cost) == [1, 2, 0]


def test_a_tradeoff_has_latency_and_cost_of_each_batch(four):
    found = tradeoff({1: four, 64: four}, 1024)
    step = four.decode(64, 1024)
    assert found.expected[1] == step.expected.seconds and found.floor[1] == step.floor.seconds
    assert found.expected_cost[1] == pytest.approx(step.cost(step.expected.seconds))
    assert found.floor_cost[1] == pytest.approx(step.cost(step.floor.seconds))


def test_the_rule_for_critical_batches_is_peak_over_bandwidth_in_bfloat16(four):
    assert dense_batch(four) == pytest.approx(four.peaks.flops / four.peaks.bandwidth)
    halved = estimator(dtypes=Dtypes(BFLOAT16.dtype, QUANTIZATIONS["int8"]))
    assert dense_batch(halved) == pytest.approx(dense_batch(four) / 2, rel=1e-3)


@pytest.mark.parametrize("model", ["llama3-70b", "mixtral-8x7b", "deepseek-v3-even"])
def test_critical_batches_lie_near_the_line(model):
    found = estimator(model, "h100:8")
    assert sparsity(found) == pytest.approx({"l": 1.0, "m": 3.63, "d": 18.3}[model[0]], rel=0.01)
    assert critical_batch(found) == pytest.approx(dense_batch(found) * sparsity(found), rel=0.02)


def placed(name: str, model: str = "llama3-70b", mesh: str = "2x2x2"):
    return Placement.of(LAYOUTS[name], find_model(model).sizes, parse_mesh(mesh))


def test_a_layer_in_one_dimension_all_reduces_its_activations_twice():
    """Pope et al. 2022, section 3.2.1: 2 B T D elements for each of attention and MLP."""
    config = find_model("llama3-70b")
    found = layer_bytes(config, placed("weight_stationary_1d"), BFLOAT16, batch=8, tokens=100)
    assert found == 2 * (2 * 8 * 100 * config.d_model) * 2


def test_weights_gathered_whole_move_no_activation():
    """Pope et al. 2022, section 3.2.3: all matrices of the layer, whatever the tokens."""
    config = find_model("llama3-70b")
    found = [
        layer_bytes(config, placed("weight_gathered_xyz"), BFLOAT16, batch=8, tokens=tokens)
        for tokens in (2, 5000)
    ]
    D, F, H, K, h = (config.sizes[letter] for letter in "DFGKh")
    H *= K
    matrices = 3 * D * F + 2 * D * H * h + 2 * D * K * h
    assert found == [2 * matrices] * 2


def test_wider_gathering_becomes_best_as_tokens_grow():
    names = [name for name in LAYOUTS if name.startswith("weight_")]
    mesh = [placed(name, mesh="4x4x4") for name in names]
    found = volumes(find_model("llama3-70b"), mesh, BFLOAT16, [2, 100, 1000, 8000, 10**5])
    assert found.batch == 64 and found.tokens[0] == 128
    order = list(found.begins())
    assert order == sorted(order, key=names.index) and order[-1] == "weight_gathered_xyz"
    for place, name in enumerate(found.best):
        assert found.sent[name][place] == min(sent[place] for sent in found.sent.values())


def test_a_layout_begins_where_it_first_is_best():
    sent = {"flat": np.array([5, 5, 5.0]), "line": np.array([1, 4, 9.0])}
    found = Volumes(1, {}, np.array([10, 40, 90]), sent)
    assert found.best == ["line", "line", "flat"]
    assert found.begins() == {"line": 10, "flat": 90}
