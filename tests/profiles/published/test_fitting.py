import numpy as np
import pytest

from profiles.chips.calibration import calibrations
from profiles.published.comparison import reproduce
from profiles.published.fitting import GRID, HELD_OUT, TYPICAL, Fit, fitted_cases


@pytest.fixture(scope="module")
def fits():
    steps = [each for each in calibrations() if not each.fitted]
    return {each.name: (each, Fit(fitted_cases(each.name))) for each in steps}


def test_shipped_constants_are_those_that_the_fit_finds(fits):
    for shipped, fit in fits.values():
        found = fit.constants(fit.best())
        assert found == {name: getattr(shipped, name) for name in GRID}, shipped.name


def test_fitted_errors_are_those_of_expected_times(fits):
    for _, fit in fits.values():
        errors = np.expm1(fit.errors[(slice(None), *fit.best())])
        for case, error in zip(fit.cases, errors, strict=True):
            assert reproduce(case).error == pytest.approx(error, abs=0.005), case.locator


def test_rows_are_never_fitted_that_are_said_to_be_held_out(fits):
    assert {name: len(fit.cases) for name, (_, fit) in fits.items()} == {
        "tpu-v4-2022": 14,
        "tpu-v5e-2025": 12,
        "gpu-2023": 6,
    }
    assert not any(case.held_out for _, fit in fits.values() for case in fit.cases)


BARS = {
    # Medians and 90th percentiles of |error| on rows that the fit did not see.
    ("tpu-v4-2022", "the row"): (0.03, 0.07),
    ("tpu-v4-2022", "its batch"): (0.06, 0.1),
    ("tpu-v4-2022", "its weight type"): (0.04, 0.1),
    ("tpu-v4-2022", "its number of chips"): (0.08, 0.12),
    ("tpu-v5e-2025", "the row"): (0.07, 0.13),
    ("tpu-v5e-2025", "its batch"): (0.07, 0.13),
    ("gpu-2023", "the row"): (0.08, 0.14),
    ("gpu-2023", "its weight type"): (0.15, 0.27),
    ("gpu-2023", "its number of chips"): (0.07, 0.25),
}


@pytest.mark.parametrize("name, what", BARS)
def test_held_out_errors_stay_small(fits, name, what):
    errors = np.abs(fits[name][1].held_out(HELD_OUT[what]))
    median, p90 = BARS[name, what]
    assert np.median(errors) < median and np.percentile(errors, 90) < p90


def test_what_all_rows_share_cannot_be_held_out(fits):
    assert fits["gpu-2023"][1].held_out(HELD_OUT["its batch"]) is None


def test_constants_that_rows_do_not_tell_are_typical_ones(fits):
    shipped, _ = fits["gpu-2023"]
    assert (shipped.compute, shipped.link) == (TYPICAL["compute"], TYPICAL["link"])


def test_a_held_out_row_is_not_seen(fits):
    _, fit = fits["gpu-2023"]
    left = fit.cases[0]
    place = fit.best(lambda case: case is not left)
    others = Fit(fit.cases[1:])
    assert others.best() == place
    row = fit.held_out(HELD_OUT["the row"])[0]
    assert row == pytest.approx(np.expm1(fit.errors[(0, *place)]))
