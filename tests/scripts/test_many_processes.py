"""Scripts in many processes on this machine: the same results, and an end when a peer is gone."""

import json
import re
import socket
import sys
import time

import pytest

from tests.gguf_samples import write_tiny_gguf
from tests.processes import free_address
from tests.scripts.running import SCRIPTS, each_started, ends, run_many, started

TINY = ["--model=tiny", "--random_weights"]
PROMPT = [*TINY, "--prompt_tokens=1,2,3", "--devices=4", "--max_new_tokens=6"]
SAMPLED = [*PROMPT, "--prompt_tokens=9,8,7,6,5", "--temperature=1.5", "--seed=3"]
LIMIT = 3  # seconds, --peer_timeout
PATIENT = 10  # seconds: of processes that come, though late on a busy machine
SLACK = 80  # what is added to it: with it less than JAX's own limit of a silent peer
STARTED = 280  # to it where Python starts, too: less than JAX's own limit of a peer to come
GONE = re.compile(r"process (\d) of 2 is gone|Gloo")  # a collective may notice it first


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The document of the same run in one process."""
    case = {"alone": [*SAMPLED, "--json=-"]}
    return run_many("generate.py", case, folder=tmp_path_factory.mktemp("a"))["alone"].document


def check(alone, first, *others, devices=4):
    assert first.code == 0, first.stderr
    assert re.search(rf"^.*{devices} cpu devices.*$", first.stderr, re.MULTILINE)
    assert [(o.code, o.stdout, o.stderr) for o in others] == [(0, "", "")] * len(others)
    assert first.document["tokens"] == alone["tokens"]
    for mine, expected in zip(first.document["logprobs"], alone["logprobs"], strict=True):
        assert mine == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
def test_tasks_of_slurm_find_each_other_and_draw_the_tokens_of_one_process(alone, tmp_path):
    command = [sys.executable, str(SCRIPTS / "generate.py"), *SAMPLED, "--json=-"]
    job = {
        "SLURM_JOB_ID": "1",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "JAX_COORDINATOR_PORT": free_address().split(":")[1],
    }
    tasks = [job | {"SLURM_PROCID": number, "SLURM_LOCALID": number} for number in "01"]
    with each_started([command] * 2, tmp_path, *tasks) as these:
        check(alone, *ends(these))


@pytest.mark.slow
def test_four_processes_told_by_flags_draw_the_tokens_of_one(alone, tmp_path):
    arguments = [*SAMPLED, "--json=-"]
    with started("generate.py", *arguments, folder=tmp_path, ids=range(4), count=4) as these:
        check(alone, *ends(these))


def test_two_processes_draw_the_tokens_of_one_and_the_first_alone_may_be_asked_for_a_document(
    alone, tmp_path
):
    together = [f"--coordinator={free_address()}", "--num_processes=2"]
    two = [*SAMPLED, "--devices=2"]
    command = [sys.executable, str(SCRIPTS / "generate.py"), *two, *together]
    commands = [[*command, "--process_id=0", "--json=-"], [*command, "--process_id=1"]]
    with each_started(commands, tmp_path, {}) as these:
        check(alone, *ends(these), devices=2)


@pytest.mark.slow
def test_two_processes_measure_the_same_steps_and_the_first_reports(tmp_path):
    arguments = [*TINY, "--devices=2", "--batch=1", "--context=8", "--seconds=0", "--trace"]
    with started("profile_decode.py", *arguments, folder=tmp_path, ids=range(2), count=2) as these:
        first, second = ends(these)
    assert first.code == 0, first.stderr
    assert (second.code, second.stdout, second.stderr) == (0, "", "")
    (point,) = json.loads((tmp_path / "out/profile/profile.json").read_text())["points"]
    assert point["devices"] == 2 and len(point["step_s"]["samples"]) == 5
    assert len(list((tmp_path / "out/profile/trace").rglob("*.xplane.pb"))) == 1


@pytest.mark.slow
def test_a_layout_that_does_not_divide_ends_every_process(tmp_path):
    arguments = [*TINY, "--prompt_tokens=1", "--mesh=3x1x2"]
    with started("generate.py", *arguments, folder=tmp_path, ids=range(2), count=2) as these:
        for ended in ends(these):
            assert ended.code == 2
            assert ended.error.startswith("d_ff is 128, which mesh axes x=3 z=2")


@pytest.mark.slow
def test_what_the_first_process_cannot_write_ends_every_process(tmp_path):
    refused = [*PROMPT, "--json=."]
    with started("generate.py", *refused, folder=tmp_path, ids=range(2), count=2) as these:
        assert [(e.code, e.error.split(",")[0]) for e in ends(these)] == [(1, "--json is .")] * 2


@pytest.mark.slow
def test_flags_that_differ_end_every_process(tmp_path):
    script, where = str(SCRIPTS / "generate.py"), f"--coordinator={free_address()}"
    command = [
        sys.executable,
        script,
        *PROMPT,
        where,
        "--num_processes=2",
        f"--peer_timeout={PATIENT}",
    ]
    unlike = [[*command, f"--process_id={number}", f"--seed={number}"] for number in range(2)]
    with each_started(unlike, tmp_path, {}) as these:
        first, second = ends(these)
    assert (first.code, second.code) == (1, 2)
    assert second.error.startswith("--seed is 1 here and 0 in process 0")
    assert GONE.search(first.error)[1] in ("1", None)


@pytest.mark.slow
def test_a_port_that_is_taken_is_one_line_at_once(tmp_path):
    with socket.create_server(("localhost", 0)) as taken:
        where = f"--coordinator=localhost:{taken.getsockname()[1]}"
        command = [sys.executable, str(SCRIPTS / "generate.py"), *PROMPT, where]
        command += ["--num_processes=2", "--process_id=0"]
        with each_started([command], tmp_path, {}) as these:
            (ended,) = ends(these, timeout=STARTED)
    assert (ended.code, ended.stderr) == (1, f"error: {ended.error}\n")
    assert "Address already in use); free the coordinator's port" in ended.error


@pytest.mark.slow
def test_a_peer_that_never_comes_ends_the_other(tmp_path):
    arguments, began = [*PROMPT, f"--peer_timeout={LIMIT}"], time.monotonic()
    with (
        started("generate.py", *arguments, folder=tmp_path, ids=range(1), count=2) as first,
        started("generate.py", *arguments, folder=tmp_path, ids=range(1, 2), count=2) as second,
    ):
        found = ends([*first, *second], timeout=LIMIT + STARTED)
    assert time.monotonic() - began > LIMIT
    for number, ended in enumerate(found):
        assert (ended.code, ended.stdout, ended.stderr) == (1, "", f"error: {ended.error}\n")
        assert f"start of process {number} of 2 is in vain: not all came within 3 s" in ended.error


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_peer_that_dies_ends_the_other(victim, tmp_path):
    write_tiny_gguf(tmp_path / "long.gguf", max_context=20_100)
    endless = ["--max_new_tokens=20000", "--ignore_eos", f"--peer_timeout={PATIENT}"]
    arguments = ["--model=long.gguf", "--prompt=the", "--devices=2", *endless]
    with started("generate.py", *arguments, folder=tmp_path, ids=range(2), count=2) as these:
        assert these[0].stdout.read(1), ends(these)  # it is at work, of minutes
        these[victim].kill()
        (ended,) = ends([these[1 - victim]], timeout=PATIENT + SLACK)
    assert ended.code == 1
    assert GONE.search(ended.error)[1] in (str(victim), None)
    assert "***" not in ended.stderr


ALONE = {
    "one of three": (["--process_id=0"], "--process_id is 0, but --coordinator"),
    "two of three": (["--process_id=0", "--num_processes=2"], "go together; give all three"),
    "past the end": (
        ["--process_id=2", "--num_processes=2", "--coordinator=a:1"],
        "process id is 2 of 2; use 0 to 1",
    ),
    "negative": (["--process_id=-1"], "--process_id is '-1'"),
    "none": (["--num_processes=0"], "--num_processes is '0'"),
    "no port": (
        ["--process_id=0", "--num_processes=2", "--coordinator=host"],
        "coordinator is 'host'; use HOST:PORT",
    ),
    "port too large": (
        ["--process_id=0", "--num_processes=2", "--coordinator=host:65536"],
        "coordinator is 'host:65536'",
    ),
    "impatient": (["--peer_timeout=1"], "--peer_timeout is '1'"),
}


def test_flags_of_many_processes_that_cannot_be_are_refused(tmp_path):
    cases = {name: [*PROMPT, *given] for name, (given, _) in ALONE.items()}
    for name, ended in run_many("generate.py", cases, folder=tmp_path).items():
        assert (ended.code, ended.jax_started) == (2, False), name
        assert ALONE[name][1] in ended.error, name
