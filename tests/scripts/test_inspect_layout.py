"""`inspect_layout.py` as users run it."""

import json

import pytest

from model.catalog import find_model
from model.dtypes import FLOAT32
from profiles.compiled.inspection import PassProgram
from profiles.figures.layout import shown_arrays
from profiles.floor.passes import Pass
from sharding.catalog import LAYOUTS, prefill_by
from sharding.mesh import parse_mesh
from sharding.placement import Placement
from tests.scripts.running import run_many

TWO_D = ["--mesh=2x2x2", "--layout=weight_stationary_2d"]
CASES = {
    "tiny": ["--model=tiny", *TWO_D, "--json=-"],
    "bfloat16": ["--model=tiny", *TWO_D, "--dtype=bfloat16"],
    "few bits": ["--model=tiny", "--mesh=2x2x2", "--layout=weight_gathered_x",
                 "--weight_dtype=int8", "--kv_dtype=int8", "--json=-"],
    "large": ["--model=llama3-70b", "--mesh=4x4x4", "--attention=batch", "--json=large.json"],
    "auto": ["--model=llama3-70b", "--mesh=2x2x2", "--layout=auto", "--attention=auto",
             "--prefill_layout=auto", "--batch=64", "--compile=false"],
    "experts": ["--model=mixtral-8x7b", "--mesh=2x2x2", "--expert_parallel", "--compile=false"],
    "count": ["--model=llama3-8b", "--devices=16", "--batch=64", "--context=2048",
              "--compile=false"],
    "counted": ["--model=tiny", "--mesh=1x1x2", "--weight_dtype=nvfp4", "--json=-"],
    "both": ["--model=llama3-8b", "--devices=16", "--mesh=1x1x16", "--compile=false"],
}  # fmt: skip
LOOPS = ["--model=tiny", *TWO_D, "--collectives=overlapped", "--phase=prefill", "--json=-"]
REFUSALS = {
    "counted": (
        ["--model=tiny", "--mesh=2", "--weight_dtype=nvfp4", "--compile"],
        "--weight_dtype is nvfp4, which is counted but does not run",
    ),
    "mesh": (["--model=tiny", "--mesh=2x"], "mesh is '2x'; write sizes of x, y and z"),
    "layout": (["--model=tiny", "--layout=3d"], "layout is '3d'; use one of weight_stationary_1d"),
    "divide": (["--model=tiny", "--mesh=1x1x5"], "d_ff is 128, which mesh axes z=5 (5 shards)"),
    "groups": (
        ["--model=llama3-8b", "--mesh=1x1x64", "--weight_dtype=int4"],
        "attention.output has 128 inputs in 64 shards, which groups of 32 (int4) do not divide",
    ),
    "absurd": (["--model=tiny", "--mesh=1x1x99999"], "d_ff is 128, which mesh axes z=99999"),
    "auto": (["--model=tiny", "--mesh=1x1x99999", "--layout=auto"], "d_ff is 128, which mesh axes"),
    "prefill": (
        ["--model=tiny", "--prefill_layout=weight_gathered_x"],
        "prefill_layout is weight_gathered_x, which stores weights otherwise than",
    ),
    "experts": (["--model=tiny", "--expert_parallel"], "--expert_parallel is true, but tiny has"),
    "long": (
        ["--model=tiny", "--context=513"],
        "--context is 513, beyond the 512 tokens that tiny",
    ),
    "mesh beside devices": (
        ["--model=tiny", "--mesh=2x2", "--devices=8"],
        "--mesh is 2x2, of 4 devices, beside --devi",
    ),
    "batch": (["--model=tiny", "--batch=0"], "--batch is '0'"),
    "output": (["--model=tiny", "--output_dir=file"], "output path is file"),
    "weights": (["--model=nosuch"], "model is 'nosuch'"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inspect")
    (folder / "file").touch()
    return folder


@pytest.fixture(scope="module")
def ended(folder):
    cases = {name: [*arguments, f"--output_dir=out/{name}"] for name, arguments in CASES.items()}
    refusals = {f"refuse {name}": arguments for name, (arguments, _) in REFUSALS.items()}
    return run_many("inspect_layout.py", cases | refusals, folder=folder)


def test_the_document_has_arrays_and_both_lists(ended):
    document = ended["tiny"].document
    assert {point["layout"] for point in document["points"]} == {"weight_stationary_2d"}
    down = next(a for a in document["arrays"] if a["name"] == "layers/0/mlp/down")
    assert down == {
        "name": "layers/0/mlp/down",
        "shape": [64, 128],
        "axes": ["D", "F"],
        "sharding": [["x"], ["z", "y"]],
        "bytes_per_chip": 4096,
        "copies": 1,
    }
    lists = document["collectives"]
    assert set(lists) == {"expected", "compiled"}
    fields = {"kind", "axes", "payload_bytes", "count", "where"}
    assert all(set(each) == fields for each in lists["expected"] + lists["compiled"])

    def moved(name: str) -> int:
        return sum(each["payload_bytes"] * each["count"] for each in lists[name])

    assert moved("expected") == moved("compiled") > 0


@pytest.mark.parametrize("name", CASES)
def test_every_case_draws_its_picture(ended, folder, name):
    assert ended[name].code == 0, ended[name].stderr
    assert (folder / "out" / name / "layout.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow  # by default `test_communication` has lists of loops
def test_loops_are_permutes(folder):
    (ended,) = run_many("inspect_layout.py", {"loops": LOOPS}, folder=folder).values()
    kinds = {each["kind"] for each in ended.document["collectives"]["compiled"]}
    assert "permute" in kinds and "reduce-scatter" in kinds  # the table's rows are not in a loop


def test_the_verdict_says_what_a_cpu_makes_otherwise(ended):
    text = ended["bfloat16"].stdout
    assert "compiled for cpu equals expected in kind, axes, bytes and count, beyond what" in text
    assert "KV cache: 131,072 bytes per chip, 98,304 of them for copies" in text


def test_arrays_in_few_bits_are_rows_of_their_own(ended):
    text, document = ended["few bits"].stderr, ended["few bits"].document
    assert "compiled for cpu equals expected in kind, axes, bytes and count" in text
    assert "[D.x, 1]" in text and "[K.z, B.x, S]" in text and "None" not in text
    scales = next(a for a in document["arrays"] if a["name"] == "layers/0/mlp/down/scales")
    assert scales == {
        "name": "layers/0/mlp/down/scales",
        "shape": [64, 1],
        "axes": ["D", "1"],
        "sharding": [["x"], []],
        "bytes_per_chip": 128,
        "copies": 4,
    }


def test_types_that_are_counted_alone_are_listed_and_not_compiled(ended):
    document = ended["counted"].document
    values, scales, whole = (
        next(a for a in document["arrays"] if a["name"] == f"layers/0/mlp/down/{part}")
        for part in ("values", "scales", "whole")
    )
    assert values["bytes_per_chip"] == 64 * 128 / 4 and scales["bytes_per_chip"] == 64 * 8 / 2
    assert (whole["bytes_per_chip"], whole["copies"]) == (4, 2)
    assert "compiled" not in document["collectives"]


def test_a_large_model_is_not_compiled_unasked(ended, folder):
    document = json.loads((folder / "large.json").read_text())
    assert "compiled" not in document["collectives"]
    assert "compiled: not tried; --compile does" in ended["large"].stdout
    assert "layers/*/mlp/gate_up                 80" in ended["large"].stdout


def test_auto_says_what_it_picked_and_why(ended):
    lines = ended["auto"].stderr.splitlines()
    picked, prompts = (next(line for line in lines if line.startswith(what))
                       for what in ("layout auto:", "prefill_layout auto:"))  # fmt: skip
    assert "s (memory" in picked and "s (memory" in prompts
    assert "predicted from assumed rates of a CPU" in picked and "; next: " in picked
    name = picked.split(": ")[1].split(",")[0]
    assert name in ended["auto"].stdout.splitlines()[0]


def test_of_a_count_of_devices_the_mesh_is_the_one_whose_floor_is_least(ended):
    assert ended["count"].stdout.startswith("llama3-8b on 1x8x2, weight_stationary_1d")
    assert "mesh 1x8x2: the least floor of weight_stationary_1d" in ended["count"].stderr
    assert ended["both"].stdout.startswith("llama3-8b on 1x1x16, weight_stationary_1d")


def test_the_picture_of_a_prefill_is_of_its_layout():
    steps = LAYOUTS["weight_stationary_2d"]
    config = find_model("tiny")
    placement = Placement.of(
        prefill_by(steps, LAYOUTS["weight_gathered_xyz"]), config.sizes, parse_mesh("2x2x2")
    )
    prompts = Pass(8, context=0, tokens=8, slots=24)
    program = PassProgram(config=config, placement=placement, dtypes=FLOAT32, pass_=prompts)
    assert program.run.layout.name == "weight_gathered_xyz"
    assert any("in use" in shown.title for shown in shown_arrays(program.run))
    assert "weight_gathered_xyz" in str(program)


def test_experts_of_each_device_are_said(ended):
    assert "[E.zyx, C, F, D]" in ended["experts"].stdout
    assert "mixture" in ended["experts"].stdout


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_work_is_refused_in_one_line(ended, name):
    refused = ended[f"refuse {name}"]
    assert refused.code == (1 if name == "output" else 2)
    assert REFUSALS[name][1] in refused.error
    assert refused.stdout == ""
