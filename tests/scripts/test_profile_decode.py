"""`profile_decode.py` as users run it: its files, its table and its floors."""

import csv
import json
import re

import pytest

from profiles.measured import trace
from profiles.measured.timing import MIN_BURST
from profiles.report.numbers import ms
from tests.gguf_samples import write_tiny_gguf
from tests.scripts.profile_cases import HELD, PROMPTS, QUICK_RATES, TINY, write_calibration
from tests.scripts.running import run_many

FILE = ["--model=tiny.gguf", *HELD]
GIVEN = "--calibration=slow.json"  # measuring one takes longer than these rows
FILES = ["cost.png", "events", "profile.csv", "profile.json", "step_time.png"]
MESHES = [{"x": 1, "y": 1, "z": 1}, {"x": 1, "y": 1, "z": 2}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the script runs."""
    folder = tmp_path_factory.mktemp("profile")
    (folder / "file").touch()
    write_calibration(folder / "slow.json", "cpu")
    write_tiny_gguf(folder / "tiny.gguf", layers=1)
    return folder


@pytest.fixture(scope="module")
def in_cache(folder):
    """Sweeps of tiny models, which a CPU's cache holds."""
    cases = {
        "tiny": [
            *FILE, GIVEN, "--devices=1,2", "--batch=2", "--price_per_chip_hour=3", "--trace",
            "--weight_layout=auto", "--output_dir=out/tiny",
        ],
        "full": [
            *FILE, GIVEN, "--devices=1", "--batch=2,2", "--output_dir=full",
            "--json=full/copy.json",
        ],
        "long prompts": [
            "--model=tiny", GIVEN, *PROMPTS, "--prompt_length=100", "--batch=1000000000",
            "--output_dir=long",
        ],
        "both": [
            *FILE, GIVEN, "--phase=decode,prefill", "--dtype=float32,bfloat16", "--devices=1",
            "--batch=2", "--prompt_length=32", "--chunk=32", "--output_dir=both",
        ],
        "too large": [*TINY, GIVEN, "--devices=1", "--batch=1000000000", "--output_dir=large"],
    }  # fmt: skip
    (folder / "full" / "events").mkdir(parents=True)
    (folder / "full" / "events" / "events.out.tfevents.1.earlier").touch()
    return run_many("profile_decode.py", cases, folder=folder, patches=QUICK_RATES, full=["full"])


@pytest.fixture(scope="module")
def profiled(in_cache, folder):
    """How the first of them ended, and its folder."""
    assert in_cache["tiny"].code == 0, in_cache["tiny"].stderr
    return in_cache["tiny"], folder / "out" / "tiny"


@pytest.fixture(scope="module")
def beyond_cache(folder):
    """More on a CPU whose last-level cache is said to be 1 KB, so that floors apply."""
    cache = folder / "cpus" / "cpu0" / "cache" / "index3"
    cache.mkdir(parents=True)
    (cache / "size").write_text("1K\n")
    (cache / "shared_cpu_list").write_text("0\n")
    cases = {
        "sound": [*FILE, GIVEN, "--devices=1,2", "--batch=1,2", "--output_dir=sound", "--json=-"],
        "impossible": [
            *FILE, GIVEN, "--devices=1", "--batch=1", "--output_dir=impossible",
            "--hbm_bandwidth=1",
        ],
        "prompts": [
            "--model=tiny.gguf", GIVEN, *PROMPTS[1:], "--prompt_length=32,64", "--chunk=32",
            "--batch=2", "--output_dir=prompts", "--json=prompts/copy.json",
        ],
        "roomy": [*TINY, "--devices=1", "--batch=2", "--slots=4096", "--output_dir=roomy"],
        "another model": [*TINY, GIVEN, "--devices=1", "--batch=1", "--output_dir=sound"],
    }  # fmt: skip
    patches = QUICK_RATES | {"profiles.measured.bandwidth.CPU_CACHES": str(folder / "cpus")}
    optimized = ["sound"]  # its floors are held against real steps
    return run_many("profile_decode.py", cases, folder=folder, patches=patches, optimized=optimized)


def points_of(output):
    return json.loads((output / "profile.json").read_text())["points"]


def test_every_file_is_written(profiled):
    output = profiled[1]
    assert sorted(path.name for path in output.iterdir()) == [*FILES, "trace"]
    for name in ("cost.png", "step_time.png"):
        assert (output / name).read_bytes().startswith(b"\x89PNG")
    assert "expected by calibration slow" in " ".join(profiled[0].stdout.split())
    (events,) = (output / "events").iterdir()
    assert "tfevents" in events.name
    assert events.stat().st_size > 10_000  # with both figures in it
    said = profiled[0].stderr
    assert "weights as the compiler would have them for batch 2: 0 of " in said
    assert said.splitlines()[-1].startswith("wrote out/tiny/profile.json")


def test_there_is_a_record_for_every_mesh_and_batch(profiled, beyond_cache):
    points = beyond_cache["sound"].document["points"]
    assert [(p["mesh"], p["devices"], p["batch"]) for p in points] == [
        (mesh, mesh["z"], batch) for mesh in MESHES for batch in (1, 2)
    ]
    points = points_of(profiled[1])
    assert [(p["mesh"], p["batch"]) for p in points] == [(mesh, 2) for mesh in MESHES]
    for point in points:
        assert (point["model"], point["phase"], point["context"]) == ("tiny", "decode", 16)
        assert point["tokens_per_sequence"] == 1
        assert point["layout"] == "weight_stationary_1d"
        assert point["weight_layout"] == "auto"
        assert point["dtype"] == point["weight_dtype"] == point["kv_dtype"] == "float32"
        assert point["parameters"]["total"] == point["parameters"]["active"] > 10_000
        samples = point["step_s"]["samples"]
        assert len(samples) >= 5
        assert point["step_s"]["p10"] <= point["step_s"]["median"] <= point["step_s"]["p90"]
        assert point["tokens_per_s"] == pytest.approx(point["batch"] / point["step_s"]["median"])
        assert point["usd_per_million_tokens"] > 0
        terms = point["floor_terms_s"]
        memory = terms["weights"] + terms["kv_cache"]
        assert point["floor_s"] == pytest.approx(max(memory, terms["compute"]))
        assert point["weight_floor_s"] == terms["weights"]
        assert point["bytes_per_chip"].keys() >= {"weights_resident", "weights_read", "kv_read"}


def test_the_document_names_the_run_and_its_measured_bandwidth(profiled):
    document = json.loads((profiled[1] / "profile.json").read_text())
    assert document["schema"] == 1
    assert "--trace" in document["command"]
    assert {"python", "jax", "jaxlib", "flax"} <= document["versions"].keys()
    assert document["device_kind"] == "cpu"
    assert document["bandwidth"]["source"] == "measured"
    assert 1e8 < document["bandwidth"]["bytes_per_s"] < 1e13


def test_the_csv_file_has_a_row_for_each_record(profiled):
    rows = list(csv.DictReader((profiled[1] / "profile.csv").open()))
    points = points_of(profiled[1])
    assert [float(row["step_s.median"]) for row in rows] == [p["step_s"]["median"] for p in points]
    assert [row["status"] for row in rows] == ["cache_resident"] * 2


def rows_of(stdout: str) -> list[list[str]]:
    """The cells of a table's rows."""
    return [line.split() for line in stdout.splitlines() if re.match(r" *\d+ \(\dx\dx\d\)  ", line)]


def test_a_model_that_the_cache_holds_is_held_against_no_floor(profiled):
    for point in points_of(profiled[1]):
        assert point["status"] == "cache_resident"
        assert "fraction_of_floor" not in point
    assert "cache_resident: its" in profiled[0].stdout
    for row in rows_of(profiled[0].stdout):  # floor and its ratio; the expected time has its own
        assert (row[4], row[7]) == ("-", "-") and row[8].endswith("%")


def test_the_table_has_a_row_for_each_record(profiled):
    lines = profiled[0].stdout.splitlines()
    assert lines[0].startswith("tiny, decode, float32, on cpu, layout weight_stationary_1d")
    assert len(rows_of(profiled[0].stdout)) == 2


def test_the_table_has_floor_expected_and_measured_time_and_both_ratios(beyond_cache, folder):
    ended = beyond_cache["roomy"]
    points = points_of(folder / "roomy")
    for row, point in zip(rows_of(ended.stdout), points, strict=True):
        seconds = point["floor_s"], point["expected_s"], point["step_s"]["median"]
        assert row[4:7] == [ms(each) for each in seconds]
        shares = point["fraction_of_floor"], point["expected_s"] / point["step_s"]["median"]
        assert row[7:9] == [f"{share:.0%}" for share in shares]
    assert "expected by calibration cpu-" in " ".join(ended.stdout.split())


def test_a_record_has_all_four_times_and_the_hosts(profiled):
    for point in points_of(profiled[1]):
        assert point["floor_s"] > 0 and point["expected_s"] > 0
        assert point["expected_terms_s"].keys() >= {"memory", "compute"}
        assert point["compiled"]["cache_aliased"] and point["collectives_as_expected"]
        samples = point["host_s"]["samples"]
        assert len(samples) == len(point["step_s"]["samples"]) and min(samples) > 0
        assert "device_s" not in point  # nothing measured it
    calibration = json.loads((profiled[1] / "profile.json").read_text())["calibration"]
    assert calibration["measured_on"] == "cpu" and 0 < calibration["memory"] <= 1


def test_the_lines_under_the_table_say_what_the_programs_were_compiled_to(beyond_cache):
    text = " ".join(beyond_cache["roomy"].stdout.split())
    assert "- compiled: weights and cache " in text
    assert "as the floor counts them, cache in place, " in text
    assert "collectives as the layout asks, temporaries " in text


def test_a_calibration_of_these_devices_is_taken_and_named(in_cache, folder):
    ended = in_cache["full"]
    document = json.loads((folder / "full" / "profile.json").read_text())
    point = document["points"][0]
    flops = document["bandwidth"]["peak_flops_per_s"]
    terms = point["expected_terms_s"]
    assert terms["compute"] == pytest.approx(point["flops_per_chip"] / flops / 0.25)
    assert terms["overhead"] == pytest.approx(0.5 + 0.25)  # a step and a layer
    assert point["expected_s"] == pytest.approx(
        max(terms["memory"], terms["compute"]) + terms["overhead"]
    )
    assert document["calibration"]["words"] == "slow"
    assert "measuring what" not in ended.stderr  # nothing else is measured for it


def test_each_row_has_a_trace_with_its_steps(profiled):
    output = profiled[1] / "trace"
    start = "weight_stationary_1d_heads_compiler_float32"
    assert sorted(path.name for path in output.iterdir()) == [
        f"{start}_1x1x{devices}_batch_2_context_16" for devices in (1, 2)
    ]
    for row in output.iterdir():
        assert trace.newest(row).name.endswith(".xplane.pb")
        events = trace.read(row)
        assert sum(event.name == "step" for event in events) == MIN_BURST
        assert any("fusion" in event.operation for event in events)


def test_beyond_the_cache_each_mesh_has_a_fit_and_each_step_a_fraction(beyond_cache):
    ended = beyond_cache["sound"]
    assert ended.code == 0, ended.stderr
    document = ended.document  # and nothing else on standard output
    fits = document["fits"]
    assert [fit["mesh"] for fit in fits] == MESHES
    for fit in fits:
        assert fit.keys() >= {"intercept_s", "slope_s", "weight_floor_s", "kv_slope_floor_s"}
    for point in document["points"]:
        assert point["status"] == "ok"
        assert 0 < point["fraction_of_weight_floor"] <= point["fraction_of_floor"] <= 1
        assert 0 < point["mbu"] <= 1
        step = point["step_s"]["median"]
        assert point["fraction_of_floor"] == pytest.approx(point["floor_s"] / step)


def test_json_on_standard_output_comes_beside_the_files(beyond_cache, folder):
    written = json.loads((folder / "sound" / "profile.json").read_text())
    assert written == beyond_cache["sound"].document


def test_a_step_below_its_floor_is_an_error(beyond_cache, folder):
    ended = beyond_cache["impossible"]
    assert ended.code == 1
    assert "below its floor; the rates that the floor was taken at must be wrong" in ended.error
    assert points_of(folder / "impossible")[0]["fraction_of_floor"] > 1  # reported, not clamped
    assert "(!)" in ended.stdout


def test_results_are_in_files_before_they_are_printed(in_cache, folder):
    ended = in_cache["full"]
    assert ended.code == 1 and "No space left on device" in ended.error
    assert sorted(path.name for path in (folder / "full").iterdir()) == ["copy.json", *FILES]
    points = points_of(folder / "full")
    assert [point["batch"] for point in points] == [2]  # once
    assert json.loads((folder / "full" / "copy.json").read_text())["points"] == points
    (events,) = (folder / "full" / "events").iterdir()
    assert events.stat().st_size > 10_000


def test_a_run_without_a_measured_row_is_written_and_shown_and_fails(in_cache, folder):
    ended = in_cache["too large"]
    assert ended.code == 1
    assert ended.error.startswith("number of rows measured is 0 of 1 (does_not_fit: memory for ")
    assert "does_not_fit: memory for weights" in ended.stdout
    assert [point["status"] for point in points_of(folder / "large")] == ["does_not_fit"]
    assert sorted(path.name for path in (folder / "large").iterdir()) == FILES


def test_prompts_are_measured_chunk_by_chunk(beyond_cache, folder):
    ended = beyond_cache["prompts"]
    assert ended.code == 0, ended.stderr
    document = json.loads((folder / "prompts" / "profile.json").read_text())
    assert "fits" not in document  # lines over batches are of decode steps alone
    points, prompts = document["points"], document["prompts"]
    cut = {32: [(0, 32)], 64: [(0, 32), (32, 32)]}
    found = [(p["prompt_length"], p["context"], p["tokens_per_sequence"]) for p in points]
    assert found == [(length, *chunk) for length, chunks in cut.items() for chunk in chunks]
    assert [(p["prompt_length"], p["chunks"]) for p in prompts] == [(32, 1), (64, 2)]
    for point in (*points, *prompts):
        assert point["phase"] == "prefill" and len(point["step_s"]["samples"]) >= 5
        assert point.keys() >= {"floor_s", "floor_terms_s", "tokens_per_s", "flops_per_chip"}
        assert point["status"] == "ok" and 0 < point["fraction_of_floor"] <= 1
        assert 0 < point["mfu"] <= 1
        assert point["expected_s"] > 0
    for length in cut:
        chunks = [point["expected_s"] for point in points if point["prompt_length"] == length]
        (whole,) = (point for point in prompts if point["prompt_length"] == length)
        assert whole["expected_s"] == pytest.approx(sum(chunks))
    assert all(point["compiled"]["cache_aliased"] for point in points)
    rows = list(csv.DictReader((folder / "prompts" / "profile.csv").open()))
    assert [row["chunks"] for row in rows] == [""] * 3 + ["1", "2"]  # whole prompts come last
    lines = ended.stdout.splitlines()
    assert lines[0].startswith("tiny, prefill, float32, on cpu")
    assert [line.split(": ")[0] for line in lines[-2:]] == [
        "1 device (1x1x1), batch 2, prompt 32", "1 device (1x1x1), batch 2, prompt 64"
    ]  # fmt: skip
    assert sorted(path.name for path in (folder / "prompts").iterdir()) == ["copy.json", *FILES]


def test_steps_and_prompts_in_two_types_are_measured_in_one_run(in_cache, folder):
    ended = in_cache["both"]
    assert ended.code == 0, ended.stderr
    document = json.loads((folder / "both" / "profile.json").read_text())
    assert document["complete"] is True
    points, types = document["points"], ["float32", "bfloat16"]
    assert [(p["phase"], p["dtype"]) for p in points] == [
        (phase, dtype) for dtype in types for phase in ("decode", "prefill")
    ]
    assert [p["prompt_length"] for p in document["prompts"]] == [32, 32]
    assert document["fits"] == []  # of one batch
    peaks = document["bandwidth"]["peak_flops_by_dtype"]
    assert [*peaks] == types and peaks["float32"] == document["bandwidth"]["peak_flops_per_s"]
    for point in points:
        rate = peaks[point["dtype"]]
        assert point["floor_terms_s"]["compute"] == pytest.approx(point["flops_per_chip"] / rate)
    titles = [line for line in ended.stdout.splitlines() if line.startswith("tiny, ")]
    assert [title.split(", ")[1] for title in titles] == ["decode", "prefill"]
    assert sorted(path.name for path in (folder / "both").iterdir()) == sorted(
        [*FILES, "prompt_cost.png", "prompt_time.png"]
    )
    assert [*(folder / "both" / "events" / "prefill").iterdir()]


def test_a_folder_with_a_run_of_another_model_is_left_as_it_is(beyond_cache, folder):
    ended = beyond_cache["another model"]
    assert ended.code == 2
    assert ended.error.startswith("output folder is sound, whose run has ")
    assert ended.error.endswith("; give another --output_dir, or remove it")
    written = json.loads((folder / "sound" / "profile.json").read_text())
    assert written == beyond_cache["sound"].document


def test_prompts_that_do_not_fit_are_a_result_that_names_the_chunk(in_cache, folder):
    ended = in_cache["long prompts"]
    assert ended.code == 1
    said = "number of rows measured is 0 of 1 (does_not_fit: prompt is 100 tokens in chunks of 512:"
    assert ended.error.startswith(said)
    (point,) = points_of(folder / "long")
    assert (point["prompt_length"], point["tokens_per_sequence"]) == (100, 100)


def test_what_reading_allocated_slots_would_cost_is_told(beyond_cache, folder):
    ended = beyond_cache["roomy"]
    assert ended.code == 0, ended.stderr
    assert [point["slots"] for point in points_of(folder / "roomy")] == [4096]
    assert "-  reading all 4,096 allocated slots in place of 17 filled ones would" in ended.stdout
    assert "allocated" not in beyond_cache["sound"].stdout


# What is refused ---------------------------------------------------------------------------------
