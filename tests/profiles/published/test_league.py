"""The league of published services: who is told together, in what order, where sources are."""

import collections
import dataclasses

import pytest

from profiles.published.cases import shipped_cases
from profiles.published.comparison import reproduce_all
from profiles.published.league import FEW, LEAST, address, by_engine, league
from profiles.published.league_table import first_page, table


@pytest.fixture(scope="module")
def rows():
    cases = [
        each
        for each in shipped_cases()[0]
        if each.engine and (each.slice.chips == 1 or each.engine.name == "JetStream")
    ]
    return reproduce_all(cases)[0]


def test_every_service_is_in_one_entry_and_the_nearest_to_the_floor_is_first(rows):
    services = [row for row in rows if row.case.phase == "serving"]
    assert len(services) < len(rows)
    engines = collections.Counter(row.case.engine.name for row in services)
    many = [row for row in services if engines[row.case.engine.name] >= LEAST]
    assert len(many) < len(services)
    for entries, all_of_them in ((league(rows), services), (by_engine(rows), many)):
        told = [id(row) for entry in entries for row in entry.rows]
        assert sorted(told) == sorted(map(id, all_of_them))
        shares = [entry.of_floor for entry in entries if entry.lengths_known]
        assert shares == sorted(shares, reverse=True)
        unknown = [entry.names[0] for entry in entries[len(shares) :]]
        assert set(unknown) == {"JetStream"}
    for entry in league(rows):
        assert {
            (row.case.engine.name, row.case.slice.chip.name, row.case.model.name)
            for row in entry.rows
        } == {entry.names}


def test_an_entry_takes_medians_of_its_runs(rows):
    one = next(each for each in league(rows) if len(each.rows) == 3)
    shares = sorted(row.fraction for row in one.rows)
    assert (one.of_floor, one.best) == (shares[1], shares[2]) and one.best < 1
    halved = [dataclasses.replace(row, expected_s=row.case.published_s / 2) for row in one.rows]
    other = dataclasses.replace(one, rows=halved)
    assert (other.of_expected, other.off) == (0.5, 1.0)


def test_the_bound_of_an_entry_is_that_of_the_runs_at_its_median(rows):
    one = next(each for each in league(rows) if len(each.rows) == 3)
    few, middle, more = sorted(one.rows, key=lambda row: row.fraction)
    few, more = (dataclasses.replace(row, bound="kv_cache") for row in (few, more))
    middle = dataclasses.replace(middle, bound="compute")
    assert dataclasses.replace(one, rows=[more, middle, few]).bound == "compute"
    assert dataclasses.replace(one, rows=[more, middle]).bound == "compute"
    assert dataclasses.replace(one, rows=[middle, few]).bound == "kv cache"


def test_few_runs_of_an_engine_are_told_with_its_others(rows):
    for entry in by_engine(rows):
        sets = {row.calibration.name for row in entry.rows}
        assert len(sets) == 1 or len(entry.rows) < FEW * len(sets)


def test_the_table_has_every_assumption_and_source_a_click_away(rows):
    text = table(rows)
    for entry in league(rows):
        for source in entry.sources:
            assert f"]({address(source)})" in text
        for each in entry.assumptions:
            assert f". {each}\n" in text
    lines = first_page(rows).splitlines()
    assert all(line.startswith("- **") for line in lines)
    assert "at least 0." in lines[-1] and "as lengths of prompts" in lines[-1]


@pytest.mark.parametrize(
    "source, link",
    [
        (
            "NVIDIA/TensorRT-LLM docs/source/performance/perf-overview.md @00f37686 (about v1.0)",
            "https://github.com/NVIDIA/TensorRT-LLM/blob/00f37686/"
            "docs/source/performance/perf-overview.md",
        ),
        (
            "sgl-project/sglang-jax @cddbf6f1 docs/Qwen3.md",
            "https://github.com/sgl-project/sglang-jax/blob/cddbf6f1/docs/Qwen3.md",
        ),
        (
            "AI-Hypercomputer/jetstream-pytorch benchmarks/summary.md",
            "https://github.com/AI-Hypercomputer/jetstream-pytorch/blob/HEAD/benchmarks/summary.md",
        ),
        (
            "nvidia.github.io/TensorRT-LLM/0.19.0/performance/perf-overview.html",
            "https://nvidia.github.io/TensorRT-LLM/0.19.0/performance/perf-overview.html",
        ),
        ("org/name issue #870", "https://github.com/org/name/issues/870"),
        ("org/name PR#1061", "https://github.com/org/name/pull/1061"),
        ("a talk", None),
    ],
)
def test_addresses_are_those_that_sources_name(source, link):
    assert address(source) == link
