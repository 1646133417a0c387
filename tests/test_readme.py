"""The README shows recorded runs, and the commands it gives are the ones that are run."""

import itertools
import json
from pathlib import Path

import pytest

from profiles.compiled.grid import summary
from profiles.report.lines import fit_lines
from profiles.report.numbers import number
from profiles.report.table import markdown_table
from tests import (
    accuracy_table,
    compiled_table,
    family_cases,
    layout_table,
    perplexity_table,
    storage_table,
    talk_table,
)
from tests.scripts import running

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
RESULTS = ROOT / "profiles/results"


def test_the_table_and_the_fit_are_those_of_the_recorded_run():
    run = json.loads((RESULTS / "smollm2-135m-cpu/profile.json").read_text())
    assert markdown_table(run["points"], run["bandwidth"]).strip() in README
    for line in fit_lines(run["fits"]):
        assert line in README


def test_the_table_of_families_is_that_of_the_tests():
    written = README.split(family_cases.BEGIN)[1].split(family_cases.END)[0]
    assert written == family_cases.table()
    listed = [case for cases in family_cases.FAMILIES.values() for case in cases]
    assert sorted(listed) == family_cases.CASES


def test_the_tables_of_layouts_are_those_of_the_code():
    assert layout_table.BEGIN + layout_table.tables() + layout_table.END in README


def test_the_tables_of_stored_types_are_those_of_the_code():
    assert storage_table.BEGIN + storage_table.table(storage_table.SHOWN) in README
    assert storage_table.WHOLE.read_text() == storage_table.whole()
    for check in storage_table.CHECKS:
        assert (ROOT / check.test).exists()


def test_perplexities_and_types_are_those_of_the_recorded_runs():
    run = json.loads(perplexity_table.RECORD.read_text())
    assert perplexity_table.BEGIN + perplexity_table.table(run) in README
    run = json.loads((RESULTS / "smollm2-135m-cpu-types/profile.json").read_text())
    assert markdown_table(run["points"], run["bandwidth"]).strip() in README


def test_the_steps_of_a_gpu_are_those_of_the_recorded_run_beside_what_was_expected():
    run = json.loads((RESULTS / "llama3-8b-h200/profile.json").read_text())
    assert markdown_table(run["points"], run["bandwidth"]).strip() in README
    dearer = run["points"][0]["usd_per_million_tokens"] / run["points"][3]["usd_per_million_tokens"]
    assert f"A token among 256 sequences costs {dearer:.0f} times less than alone." in README
    step = ["--model=llama3-8b", "--topology=h200:1", "--context=2048", "--batch=1,8,64,256"]
    found = running.run("estimate.py", *step, "--json=-", folder=ROOT)
    expected = [point["expected_s"] * 1e3 for point in found.document["points"]]
    *first, last = map(number, expected)
    assert f"{', '.join(first)} and {last} ms of the bfloat16 steps" in " ".join(README.split())


def test_the_accuracy_of_expected_times_is_that_of_the_code():
    assert accuracy_table.BEGIN + accuracy_table.table() + accuracy_table.END in README


def test_what_is_said_of_batches_is_what_the_commands_print():
    assert talk_table.BEGIN + talk_table.text() + talk_table.END in README


def test_what_a_cache_buys_is_the_recorded_comparison():
    assert (RESULTS / "smollm2-135m-cpu/no_cache.txt").read_text().strip() in README


def test_the_compiled_steps_are_the_recorded_ones():
    assert compiled_table.BEGIN + compiled_table.table() + compiled_table.END in README


def test_no_recorded_step_copies_a_caches_values_or_a_matrix_and_loops_are_overlapped():
    seen = {"compiler": 0, "overlapped": 0}
    for point in itertools.chain(*(found["points"] for found in compiled_table.recorded())):
        if point["status"] == "does_not_fit":
            continue
        row, copies = summary(point), point["compiled"]["copies"]
        assert row["arguments_over_floor"] == pytest.approx(1, abs=0.01)
        assert row["cache_aliased"] and row["collectives_as_expected"]
        if point["phase"] == "decode":
            assert row["temporaries_over_arguments"] < 0.05
        assert row["bytes_over_floor"] < 1.055
        others = [each["bytes"] for each in copies if "scales" not in each["what"]]
        assert max(others, default=0) < 1e5
        sent = [one for one in point["compiled"]["collectives"] if one["kind"] == "permute"]
        assert all(one["overlap"] == "beside a product" for one in sent)
        assert bool(sent) == (point["collectives"] == "overlapped")
        seen[point["collectives"]] += 1
    assert seen["compiler"] > 60 and seen["overlapped"] > 8


def test_the_plan_is_the_recorded_one():
    recorded = (RESULTS / "plan-llama3.1-70b/plan.txt").read_text().splitlines()
    shown = README.split("$ python scripts/plan.py")[1].split("```")[0].splitlines()[1:]
    assert "choice: " in "".join(shown) and set(shown) <= {*recorded, "..."}


def test_no_recorded_step_is_faster_than_its_floor():
    for path in RESULTS.glob("*/profile.json"):
        for point in json.loads(path.read_text())["points"]:
            assert point["floor_s"] < point["step_s"]["p10"]


def test_the_ratio_to_transformers_is_the_recorded_one():
    runs = json.loads((RESULTS / "smollm2-135m-cpu/peer-transformers.json").read_text())["runs"]
    ratios = [run["ratio"] for run in runs]
    assert f"{min(ratios):.1f} to {max(ratios):.1f} times" in README


def test_ci_runs_the_readmes_test_command():
    (command,) = (line for line in README.splitlines() if ".[test]" in line and "-m pytest" in line)
    assert command in (ROOT / ".ci/run").read_text().splitlines()


def test_every_file_that_the_readme_links_to_exists():
    for part in README.split("](")[1:]:
        link = part.split(")")[0]
        assert link.startswith("http") or (ROOT / link).exists()
