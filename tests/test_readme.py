"""The pages show recorded runs, and the commands that they give are the ones that are run.

`README.md` is the first page; every folder has one of its own.
"""

import itertools
import json
import re
from pathlib import Path

import pytest

from profiles.compiled import compiled_table, options_table
from profiles.compiled.grid import summary
from profiles.explained import explained_table
from profiles.floor import layout_table, storage_table
from profiles.measured import perplexity_table, result_tables
from profiles.peers import comparison_table
from profiles.published import accuracy_table, league_table
from profiles.published.league import by_engine
from profiles.report.numbers import number
from profiles.report.pages import Part
from profiles.report.record import Record
from profiles.serving import load_table
from tests import family_cases, file_tables, quirk_table, talk_table
from tests.decode import tokenizer_quirks
from tests.profiles.test_rooms import ROOMS
from tests.scripts import running

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "profiles/results"
FIRST = ROOT / "README.md"
FOLDERS = ("sharding", "model", "decode", "profiles", "scripts", "tests")
PAGES = [FIRST, *sorted(itertools.chain(*((ROOT / each).rglob("*.md") for each in FOLDERS)))]


def page(name: str) -> str:
    """Text of a page."""
    return (ROOT / name).read_text()


def test_the_first_page_is_short_and_every_folder_has_a_page_that_it_leads_to():
    assert len(FIRST.read_text().splitlines()) <= 200
    rooms = [f"profiles/{path.parent.name}" for path in ROOT.glob("profiles/*/__init__.py")]
    assert len(rooms) == len(ROOMS)
    for folder in (*FOLDERS, "model/weights", *rooms):
        assert f"]({folder}/README.md)" in FIRST.read_text()


@pytest.mark.parametrize("part", result_tables.PARTS, ids=lambda part: f"{part.page}: {part.name}")
def test_tables_and_fits_are_those_of_the_recorded_runs(part: Part):
    assert part.text() == result_tables.PARTS[part]()


@pytest.mark.parametrize("part", comparison_table.PARTS, ids=lambda part: part.name)
def test_compared_engines_are_the_recorded_ones(part: Part):
    assert part.text() == comparison_table.PARTS[part]()


@pytest.mark.parametrize("part", explained_table.PARTS, ids=lambda part: part.name)
def test_explained_steps_are_the_recorded_ones(part: Part):
    assert part.text() == explained_table.PARTS[part]()


@pytest.mark.parametrize("part", load_table.PARTS, ids=lambda part: part.name)
def test_measured_services_are_the_recorded_ones(part: Part):
    assert part.text() == load_table.PARTS[part]()


def test_the_tables_of_the_first_page_have_the_times_side_by_side_and_little_else():
    times = "floor step ms", "expected step ms", "measured step ms"
    ratios = "floor / measured", "expected / measured"
    for name, columns in result_tables.SHORT.items():
        assert columns[1:7] == ("batch", *times, *ratios) and len(columns) == 8
        assert result_tables.short_table(name) in FIRST.read_text()


@pytest.mark.parametrize("folder", file_tables.FOLDERS)
def test_the_page_of_a_folder_names_its_files_by_what_they_say(folder: str):
    assert file_tables.PARTS[folder].text() == file_tables.table(folder)


def test_every_generated_part_is_held_by_a_test():
    known = [layout_table.DIVISIONS, layout_table.PAYMENTS, *result_tables.PARTS]
    known += [each.PART for each in (storage_table, perplexity_table, accuracy_table, talk_table)]
    known += [compiled_table.PART, options_table.PART, family_cases.PART, quirk_table.PART]
    known += [tokenizer_quirks.PART]
    known += file_tables.PARTS.values()
    known += [*explained_table.PARTS, *comparison_table.PARTS, *load_table.PARTS]
    known += [league_table.PART, league_table.FIRST_PAGE, accuracy_table.ENGINES]
    marks = {(part.page, part.name, part.module) for part in known}
    found = set()
    for path in PAGES:
        for name, module in re.findall("<!-- (.+): python -m (.+) -->", path.read_text()):
            found.add((str(path.relative_to(ROOT)), name, module))
    assert found == marks


def test_the_table_of_families_is_that_of_the_tests():
    assert family_cases.PART.text() == family_cases.table()
    listed = [case for cases in family_cases.FAMILIES.values() for case in cases]
    assert sorted(listed) == family_cases.CASES


def test_the_table_of_quirks_is_that_of_their_references():
    assert quirk_table.PART.text() == quirk_table.table()


def test_the_tables_of_layouts_are_those_of_the_code():
    assert layout_table.DIVISIONS.text() == layout_table.divisions()
    assert layout_table.PAYMENTS.text() == layout_table.payments()


def test_the_tables_of_stored_types_are_those_of_the_code():
    assert storage_table.PART.text() == storage_table.table(storage_table.SHOWN)
    assert storage_table.CATALOG_FILE.read_text() == storage_table.catalog_text()
    for check in storage_table.CHECKS:
        assert (ROOT / check.test).exists()


def test_perplexities_are_those_of_the_recorded_run():
    run = json.loads(perplexity_table.RECORD.read_text())
    assert perplexity_table.PART.text() == perplexity_table.table(run)


def test_the_steps_of_a_gpu_stand_beside_what_was_expected_and_what_they_cost():
    run = result_tables.recorded(result_tables.GPU)
    assert "--price_per_chip_hour=10.6" in run["command"]
    dearer = run["points"][0].usd_per_million_tokens / run["points"][3].usd_per_million_tokens
    said = f"A token among 256 sequences costs {dearer:.0f} times less than alone."
    assert said in FIRST.read_text()
    step = ["--model=llama3-8b", "--topology=h200:1", "--context=2048", "--batch=1,8,64,256"]
    found = running.run_many("estimate.py", {"step": [*step, "--json=-"]}, folder=ROOT)["step"]
    expected = [point["expected_s"] * 1e3 for point in found.document["points"]]
    *first, last = map(number, expected)
    said = f"{', '.join(first)} and {last} ms of the bfloat16 steps"
    assert said in " ".join(page("profiles/measured/README.md").split())


def test_the_accuracy_of_expected_times_is_that_of_the_code():
    assert accuracy_table.PART.text() == accuracy_table.table()
    assert accuracy_table.ENGINES.text() == accuracy_table.engines_table()


def test_the_league_of_published_services_is_that_of_the_code():
    rows = league_table.published_services()
    assert league_table.PART.text() == league_table.table(rows)
    assert league_table.FIRST_PAGE.text() == league_table.first_page(rows)
    assert len(league_table.first_page(rows).splitlines()) <= 6
    told = sum(len(entry.rows) for entry in by_engine(rows))
    assert f"by the median of {told} published runs" in FIRST.read_text()


def test_what_is_said_of_batches_is_what_the_commands_print():
    assert talk_table.PART.text() == talk_table.text()


def test_what_a_cache_buys_is_the_recorded_comparison():
    recorded = (RESULTS / "smollm2-135m-cpu/no_cache.txt").read_text().strip()
    assert recorded in page("decode/README.md")


def test_the_compiled_steps_are_the_recorded_ones():
    assert compiled_table.PART.text() == compiled_table.table()
    assert options_table.PART.text() == options_table.page()


def test_no_recorded_step_copies_a_caches_values_or_a_matrix_and_loops_are_overlapped():
    seen = {"compiler": 0, "overlapped": 0, "by kernel": 0}
    for point in itertools.chain(*(found["points"] for found in compiled_table.recorded())):
        if point.status == "does_not_fit":
            continue
        row, copies = summary(point), point.compiled["copies"]
        filled_up = 0.045 if (point.weight_dtype, "kernels" in row) == ("mxfp4", False) else 0.01
        assert row["arguments_over_floor"] == pytest.approx(1, abs=filled_up)
        assert row["cache_aliased"] and row["collectives_as_expected"]
        if point.phase == "decode":
            assert row["temporaries_over_arguments"] < 0.05
        sent = [one for one in point.compiled["collectives"] if one["kind"] == "permute"]
        assert all(one["overlap"] == "beside a product" for one in sent)
        assert bool(sent) == (point.collectives == "overlapped")
        seen[point.collectives] += 1
        matrices = {each["what"] for each in copies if each.get("widened")}
        if "kernels" in row and _written_out(point):
            # What XLA:GPU does with groups: the five matrices of a layer, and nothing else.
            assert len(matrices) == 5 and all("/values converted from u4" in m for m in matrices)
            copies = [each for each in copies if each["what"] not in matrices]
        else:
            seen["by kernel"] += point.weight_dtype == "int4" and "kernels" in row
            assert not [what for what in matrices if "scale" not in what and "bias" not in what]
            assert row["bytes_over_floor"] < 1.0275
        # On GPUs a product of a norm's scale with one token, made eight, passes for a copy of it.
        scale = "scale" if "kernels" in row else "scales"
        named = (scale, *NAMED_COPIES.get(point.model, ()))
        others = [one["bytes"] for one in copies if not any(name in one["what"] for name in named)]
        assert max(others, default=0) < 1e5
    assert seen["compiler"] > 120 and seen["overlapped"] > 8 and seen["by kernel"] > 11


NAMED_COPIES = {"gpt-oss-120b": ("attention/query laid out", "mlp/router laid out")}
"""Matrices that are copied and said to be, on the page of compiled steps."""


def _written_out(point: Record) -> bool:
    """Whether XLA:GPU writes groups out: without a kernel for them, from three tokens on."""
    by_kernel = point.weight_dtype in (point.gpu_kernels or "").split(",")
    return point.weight_dtype == "int4" and point.batch > 2 and not by_kernel


def test_kernels_of_recorded_steps_read_the_weights_and_cache_that_floors_count():
    """But for matrices in groups that are written out and read again."""
    compiled = 0
    for point in itertools.chain(*(found["points"] for found in compiled_table.recorded())):
        row = summary(point)
        if "kernels" in row:
            beyond = 1.015 if point.model in NAMED_COPIES else 1.01
            assert (row["read_over_floor"] > beyond) == _written_out(point)
            assert row["library_calls"] == 0  # which only a device would choose
            compiled += 1
    assert compiled > 50


def test_the_first_page_says_where_the_recorded_step_goes():
    blocks = json.loads((RESULTS / "smollm2-135m-cpu-step-16/explain.json").read_text())["blocks"]
    taken = {block["name"]: block["measured_s"] for block in blocks}
    attention, mlp = (taken[name] / sum(taken.values()) for name in ("attention", "MLP"))
    said = f"attention takes {attention:.0%} of the step of 16 sequences, and the MLP {mlp:.0%}"
    assert said in " ".join(FIRST.read_text().split())


def test_the_plan_is_the_recorded_one():
    recorded = (RESULTS / "plan-llama3.1-70b/plan.txt").read_text().splitlines()
    shown = (
        page("profiles/plan/README.md")
        .split("$ python scripts/plan.py")[1]
        .split("```")[0]
        .splitlines()[1:]
    )
    assert "choice: " in "".join(shown) and set(shown) <= {*recorded, "..."}


def test_no_recorded_step_is_faster_than_its_floor():
    for path in RESULTS.glob("*/profile.json"):
        for point in json.loads(path.read_text())["points"]:
            assert point["floor_s"] < point["step_s"]["p10"]


def test_the_ratio_to_transformers_is_the_recorded_one():
    runs = json.loads((RESULTS / "smollm2-135m-cpu/peer-transformers.json").read_text())["runs"]
    ratios = [run["ratio"] for run in runs]
    assert f"{min(ratios):.1f} to {max(ratios):.1f} times" in page("profiles/measured/README.md")


def test_ci_runs_the_readmes_test_command():
    lines = FIRST.read_text().splitlines()
    (command,) = (line for line in lines if ".[test]" in line and "-m pytest" in line)
    assert command in (ROOT / ".ci/run").read_text().splitlines()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_of_every_page_leads_to_a_file_and_a_heading(path: Path):
    for part in path.read_text().split("](")[1:]:
        link, _, heading = part.split(")")[0].partition("#")
        if link.startswith("http"):
            continue
        target = path.parent / link if link else path
        assert target.exists(), link
        if heading:
            lines = re.findall("^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert heading in {
                re.sub(r"[^\w -]", "", line).lower().replace(" ", "-") for line in lines
            }
