"""search_options.py without the compiler: what is missing, and mistakes; and live, two sets."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from profiles.compiled.toolchains import TPU
from tests.scripts.running import SCRIPTS, run_many
from tests.scripts.test_compile_step import NO_COMPILER

CASES = {
    "no_topology": ([], "--topology is not given, and options are those of a chip's compiler;"),
    "other_chip": (["--topology=l4:8"], "topology is l4:8, of which profiles/chips/gpu_targets"),
    "no_slice": (["--topology=v5e:3x5"], "topology is v5e:3x5"),
    "malformed": (
        ["--topology=v5e:2x4", "--options=xla_a=1,xla_b"],
        "--options is 'xla_a=1,xla_b', in which 'xla_b' is no NAME=VALUE; write sets as",
    ),
    "both": (
        ["--topology=v5e:2x4", "--options=xla_a=1", "--candidates=sets.json"],
        "--options is given beside --candidates; give one of them",
    ),
    "no_file": (
        ["--topology=v5e:2x4", "--candidates=sets.json"],
        "candidates are in sets.json, which cannot be read",
    ),
    "short": (
        ["--topology=v5e:2x4", "--phase=prefill", "--context=1"],
        "--context is 1 with --phase=prefill; use 2 tokens or more",
    ),
    "sized": (
        ["--topology=v5e:2x4", "--model=deepseek-v3-even"],
        "model is deepseek-v3-even, which is kno",
    ),
    "no_compiler": (["--topology=v5e:2x4"], "libtpu is not installed"),
    "no_gpu_compiler": (["--topology=h100:8"], "jax-cuda13-plugin is not installed"),
}


def test_a_mistake_is_one_line(tmp_path):
    ended = run_many(
        "search_options.py",
        {name: arguments for name, (arguments, _) in CASES.items()},
        folder=tmp_path,
        patches=NO_COMPILER,
    )
    for name, (_, message) in CASES.items():
        assert ended[name].error.startswith(message)
        assert ended[name].code == (1 if "compiler" in name else 2)
    assert not list(tmp_path.iterdir())  # no folder is made before all is known to be right
    assert not any(each.jax_started for each in ended.values())


@pytest.mark.tpu_compile
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="no libtpu")
def test_two_sets_are_tried_and_an_unknown_option_is_named(tmp_path):
    evictions = "xla_msa_max_outstanding_evictions"
    step = ["--model=llama3-8b", "--layers=1", "--topology=v5e:2x2", "--mesh=4", "--batch=8"]
    sets = f"--options=xla_no_such=1;{evictions}=-1"
    command = [sys.executable, str(SCRIPTS / "search_options.py"), *step, "--context=512", sets]
    for _ in range(2):  # the second time nothing is compiled
        done = subprocess.run(
            [*command, "--layout=weight_stationary_1d", "--json=-"],
            cwd=tmp_path,
            env=TPU.child_environment(),
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode == 0, done.stderr[-2000:]
    document = json.loads(done.stdout)
    assert document == json.loads(Path(tmp_path, "out/options/options.json").read_text())
    found = {next(iter(one["set"]), ""): one for one in document["options"]}
    assert "No such compile option: 'xla_no_such'" in found["xla_no_such"]["message"]
    # With evictions the compiler copies the cache to VMEM and back, which the engine forbids.
    assert found[evictions]["status"] == "ok"
    assert found[evictions]["cost_s"] >= found[""]["cost_s"]
    assert document["best"] == {}
    lines = Path(tmp_path, "out/options/options.jsonl").read_text().splitlines()
    assert len(lines) == 3
