"""explain_step.py as a user runs it: its files, traces from a folder, and what is refused."""

import json

import pytest

from tests.scripts.profile_cases import QUICK_RATES
from tests.scripts.running import run_many

TINY = ["--model=tiny", "--random_weights", "--batch=2", "--context=20"]
RATES = ["--hbm_bandwidth=1e10", "--peak_flops=1e11"]
CASES = {
    "live": [*TINY, "--seconds=0", "--output_dir=live", "--json=live.json"],
    "folder": [*TINY, *RATES, "--trace_dir=live/trace", "--output_dir=again", "--json=-"],
    "types": [*TINY, *RATES, "--trace_dir=live/trace", "--weight_dtype=int8"],
    "batch": [*TINY[:2], *RATES, "--batch=4", "--context=20", "--trace_dir=live/trace"],
    "impossible": [*TINY, "--hbm_bandwidth=2e4", "--peak_flops=1e7", "--trace_dir=live/trace"],
    "empty": [*TINY, "--trace_dir=nothing_here"],
    "no_steps": [*TINY, *RATES, "--trace_dir=no_steps"],
    "model": ["--model=unheard_of"],
    "rates": [*TINY, "--hbm_bandwidth=-1"],
    "seconds": [*TINY, "--trace_dir=live/trace", "--seconds=3"],
    "context": ["--model=tiny", "--random_weights", "--context=9999999"],
    "two_types": [*TINY, "--weight_dtype=int8,int4"],
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    import jax
    import jax.numpy as jnp

    from profiles.measured.trace import capture

    folder = tmp_path_factory.mktemp("explain")
    with capture(folder / "no_steps"):
        jax.jit(jnp.sin)(1.0).block_until_ready()
    return folder


@pytest.fixture(scope="module")
def ended(folder):
    # Else a floor would not apply to a model that caches hold.
    patches = QUICK_RATES | {"profiles.measured.step_record.CACHE_MULTIPLE": 0}
    return run_many("explain_step.py", CASES, folder=folder, patches=patches)


def test_files_are_written_and_blocks_add_up_to_the_step(ended, folder):
    done = ended["live"]
    assert done.code == 0, done.stderr
    document = json.loads((folder / "live/explain.json").read_text())
    assert document == json.loads((folder / "live.json").read_text())
    (record,) = document["points"]
    assert (record["model"], record["batch"], record["context"]) == ("tiny", 2, 20)
    total = sum(each["measured_s"] for each in document["blocks"]) + document["unattributed_s"]
    assert total == pytest.approx(record["step_s"]["median"], rel=1e-9)
    floors = {each["name"]: each["floor_s"] for each in document["blocks"]}
    assert floors["MLP"] > 0 and floors["between operations"] == 0
    named = 1 - document["unattributed_s"] / record["step_s"]["median"]
    assert document["named"] == pytest.approx(named)
    assert (folder / "live/waterfall.png").exists() and list((folder / "live/trace").rglob("*.pb"))
    assert "wrote live/explain.json, live/waterfall.png" in done.stderr
    for words in ("block", "MLP", "unattributed", "The step's floor is", "tiny, decode, float32"):
        assert words in done.stdout


def test_a_folder_s_trace_is_explained_at_its_own_time_and_at_given_rates(ended, folder):
    done = ended["folder"]
    assert done.code == 0, done.stderr
    live, again = json.loads((folder / "live.json").read_text()), done.document
    assert again["points"][0]["step_s"]["median"] == live["trace"]["step_s"]
    assert again["bandwidth"] == {
        "bytes_per_s": 1e10, "source": "given", "peak_flops_per_s": 1e11
    }  # fmt: skip
    assert {b["name"] for b in again["blocks"]} == {b["name"] for b in live["blocks"]}


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("types", 1, "trace is of another program: "),
        ("batch", 1, "batch of the trace is 2, and that of the step 4; give --batch=2"),
        ("impossible", 1, "below its floor of"),
        ("empty", 1, "trace in nothing_here is missing; run with --trace to write one"),
        ("no_steps", 1, "number of steps in the trace is 0; take it with"),
        ("model", 2, "unheard_of"),
        ("rates", 2, "--hbm_bandwidth is -1.0; use a positive number"),
        ("seconds", 2, "--seconds is given, but --trace_dir has a trace that was taken before"),
        ("context", 2, "--context"),
        ("two_types", 2, "--weight_dtype is int8,int4; give one of them"),
    ],
)
def test_wrong_use_is_one_line(ended, name, code, message):
    assert ended[name].code == code, ended[name]
    assert message in ended[name].error
