"""The expected times of the default sweep against the measured ones; `-m speed`, on quiet cores."""

import numpy as np
import pytest

from decode.engine import Engine
from model.dtypes import FLOAT32
from profiles.chips.chip import Peaks
from profiles.expected.here import expected_here
from profiles.floor.passes import Pass
from profiles.measured import sweep
from profiles.measured.calibration_here import calibration_here
from profiles.report.record import Record
from sharding.catalog import LAYOUTS
from sharding.mesh import make_mesh, parse_mesh

SHAPES = [parse_mesh(devices) for devices in ("1", "2")]
BATCHES, CONTEXT = [1, 4, 16, 64], 128
MOST = 0.15

pytestmark = pytest.mark.speed


def test_expected_times_are_near_measured_ones(smollm2):
    """The rows of `profile_decode.py` without flags."""
    calibrations = {
        shape["z"]: calibration_here(
            make_mesh(shape), FLOAT32, BATCHES, config=smollm2.config, context=CONTEXT
        )
        for shape in SHAPES
    }

    def expect(engine: Engine, pass_: Pass, peaks: Peaks) -> Record:
        calibration = calibrations[engine.mesh.size]
        return expected_here(
            engine.config, engine.placement, engine.dtypes, pass_, peaks, calibration
        )

    found = sweep.run(
        sweep.Sweep(
            source=smollm2,
            layouts=[LAYOUTS["weight_stationary_1d"]],
            shapes=SHAPES,
            batches=BATCHES,
            contexts=[CONTEXT],
            dtype_sets=[FLOAT32],
            expect=expect,
        ),
        print,
    )
    errors = []
    for row in found.points:
        measured = row.step_s["median"]
        errors.append(abs(row.expected_s / measured - 1))
        terms = ", ".join(f"{name} {each * 1e3:.3g}" for name, each in row.expected_terms_s.items())
        print(
            f"{row.devices} devices, batch {row.batch}: expected {row.expected_s * 1e3:.3g} ms "
            f"({terms}), measured {measured * 1e3:.3g} ms, ratio {row.expected_s / measured:.2f}"
        )
    print(f"median error {np.median(errors):.0%}")
    assert len(errors) == len(SHAPES) * len(BATCHES)
    assert np.median(errors) <= MOST
