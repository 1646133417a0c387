"""microbenchmark.py as a user runs it: its files, its calibration, and what is refused."""

import dataclasses
import json

import pytest

from profiles.chips.calibration import calibration_of, read_calibration
from profiles.measured.bandwidth import device_name, processor
from tests.scripts.running import run_many

MODULE = "profiles.measured.microbenchmark"
SMALL = {
    f"{MODULE}.MIN_ROUNDS": 2, f"{MODULE}.LARGEST_READ": 1 << 20, f"{MODULE}.MODEL": "tiny",
    f"{MODULE}.MOST_ROWS": 4, f"{MODULE}.WEIGHTS": 1 << 16, f"{MODULE}.LARGEST_PAYLOAD": 1 << 18,
    "profiles.measured.model_kernels.BURST_S": 0,
    "profiles.measured.kernels.MOST": 4, "profiles.measured.kernels.SAMPLE_S": 1e-6,
}  # fmt: skip
CASES = {
    "eight": ["--mesh=2x1x4", "--seconds=0", "--dtype=float32", "--rows=2", "--output_dir=eight",
              "--json=eight.json"],
    "dtype": ["--dtype=float32,int3"],
    "seconds": ["--seconds=nan"],
    "rows": ["--rows=1,none"],
    "many": ["--rows=2048"],
    "beside": ["--mesh=2x2", "--devices=2"],
    "folder": ["--output_dir=eight.json/a"],
}  # fmt: skip
ESTIMATES = {
    "own": ["--topology=h200:1", "--calibration=h200.json"],
    "other": ["--topology=h100:1", "--calibration=h200.json"],
    "both": ["--topology=h200:1,h100:1", "--calibration=h200.json"],
    "cpu": ["--topology=v5e:2x2", "--calibration=eight/calibration.json"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("microbenchmark")


@pytest.fixture(scope="module")
def ended(folder):
    return run_many("microbenchmark.py", CASES, folder=folder, patches=SMALL)


@pytest.fixture(scope="module")
def estimates(folder, ended):
    changes = {"name": "h200-measured", "chips": ("h200",), "measured_on": "h200", "memory": 0.5}
    measured = dataclasses.replace(calibration_of("h200"), **changes)
    (folder / "h200.json").write_text(json.dumps(measured.as_record()))
    cases = {name: ["--model=llama3-8b", "--batch=1", *flags] for name, flags in ESTIMATES.items()}
    return run_many("estimate.py", cases, folder=folder)


def test_files_are_written_and_tables_are_printed(ended, folder):
    done = ended["eight"]
    assert done.code == 0, done.stderr
    document = json.loads((folder / "eight/microbenchmark.json").read_text())
    assert document == json.loads((folder / "eight.json").read_text())
    assert document["schema"] == 1 and document["mesh"] == {"x": 2, "y": 1, "z": 4}
    parts = {"memory", "matmul", "attention", "collectives", "dispatch"}
    assert parts | {"calibration"} <= document.keys()
    assert [row["rows"] for row in document["matmul"]["samples"]] == [2, 4]
    kinds = {(fit["kind"], *fit["axes"]) for fit in document["collectives"]["fits"]}
    assert len(kinds) == 15 and ("all-reduce", "x", "z") in kinds
    assert "wrote eight/microbenchmark.json, eight/calibration.json" in done.stderr
    for words in ("GB/s", "TFLOP/s", "reduce-scatter", "arguments", "Calibration cpu-measured"):
        assert words in done.stdout


def test_the_calibration_says_where_it_was_measured(ended, folder):
    found = read_calibration(str(folder / "eight/calibration.json"))
    assert found.measured_on == f"cpu, {processor()}" and found.chips == ("cpu",)
    assert "measured on 8 x cpu" in found.source
    assert [rows for rows, _ in found.compute_by_rows] == [2, 4]
    assert dict(found.peaks).keys() == {"bandwidth", "flops"}


def test_a_calibration_is_taken_for_its_own_chip_and_refused_by_name_for_others(estimates):
    assert estimates["own"].code == 0, estimates["own"].stderr
    assert "calibration h200-measured" in " ".join(estimates["own"].stdout.split())
    for name, device, chip in (("other", "h200", "h100"), ("both", "h200", "h100"),
                               ("cpu", "cpu", "v5e")):  # fmt: skip
        done = estimates[name]
        assert done.code == 2
        place = device_name(device)
        assert f"{device}-measured is measured on {place}, not on {chip}; give" in done.error


def test_a_plan_refuses_the_calibration_of_another_device_too(folder, estimates):
    flags = ["--model=llama3-8b", "--topology=v5e:2x2", "--calibration=h200.json"]
    done = run_many("plan.py", {"plan": flags}, folder=folder)["plan"]
    assert done.code == 2 and "is measured on h200, not on v5e" in done.error


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("dtype", 2, "--dtype is 'int3'; use one or several of float32"),
        ("seconds", 2, "--seconds is nan; use"),
        ("rows", 2, "--rows is 'none'; use one or several numbers of 1 to"),
        ("many", 2, "--rows is '2048'; use one or several numbers of 1 to"),
        ("beside", 2, "--mesh is 2x2, of 4 devices, beside --devices of 2; leave"),
        ("folder", 1, "eight.json/a (Not a directory); name"),
    ],
)
def test_wrong_use_is_one_line(ended, name, code, message):
    assert ended[name].code == code
    assert message in ended[name].error
