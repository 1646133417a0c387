"""Expected times on the devices that are here, at rates that were measured on them."""

import dataclasses

import pytest

from model.catalog import find_model
from model.dtypes import FLOAT32
from profiles.chips.chip import Peaks
from profiles.chips.local_devices import assumed_devices
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
