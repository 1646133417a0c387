"""Calibrations of serving engines: found again by the fit, and no worse on rows it did not see."""

import dataclasses
import functools

import numpy as np
import pytest

from profiles.chips.calibration import calibration_of, calibrations
from profiles.published.cases import shipped_cases
from profiles.published.comparison import reproduce
from profiles.published.engine_fitting import CHOICES, MOST, TYPICAL, EngineFit
from profiles.published.fitting import fitted_cases

SETS = {each.name: each for each in calibrations() if each.fitted}
QUICK = [name for name in SETS if name != "jetstream-v5e"]  # whose words stand for any layout
ROWS = {
    "tensorrt-llm-hopper": 76, "tensorrt-llm-blackwell": 61, "tensorrt-llm-a100": 20,
    "sglang-h200": 3, "sglang-b200": 3, "sglang-jax-v6e": 6, "vllm-tpu7x": 2, "vllm-mi300x": 2,
    "jetstream-v5e": 3,
}  # fmt: skip


@functools.cache
def _fit(name: str) -> EngineFit:
    return EngineFit(SETS[name], fitted_cases(name))


def _errors(names: list[str]) -> dict[tuple[str, str, bool], list[float]]:
    """Sizes of errors by chip, engine and whether they are of services."""
    found: dict[tuple[str, str, bool], list[float]] = {}
    for name in names:
        fit = _fit(name)
        shipped = {each: getattr(SETS[name], each) for each in fit.fitted}
        for case, error in zip(fit.cases, fit.errors(shipped), strict=True):
            key = case.slice.chip.name, case.engine.name, case.phase == "serving"
            found.setdefault(key, []).append(abs(error))
    return found


def test_every_set_says_what_it_was_fitted_to_and_what_it_borrows():
    assert {name: len(fitted_cases(name)) for name in SETS} == ROWS
    for name, one in SETS.items():
        assert 1 <= len(one.fitted) <= MOST and set(one.fitted) <= set(CHOICES)
        assert one.engine in one.source
        assert one.borrowed and one.adds and not one.hidden
        for case in fitted_cases(name):
            assert case.engine.name == one.engine and case.slice.chip.name in one.chips


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.slow if n == "tensorrt-llm-blackwell" else ())
        for n in QUICK
    ],
)
def test_shipped_constants_are_those_that_the_fit_finds(name):
    found = _fit(name).constants
    assert found == {each: getattr(SETS[name], each) for each in SETS[name].fitted}


@pytest.mark.parametrize("name", QUICK)
def test_the_fit_sees_what_expected_times_are(name):
    """Also of cases with several passes, and of prompts between steps."""
    fit = _fit(name)
    for number in (0, len(fit.cases) - 1):
        row = reproduce(fit.cases[number])
        assert row.calibration is SETS[name]
        expected = 1 / (1 + fit.errors({})[number])
        assert row.error == pytest.approx(expected - 1, abs=1e-9)


def test_medians_of_errors_by_chip():
    """In tokens per second: a fifth of services, three twentieths of static runs."""
    found = _errors(QUICK)
    bars = {True: 0.2, False: 0.15}
    many = {key: np.median(errors) for key, errors in found.items() if len(errors) >= 6}
    assert {key[0] for key in many} == {"h100", "h200", "b200", "gb200", "v6e", "a100-80gb"}
    for key, median in many.items():
        assert median <= bars[key[2]], key


def test_fits_to_half_of_the_rows_are_as_good_on_the_other_half():
    """On average over ways to halve them, and always by the mean of their sizes."""
    fits = [_fit(name) for name in QUICK if len(_fit(name).cases) > 2 * MOST]
    ratios = []
    for seed in range(5):
        errors = [np.abs(fit.halves(seed)) for fit in fits]
        seen, unseen = np.concatenate(errors, axis=1)
        ratios.append(np.median(unseen) / np.median(seen))
        assert np.mean(unseen) <= 1.3 * np.mean(seen)
    assert len(fits) == 3 and np.mean(ratios) <= 1.3


def test_constants_that_no_row_tells_stay_typical():
    case = next(each for each in fitted_cases("tensorrt-llm-hopper") if each.slice.chips == 1)
    names = "memory", "link"  # one chip sends nothing
    one = dataclasses.replace(SETS["tensorrt-llm-hopper"], fitted=names)
    assert EngineFit(one, [case]).constants["link"] == TYPICAL["link"]


def test_an_engine_has_its_own_constants_and_others_those_of_the_chip():
    assert calibration_of("h200", "SGLang").name == "sglang-h200"
    assert calibration_of("h200").name == calibration_of("h200", "vLLM").name
    assert calibration_of("h200").name == "tensorrt-llm-hopper"
    assert calibration_of("a100-80gb").name == "gpu-2023"
    assert calibration_of("a100-80gb", "TensorRT-LLM").name == "tensorrt-llm-a100"
    assert calibration_of("v5e").name == "tpu-v5e-2025"
    assert calibration_of("l4", "TensorRT-LLM").name == "gpu-2023"
    words = calibration_of("h100").describe("h100")
    assert words == "tensorrt-llm-hopper, fitted to TensorRT-LLM"


def test_cases_of_engines_are_fitted_or_say_why_not():
    cases = [each for each in shipped_cases()[0] if each.phase == "serving"]
    assert all(bool(case.fit) != bool(case.held_out) for case in cases)
    assert sum(bool(case.held_out) for case in cases) == 2
