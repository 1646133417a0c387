"""What every script does alike: its help, and what it says where nothing is installed."""

import ast
import re
import subprocess
import sys

import pytest

from tests.scripts.running import SCRIPTS, environment, run

WEIGHTS = {"random_weights", "accept_terms"}
PROCESSES = {"coordinator", "num_processes", "process_id", "peer_timeout"}
MODEL = {"model", "max_context"}
COMMON = {
    *WEIGHTS,
    *PROCESSES,
    *MODEL,
    "layout",
    "prefill_layout",
    "attention",
    "expert_parallel",
    "collectives",
    "dtype",
    "json",
    "verbose",
}
OWN = {
    "generate.py": {
        "prompt", "prompt_tokens", "chat", "chat_template", "devices", "mesh", "max_new_tokens",
        "ignore_eos", "stop", "seed", "temperature", "top_k", "top_p", "min_p", "turns", "chunk",
        "no_cache", "tokens_per_dispatch", "draft", "draft_tokens", "gpu_kernels",
    },
    "profile_decode.py": {
        "devices", "mesh", "batch", "context", "seconds", "hbm_bandwidth", "peak_flops",
        "price_per_chip_hour", "output_dir", "trace", "phase", "prompt_length", "chunk", "slots",
        "calibration", "tokens_per_dispatch",
    },
    "serve.py": {
        "devices", "mesh", "batch", "context", "chunk", "seed", "host", "port", "api_key",
        "max_waiting", "max_body_bytes", "max_connections", "stall_seconds", "drain_seconds",
        "token_budget", "top_logprobs", "share_prefixes", "chat_template", "draft", "draft_tokens",
    },
    "convert_checkpoint.py": {"devices", "mesh", "output_dir"},
}  # fmt: skip

HIDDEN = {
    **dict.fromkeys(
        ("estimate.py", "plan.py", "figures.py", "compile_step.py", "compile_matrix.py",
         "search_options.py"),
        WEIGHTS | PROCESSES,
    ),
    "reproduce_published.py": WEIGHTS | PROCESSES | MODEL,
    "inspect_layout.py": WEIGHTS,
    "microbenchmark.py": WEIGHTS | MODEL,
    "compare_engines.py": PROCESSES,
    "check_kernels.py": WEIGHTS | PROCESSES | {"max_context"},
    "gpu_report.py": WEIGHTS | PROCESSES | {"max_context"},
}  # fmt: skip
"""Flags of weights, processes and models that a script has no use for, if there are any."""
USERS = [path.name for path in sorted(SCRIPTS.glob("[a-z]*.py")) if not path.match("make_*")]
"""Scripts that a user runs; those that make references for tests have flags of their own."""


@pytest.mark.parametrize("script", OWN)
def test_help_shows_examples_and_every_flag(script, tmp_path):
    ended = run(script, "--help", folder=tmp_path)
    assert (ended.code, ended.stderr) == (0, "")
    about, _, listed = ended.stdout.partition("\nflags:\n")
    assert f"Examples:\n  python scripts/{script}" in about
    examples = "\n".join(re.findall(rf"scripts/{script}.*", about))
    assert set(re.findall(r" --(\w+)", examples)) <= COMMON | OWN[script]
    assert set(re.findall(r"^  --(?:\[no\])?(\w+): ", listed, re.MULTILINE)) >= COMMON | OWN[script]
    text = " ".join(listed.split())
    assert "fetch those of smollm2-135m (93 MB)" in text
    assert "says why. weight_stationary_1d" in text
    assert "within so many seconds, and up to ten more" in text


HEAVY = {"jax", "flax", "orbax", "tokenizers", "gguf", "matplotlib", "tensorboardX"}
REPORTS = """
import atexit, runpy, sys
atexit.register(lambda: print(*sys.modules, file=sys.stderr))
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(
    ("flag", "code"),
    [("--modle=llama3-8b", 2), pytest.param("--help", 0, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("script", USERS)
def test_no_help_and_no_wrong_flag_waits_for_jax(script, flag, code):
    command = [sys.executable, "-c", REPORTS, str(SCRIPTS / script), flag]
    ended = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    *said, imported = ended.stderr.splitlines()
    assert (ended.returncode, len(said)) == (code, code // 2)
    assert {"absl", "sharding"} <= {*imported.split()}
    assert not HEAVY & {*imported.split()}
    if code:
        return
    shown = set(re.findall(r"^  --(?:\[no\])?(\w+): ", ended.stdout, re.MULTILINE))
    assert (WEIGHTS | PROCESSES | MODEL) - shown == HIDDEN.get(script, set())
    assert {"json", "verbose"} <= shown
    assert "model" not in shown or "(default: 'smollm2-135m')" in ended.stdout


@pytest.mark.parametrize(
    ("script", "flag", "why"),
    [
        ("estimate.py", "--accept_terms", "no weights are read"),
        pytest.param("inspect_layout.py", "--random_weights", "no weights", marks=pytest.mark.slow),
        pytest.param("microbenchmark.py", "--model=tiny", "no model is", marks=pytest.mark.slow),
        pytest.param("gpu_report.py", "--max_context=9", "no model's", marks=pytest.mark.slow),
        pytest.param("compare_engines.py", "--process_id=0", "no other", marks=pytest.mark.slow),
        pytest.param("reproduce_published.py", "--model=tiny", "no", marks=pytest.mark.slow),
    ],
)
def test_a_flag_that_a_script_does_not_show_is_refused(script, flag, why, tmp_path):
    ended = run(script, flag, folder=tmp_path)
    assert ended.code == 2
    assert ended.error.startswith(f"{flag.partition('=')[0]} is given, but {why}")


@pytest.mark.parametrize("script", ["estimate.py", pytest.param("plan.py", marks=pytest.mark.slow)])
def test_what_needs_no_weights_does_not_wait_for_what_reads_them(script):
    command = [sys.executable, "-c", REPORTS, str(SCRIPTS / script), "--model=llama3-8b",
               "--topology=v5e:2x4"]  # fmt: skip
    ended = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    imported = {*ended.stderr.splitlines()[-1].split()}
    assert (ended.returncode, "flax" in imported) == (0, True)
    kernels = {"jax.experimental.pallas.tpu"}
    assert not imported & {*HEAVY, *kernels} - {"jax", "flax"}


@pytest.mark.parametrize("path", sorted(SCRIPTS.glob("[a-z]*.py")), ids=lambda path: path.name)
def test_no_example_of_a_help_has_two_lines_in_one(path):
    """As where a backslash at the end of a line is taken for Python's own."""
    about = ast.get_docstring(ast.parse(path.read_text()))
    assert max(map(len, about.splitlines())) <= 100


@pytest.mark.parametrize("script", OWN)
def test_where_nothing_is_installed_one_line_says_how(script, tmp_path):
    ended = run(script, folder=tmp_path, python=("-E", "-S"))  # without site-packages
    assert ended.code == 2
    assert ended.stdout == ""
    assert ended.stderr == f"error: {ended.error}\n"
    assert "is failing (No module named 'absl'); run `pip install -e .`" in ended.error


def test_a_reader_that_leaves_early_is_no_error(tmp_path):
    command = [sys.executable, str(SCRIPTS / "generate.py"), "--help"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == b""
    assert process.wait(300) in (0, 1)
