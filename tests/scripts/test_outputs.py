"""What scripts do with outputs, paths and interrupts: the same in all of them."""

import json
import re
import signal
import subprocess
import sys
import tomllib

import pytest

from tests.scripts.running import QUICK, SCRIPTS, environment

ESTIMATE = "estimate.py --model=tiny --topology=v5e:1x1 --batch=1"
GENERATE = "generate.py --model=tiny --random_weights --prompt_tokens=1,2 --max_new_tokens=3"
CUT = "answer is cut at 3 tokens, the limit of --max_new_tokens"
FULL = r"error: standard output takes no more \(No space left on device\); make room, .*"
# Script, the shell's redirections, exit code, and standard error.
OUTPUTS = {
    "full": (ESTIMATE, ">/dev/full", 1, FULL),
    "streamed to a full one": (
        GENERATE,
        ">/dev/full",
        1,
        f"3 tokens; first after .*\n{CUT}\n{FULL}",
    ),
    "closed": (ESTIMATE, ">&-", 0, ""),
    "errors closed": (ESTIMATE, "2>&-", 0, ""),
    "no reader": (ESTIMATE, "| true", 0, ""),  # of the shell's last command
    "errors full": (GENERATE, "2>/dev/full", 0, ""),
}
SLOW = "errors full"  # more is started than for one that is closed
HEEDING = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); "
HEEDING += "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
"""Where tests run in the background, interrupts may be ignored from birth."""


def started(command, folder, **variables):
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment(PYTHONUNBUFFERED="1", **variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="surrogateescape",
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the runs write their documents."""
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def processes(folder):
    """The runs of the default set, all begun at once."""
    names = [name for name in OUTPUTS if name != SLOW]
    found = {name: started(command_of(name), folder, **QUICK) for name in names}
    yield found
    for process in found.values():
        process.kill()
        process.wait()


def command_of(name):
    script, where, *_ = OUTPUTS[name]
    line = f"exec {sys.executable} {SCRIPTS}/{script} '--json={name}.json' {where}"
    return ["sh", "-c", line]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n == SLOW else ()) for n in OUTPUTS]
)
def test_results_are_in_their_files_whatever_the_output_does(request, folder, name):
    if name == SLOW:
        process = started(command_of(name), folder, **QUICK)
    else:
        process = request.getfixturevalue("processes")[name]
    _, said = process.communicate(timeout=300)
    *_, code, error = OUTPUTS[name]
    assert process.returncode == code
    assert re.fullmatch(error, said.strip())
    assert json.loads((folder / f"{name}.json").read_text())["points"]


SHOWING = """
import _common
def main():
    _common.show("é漢🙂")
    raise AssertionError
_common.start(main)
"""


def test_letters_that_the_output_lacks_are_escaped_and_an_error_without_text_is_named(tmp_path):
    variables = {"PYTHONIOENCODING": "latin-1", "PYTHONPATH": f"{SCRIPTS}:{SCRIPTS.parent}"}
    process = started([sys.executable, "-c", SHOWING], tmp_path, **variables)
    shown, said = process.communicate(timeout=300)
    assert shown.encode(errors="surrogateescape") == "é\\u6f22\\U0001f642\n".encode("latin-1")
    assert said.startswith("error: AssertionError is raised without a word; run again with")
    assert process.returncode == 1


def test_an_interrupt_while_modules_are_imported_is_one_line(tmp_path):
    (tmp_path / "absl.py").write_text("import time\nprint('imports', flush=True)\ntime.sleep(600)")
    command = [sys.executable, "-c", HEEDING, str(SCRIPTS / "generate.py")]
    process = started(command, tmp_path, PYTHONPATH=str(tmp_path))
    assert process.stdout.readline() == "imports\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=300)
    assert (process.returncode, said) == (
        130,
        "error: run is interrupted; nothing more was written\n",
    )


def test_another_module_of_a_packages_name_is_named(tmp_path):
    (tmp_path / "model.py").write_text("")
    command = [sys.executable, str(SCRIPTS / "generate.py")]
    process = started(command, tmp_path, PYTHONPATH=f"{tmp_path}:{SCRIPTS.parent}")
    _, said = process.communicate(timeout=300)
    assert process.returncode == 2 and said.startswith("error: import of 'model.")
    assert f"{tmp_path / 'model.py'} is another 'model': take it off PYTHONPATH" in said


def test_every_flag_that_names_a_file_knows_the_home_folder():
    paths = ["model", "json", "output_dir", "calibration", "save_hlo", "cases"]
    for script in SCRIPTS.glob("*.py"):
        if not script.name.startswith("make_"):
            found = re.findall(r'DEFINE_string\(\s*"(\w+)"', script.read_text())
            assert not set(found) & set(paths), script.name


def test_the_licence_is_stated_as_the_packaging_index_reads_it():
    with (SCRIPTS.parent / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)
    assert project["project"]["license"] == "Apache-2.0"
    assert (SCRIPTS.parent / project["project"]["license-files"][0]).is_file()
    assert project["build-system"]["requires"] == ["setuptools>=77.0.3"]  # the first to read it
