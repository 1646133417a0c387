"""The chip data: complete, sourced, found by short names and by JAX's."""

import dataclasses
import json
from importlib import resources
from types import SimpleNamespace

import pytest

from profiles.chips.chip import chips, figure_names, find_chip, find_provider, published_peaks
from sharding.error_types import UsageError

DATA = json.loads(resources.files("profiles.chips").joinpath("chips.json").read_text())
ROWS = pytest.mark.parametrize("row", [pytest.param(row, id=row["name"]) for row in DATA["chips"]])


def device(kind: str) -> SimpleNamespace:
    return SimpleNamespace(device_kind=kind)


@ROWS
def test_every_figure_is_positive_and_has_a_source(row):
    for name, figure in row["figures"].items():
        others = figure.get("others", ())
        assert figure.keys() <= {"value", "highest", "source", "note", "others"}, name
        assert figure["source"] in DATA["sources"], name
        assert all(source in DATA["sources"] for _, source, *_ in others), name
        assert min(figure["value"], *(number for number, *_ in others), 1e99) > 0, name


@ROWS
def test_the_highest_figure_is_the_highest_credible_one(row):
    for name, figure in row["figures"].items():
        credible = [
            number
            for number, _, *remark in figure.get("others", ())
            if not "".join(remark).startswith("not credible")
        ]
        assert figure.get("highest", figure["value"]) == max(figure["value"], *credible, 0), name


def test_wirings_and_prices_have_sources_and_every_source_is_used():
    used = set()
    for row in DATA["chips"]:
        used |= set(row["wiring"]["source"].split(", "))
        for figure in row["figures"].values():
            used |= {figure["source"], *(source for _, source, *_ in figure.get("others", ()))}
        for price in row["prices"]:
            assert price["usd"] > 0 and price["date"] and price["provider"] and price["commitment"]
            assert price.get("region") not in ("", "none")
            used.add(price["source"])
    assert used == DATA["sources"].keys()


def test_a_chip_costs_the_least_that_is_listed_on_demand_of_all_or_of_one_provider():
    h200 = find_chip("h200")
    assert h200.price().usd == 4.39 and h200.price("Google Cloud").usd == 10.6
    assert h200.price("AWS").usd == 5.2 and h200.price("Azure") is None
    for chip in chips():
        listed = [price.usd for price in chip.prices if price.commitment.startswith("on-demand")]
        assert (chip.price().usd if listed else chip.price()) == min(listed, default=None)


def test_a_price_says_whose_it_is_and_nothing_that_is_not_known():
    price = find_chip("h200").price()
    assert str(price) == "4.39 USD per chip-hour (on-demand, RunPod Secure, 2026-07)"
    assert price.as_record() == {
        "usd_per_chip_hour": 4.39, "provider": "RunPod", "offer": "Secure",
        "commitment": "on-demand", "date": "2026-07",
    }  # fmt: skip
    assert find_chip("v5e").price().as_record()["region"] == "us-central1"


def test_a_provider_is_found_in_any_case_or_the_known_ones_are_named():
    assert find_provider("google cloud") == "Google Cloud"
    with pytest.raises(UsageError, match=r"'SemiAnalysis'.* use one of Google Cloud, RunPod, AWS"):
        find_provider("SemiAnalysis")


def test_every_chip_has_what_a_floor_needs():
    for chip in chips():
        assert chip.capacity and chip.bandwidth and chip.on_chip
        assert chip.flops["bfloat16"] >= chip.flops["float32"]
        assert chip.link or chip.name == "tpu8t"  # its links: not published


def test_names_and_device_kinds_are_unique():
    names = [name for chip in chips() for name in (chip.name, *chip.device_kinds)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v5", "v5p"),
        ("TPU v5 lite", "v5e"),
        ("TPU v6 lite", "v6e"),
        ("TPU7x", "tpu7x"),
        ("NVIDIA H200", "h200"),
        ("gb200", "gb200"),
    ],
)
def test_chips_are_found_by_short_names_and_those_jax_gives(kind, name):
    assert find_chip(kind).name == name


def test_an_unknown_chip_is_refused_with_the_known_ones_and_how_to_add_it():
    with pytest.raises(
        UsageError, match=r"is 'v9'.*known: v3, .*mi300x\).*profiles/chips/chips.json$"
    ):
        find_chip("v9")


def test_floors_take_the_highest_figures_and_expected_times_the_recommended():
    chip = find_chip("v5e")
    assert (chip.bandwidth, chip.recommended.bandwidth) == (8.59e11, 8.19e11)
    assert chip.figures["bandwidth"].source == "docs.cloud.google.com/tpu/docs/v5e"
    for chip in chips():
        assert chip.bandwidth >= chip.recommended.bandwidth
        assert all(rate >= chip.recommended.flops[name] for name, rate in chip.flops.items())


def test_a_chip_sends_both_ways_round_one_axis_of_a_torus_and_once_into_a_fabric():
    assert find_chip("v5p").link == 2 * find_chip("v5p").ici == 2e11
    assert find_chip("h100").link == find_chip("h100").fabric == 4.5e11
    assert find_chip("l4").link == find_chip("l4").pcie == 3.2e10


def test_given_figures_take_the_place_of_published_ones_in_floors_and_expected_times():
    chip = find_chip("v5e").override(bandwidth=8e11, int8_flops=3e14, capacity=None, network=1e9)
    assert chip.bandwidth == chip.recommended.bandwidth == 8e11
    assert chip.figures["bandwidth"].source == "given"
    assert (chip.flops["int8"], chip.network) == (3e14, 1e9)
    assert chip.capacity == find_chip("v5e").capacity and find_chip("v5e").bandwidth == 8.59e11
    assert set(chip.override(flops=1e14).flops.values()) == {1e14}
    assert find_chip("tpu8t").override(ici=1e11).link == 2e11


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"speed": 1.0}, r"chip figure is 'speed'; use one of capacity, bandwidth"),
        ({"bandwidth": -1.0}, r"bandwidth of v5e is -1\.0"),
        ({"flops": 0.0}, r"flops of v5e is 0\.0"),
        ({"bandwidth": 1e-300}, r"bandwidth of v5e is 1e-300; use a positive number, 1 to 1e\+24"),
        ({"ici": 1e-320}, r"ici of v5e is 1e-320"),
        ({"flops": 1e-300}, r"flops of v5e is 1e-300"),
        (
            {"hop_latency": 1e200},
            r"hop_latency of v5e is 1e\+200; .* 1e-12 to 1",
        ),
    ],
)
def test_figures_that_cannot_be_are_refused(given, message):
    with pytest.raises(UsageError, match=message):
        find_chip("v5e").override(**given)


def test_figures_have_the_names_of_properties():
    plain = {name for name in figure_names() if not name.endswith("_flops")}
    assert all(hasattr(find_chip("v5e"), name) for name in plain)


@pytest.mark.parametrize(
    ("kind", "dtype", "peak"),
    [
        ("TPU v5 lite", "bfloat16", 1.97e14),
        ("TPU v5 lite", "float32", 1.97e14),
        ("TPU v5 lite", "int8", 3.94e14),
        ("TPU v5 lite", "uint4", 7.88e14),
        ("NVIDIA H100 80GB HBM3", "float32", 4.947e14),
        ("NVIDIA H100 80GB HBM3", "float8_e4m3fn", 1.979e15),
        ("NVIDIA B200", "float4_e2m1fn", 9e15),
    ],
)
def test_a_peak_is_that_of_the_arithmetic(kind, dtype, peak):
    assert published_peaks(device(kind), dtype=dtype).flops == peak


def test_arithmetic_that_a_chip_has_no_figure_for_is_refused_unless_one_is_given():
    with pytest.raises(UsageError, match=r"dtype is int8.*tpu7x.*float32, bfloat16, fp8, or give"):
        published_peaks(device("TPU7x"), dtype="int8")
    assert published_peaks(device("TPU7x"), flops=2e15, dtype="int8").flops == 1e15


def test_a_device_that_is_half_a_chip_has_half_its_peaks():
    chip, peaks = find_chip("TPU7x"), published_peaks(device("TPU7x"))
    assert peaks.bandwidth == chip.bandwidth / 2 and peaks.flops == chip.flops["bfloat16"] / 2
    assert peaks.link == chip.link / 2 and peaks.source == "published"


def test_an_unknown_device_is_refused_unless_its_peaks_are_given():
    abacus = device("Abacus 9")
    with pytest.raises(UsageError, match=r"device kind is 'Abacus 9'.*h200.*--hbm_bandwidth"):
        published_peaks(abacus)
    assert published_peaks(abacus, 1e12, 1e14).bandwidth == 1e12


def test_given_rates_are_those_of_a_chip():
    given = published_peaks(device("TPU7x"), 8e12, 2e15)
    assert (given.bandwidth, given.flops, given.source) == (4e12, 1e15, "given")
    assert given.devices_per_chip == 2 and given.on_chip > 0


def test_chips_can_be_keys():
    chip = find_chip("v5e")
    assert len({chip, dataclasses.replace(chip), chip.recommended}) == 2
