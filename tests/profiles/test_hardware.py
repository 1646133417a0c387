"""The chip data: complete, sourced, found by JAX's names."""

import json
from importlib import resources
from types import SimpleNamespace

import pytest

from profiles.hardware import chips, find_chip, published_peaks
from sharding.errors import UsageError


def test_every_figure_is_positive_and_has_a_source():
    rows = json.loads(resources.files("profiles").joinpath("chips.json").read_text())["chips"]
    for row in rows:
        figures = {name: value for name, value in row.items() if isinstance(value, dict)}
        assert len(figures) == (4 if row["name"] == "tpu8t" else 5)  # its links: not published
        assert all(figure["value"] > 0 and figure["source"] for figure in figures.values())


def test_names_and_device_kinds_are_unique():
    names = [chip.name for chip in chips()]
    kinds = [kind for chip in chips() for kind in chip.device_kinds]
    assert len(set(names)) == len(names) and len(set(kinds)) == len(kinds)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v5", "v5p"),
        ("TPU v5 lite", "v5e"),
        ("TPU v6 lite", "v6e"),
        ("TPU7x", "tpu7x"),
        ("NVIDIA H200", "h200"),
    ],
)
def test_chips_are_found_by_the_names_jax_gives(kind, name):
    assert find_chip(kind).name == name


def test_a_device_that_is_half_a_chip_has_half_its_peaks():
    chip, peaks = find_chip("TPU7x"), published_peaks(SimpleNamespace(device_kind="TPU7x"))
    assert peaks.bandwidth == chip.bandwidth / 2 and peaks.flops == chip.flops / 2
    assert peaks.source == "published"


def test_an_unknown_chip_is_refused_unless_its_peaks_are_given():
    device = SimpleNamespace(device_kind="Abacus 9")
    with pytest.raises(UsageError, match=r"device kind is 'Abacus 9'.*h200.*--hbm_bandwidth"):
        published_peaks(device)
    assert published_peaks(device, 1e12, 1e14).bandwidth == 1e12


def test_given_rates_are_those_of_a_chip():
    given = published_peaks(SimpleNamespace(device_kind="TPU7x"), 8e12, 2e15)
    assert (given.bandwidth, given.flops, given.source) == (4e12, 1e15, "given")
    assert given.devices_per_chip == 2 and given.on_chip > 0
