"""gpu_report.py with planted scripts, and, marked slow, with the real ones and a tiny model."""

import json

import pytest

from tests.scripts.running import QUICK, run, run_many

PLANTED = """
import json, sys
from pathlib import Path
folder = Path(next(word for word in sys.argv if word.startswith("--output_dir=")).split("=")[1])
(folder / "NAME").write_text(json.dumps({"device_kind": "H200", "points": [{"batch": 1}]}))
(folder / "calibration.json").touch()
print("words:", *sys.argv[1:-1])
if "--batch=64" in sys.argv and not (folder / "again").exists():
    (folder / "again").touch()
    sys.exit("error: memory is full; use less")
"""
FILES = {
    "microbenchmark.py": "microbenchmark.json", "profile_decode.py": "profile.json",
    "explain_step.py": "explain.json", "compare_engines.py": "engines.json",
    "check_kernels.py": "kernels.json",
}  # fmt: skip
TINY = ["--model=tiny", "--batch=1,2", "--context=16,32", "--prompt_length=32",
        "--weight_dtype=float32,int8", "--explained_batch=1", "--minutes=300"]  # fmt: skip
CASES = {
    "first": ["--output_dir=out"],
    "again": ["--output_dir=out", "--json=again.json"],
    "other": ["--output_dir=out", "--batch=1"],
    "model": ["--model=gpt5"],
    "version": ["--output_dir=older"],
    "minutes": ["--minutes=0"],
    "batch": ["--batch=0"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("gpu_report")


@pytest.fixture(scope="module")
def ended(folder):
    scripts = folder / "scripts"
    scripts.mkdir()
    for name, file in FILES.items():
        (scripts / name).write_text(PLANTED.replace("NAME", file))
    older = {"settings": {"jax": "0.4"}, "parts": {}}
    (folder / "older").mkdir()
    (folder / "older/state.json").write_text(json.dumps(older))
    patches = {"gpu_report.SCRIPTS": str(scripts)}
    return run_many("gpu_report.py", CASES, folder=folder, patches=patches)


def test_a_part_that_fails_is_named_and_the_report_is_written(ended):
    done = ended["first"]
    assert done.code == 1
    assert "parts finished is 11 of 12 (explained-64 is failed); the same command" in done.error
    assert "| explained-64 | failed |" in done.stdout
    assert "error: memory is full; use less" in done.stdout


def test_the_same_command_goes_on_with_what_is_not_finished(ended, folder):
    done = ended["again"]
    assert done.code == 0, done.stderr
    assert "11 of 12 parts are kept; going on" in done.stderr
    report = json.loads((folder / "out/report.json").read_text())
    assert report["device_kind"] == "H200" and len(report["parts"]) == 12
    assert {"batch": 1, "part": "decode"} in report["points"]
    assert report["documents"]["decode"] == "decode/profile.json"
    assert json.loads((folder / "again.json").read_text()) == report


def test_parts_are_the_commands_of_the_shapes_that_are_asked_for(ended, folder):
    report = json.loads((folder / "out/report.json").read_text())
    commands = {part["name"]: part["command"][2:] for part in report["parts"]}
    assert {"--model=smollm2-135m", "--random_weights", "--devices=1", "--batch=1,8,64,256",
            "--context=2048", "--weight_dtype=bfloat16,int8,int4"} < {
                *commands["decode"]}  # fmt: skip
    assert commands["decode"][-1].startswith("--calibration=")
    assert "--context=512,16384" in commands["decode-contexts"]
    assert "--gpu_kernels=" in commands["decode-no-kernels"]
    assert "--gpu_kernels=attention_step" in commands["decode-attention"]
    assert {"--gpu_kernels=attention_step,norm", "--weight_dtype=int4"} < {
        *commands["decode-no-products"]}  # fmt: skip
    assert {"--gpu_kernels=attention_step,norm,int8", "--weight_dtype=int8"} < {
        *commands["decode-int8"]}  # fmt: skip
    assert next(iter(commands)) == "kernels"
    assert {"--phase=prefill", "--prompt_length=512,8192"} < {*commands["prefill"]}
    assert {"--batch=64", "--context=2048"} < {*commands["explained-64"]}
    assert "--engines=transformers-compiled" in commands["transformers"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("other", "batch is ['1'] here and ['1', '8', '64', '256'] in"),
        ("model", "model is 'gpt5'"),
        ("version", "older; give the same flags to go on, or another --output_dir"),
        ("minutes", "--minutes is 0.0; use a positive number"),
        ("batch", "--batch is '0'; use positive integers"),
    ],
)
def test_wrong_use_is_one_line(ended, name, message):
    assert ended[name].code == 2
    assert message in ended[name].error


@pytest.mark.slow
def test_a_report_of_a_tiny_model(tmp_path):
    done = run("gpu_report.py", *TINY, "--output_dir=out", folder=tmp_path, **QUICK)
    report = json.loads((tmp_path / "out/report.json").read_text())
    status = {part["name"]: part["status"] for part in report["parts"]}
    status.pop("transformers")  # needs an extra
    assert {*status.values()} == {"ok"}, done.stderr
    assert {point["part"] for point in report["points"]} >= {"decode", "prefill"}


def test_lengths_of_the_default_sweep_are_within_what_the_model_is_told_to_go_to(ended, folder):
    """smollm2-135m itself goes to 8,192 tokens, and is asked for 16,384 and a new one."""
    state = json.loads((folder / "out/state.json").read_text())
    commands = [
        part["command"]
        for name, part in state["parts"].items()
        if name not in ("kernels", "microbenchmark")
    ]
    assert len(commands) == 10
    for command in commands:
        assert f"--max_context={16384 + 64}" in command
