"""Expected times on the devices that are here, at rates that were measured on them."""

import dataclasses

import numpy as np
import pytest

from model.catalog import find_model
from model.dtypes import FLOAT32, Dtypes
from profiles.chips.calibration import calibration_of
from profiles.chips.chip import Peaks, find_chip
from profiles.chips.local_devices import LocalDevices, assumed_devices
from profiles.chips.slices import Slice
from profiles.expected.here import expected_here
from profiles.floor.bytes_and_flops import PassCounter
from profiles.floor.passes import Pass
from sharding.catalog import LAYOUTS
from sharding.mesh import parse_mesh
from sharding.placement import Placement

CONFIG = find_model("smollm2-135m")
PEAKS = Peaks(bandwidth=2e10, flops=1e11, source="measured")
PLACEMENT = Placement.of(LAYOUTS["weight_stationary_1d"], CONFIG.sizes, parse_mesh("1"))


@pytest.mark.parametrize("batch", [1, 64])
def test_a_cpu_reads_and_computes_at_fractions_of_its_measured_rates(batch):
    changed = {"memory": 0.5, "compute": 0.25, "layer_s": 1e-4, "step_s": 2e-3}
    calibration = dataclasses.replace(assumed_devices(1).calibration, **changed)
    pass_ = Pass(batch, 128)
    found = expected_here(CONFIG, PLACEMENT, FLOAT32, pass_, PEAKS, calibration)
    counts = PassCounter(CONFIG, PLACEMENT, FLOAT32).count(pass_)
    memory, compute = counts.memory / 1e10, counts.flops / 2.5e10
    terms = {"memory": memory, "compute": compute, "overhead": 2e-3 + CONFIG.layers * 1e-4}
    assert found.expected_terms_s == pytest.approx(terms)
    assert found.expected_s == pytest.approx(max(memory, compute) + terms["overhead"])


def test_products_have_the_rate_of_their_rows_and_attention_its_own():
    changes = {"compute_by_rows": ((1, 0.1), (16, 0.4)), "attention": 0.02}
    calibration = dataclasses.replace(assumed_devices(1).calibration, **changes)
    counter = PassCounter(CONFIG, PLACEMENT, FLOAT32)
    for batch, fraction in ((1, 0.1), (4, 0.2), (16, 0.4), (64, 0.4)):
        pass_ = Pass(batch, 128)
        found = expected_here(CONFIG, PLACEMENT, FLOAT32, pass_, PEAKS, calibration)
        counts = counter.count(pass_)
        attention = 4 * batch * CONFIG.layers * CONFIG.query_heads * CONFIG.head_size * 129
        assert counts.attention == attention and counts.rows == batch
        products = (counts.flops - attention) / (1e11 * fraction)
        compute = products + attention / (1e11 * 0.02)
        assert found.expected_terms_s["compute"] == pytest.approx(compute)
    prompt = counter.count(Pass(2, 0, 100))
    assert (prompt.rows, prompt.attention) == (200, 0)


def test_a_batch_that_is_divided_is_multiplied_in_fewer_rows():
    layout = LAYOUTS["weight_gathered_x"]
    placement = Placement.of(layout, CONFIG.sizes, parse_mesh("3x1x1"))
    assert PassCounter(CONFIG, placement, FLOAT32).count(Pass(12, 128)).rows == 4


def test_fractions_of_peaks_of_their_own_are_taken_of_those():
    """Of all devices together."""
    own = {"memory": 0.5, "peaks": (("bandwidth", 4e10), ("flops", 8e11))}
    calibration = dataclasses.replace(assumed_devices(1).calibration, **own)
    pass_ = Pass(4, 128)
    found = expected_here(CONFIG, PLACEMENT, FLOAT32, pass_, PEAKS, calibration)
    counts = PassCounter(CONFIG, PLACEMENT, FLOAT32).count(pass_)
    assert found.expected_terms_s["memory"] == pytest.approx(counts.memory / 2e10)
    assert found.expected_terms_s["compute"] == pytest.approx(counts.flops / 8e11)


def test_given_rates_of_a_chip_replace_its_published_ones(monkeypatch):
    """A TPU v5e has no published rate of float32, and its memory's is given too."""
    chip = find_chip("v5e")
    here = LocalDevices(Slice(chip, (1, 1)), calibration_of("v5e"), "")
    monkeypatch.setattr("profiles.expected.here.local_devices", lambda count: here)
    dtypes = Dtypes(np.float32)
    peaks = Peaks(bandwidth=4e11, flops=5e13, source="given")
    pass_ = Pass(64, 128)
    found = expected_here(CONFIG, PLACEMENT, dtypes, pass_, peaks, calibration_of("v5e"))
    counts = PassCounter(CONFIG, PLACEMENT, dtypes).count(pass_)
    terms = found.expected_terms_s
    assert terms["memory"] == pytest.approx(counts.memory / 4e11 / here.calibration.memory)
    assert terms["compute"] == pytest.approx(counts.flops / 5e13 / here.calibration.compute)


def test_half_a_chip_has_no_expected_time(monkeypatch):
    """A TPU7x is two devices; one of them is no slice."""
    chip = find_chip("tpu7x")
    here = LocalDevices(Slice(chip, (1, 1, 1)), calibration_of("tpu7x"), "")
    monkeypatch.setattr("profiles.expected.here.local_devices", lambda count: here)
    found = expected_here(CONFIG, PLACEMENT, FLOAT32, Pass(1, 128), PEAKS, calibration_of("tpu7x"))
    assert found.expected_s is None
