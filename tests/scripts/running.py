"""Runs the scripts: as a user would from another folder, or many times in one process."""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax

from tests.kept_programs import KEEPING
from tests.processes import free_address
from tests.scripts.driver import run_job

SCRIPTS = Path(__file__).parents[2] / "scripts"
# XLA:CPU's older way to make kernels, which compiles in less time. XLA ends a process
# over a flag that it does not know, as that of JAX 0.12 does not.
OLDER_KERNELS = jax.__version_info__ < (0, 11)
# A program's machine code is made as one module: copies of it for many threads take a sixth of a
# test's time, and both cores have a worker.
XLA_FLAGS = "--xla_cpu_parallel_codegen_split_count=1"
XLA_FLAGS += " --xla_cpu_use_fusion_emitters=false" if OLDER_KERNELS else ""
QUICK = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "XLA_FLAGS": XLA_FLAGS}
"""Environment of processes that compile as the default set of tests does, see its conftest."""
FULL = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0", "XLA_FLAGS": ""}
"""That of processes that compile as users' programs do."""
USUAL_KERNELS = {"xla_cpu_use_fusion_emitters": True} if OLDER_KERNELS else None
"""Options for programs of which a test reads more than collectives: scatters of the
older kernels are loops."""
NO_CACHE = {"JAX_ENABLE_COMPILATION_CACHE": "0"}
"""Of processes that go without programs that others have compiled."""


@dataclasses.dataclass(frozen=True)
class Ended:
    """How one run ended.

    Attributes:
      code: exit code.
      stdout: what it printed.
      stderr: what it said beside that.
      jax_started: whether JAX had made its devices by the end; known of `run_many` alone.
    """

    code: int
    stdout: str
    stderr: str
    jax_started: bool | None = None

    @property
    def document(self) -> dict:
        """Standard output, all of it one JSON document."""
        return json.loads(self.stdout)

    @property
    def error(self) -> str:
        """The message of a run that failed, which must be its last line and one line only."""
        lines = self.stderr.splitlines()
        assert [line.startswith("error: ") for line in lines[-2:]] in ([True], [False, True])
        assert "Traceback" not in self.stderr
        return lines[-1].removeprefix("error: ")


def environment(**changes: str) -> dict[str, str]:
    """This process's environment with JAX on the CPU, whatever else the machine has.

    XLA has no flags of this process's, which may be `QUICK`.
    """
    return os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""} | changes


def run(
    script: str, *arguments: str, folder: Path, python: tuple[str, ...] = (), **variables: str
) -> Ended:
    """Runs a script as a user does, `folder` being the current one, with further variables."""
    command = [sys.executable, *python, str(SCRIPTS / script), *arguments]
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=900,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def named(cases: dict[str, list[str]], model: str) -> dict[str, list[str]]:
    """The cases, those that name no model with this one."""
    flag = f"--model={model}"
    return {
        name: arguments
        if any(each.startswith("--model=") for each in arguments)
        else [flag, *arguments]
        for name, arguments in cases.items()
    }


def run_many(
    script: str,
    cases: dict[str, list[str]],
    *,
    folder: Path,
    patches: dict[str, str | int] | None = None,
    full: Sequence[str] = (),
    optimized: Sequence[str] = (),
    typed: dict[str, str] | None = None,
    seconds: float = 600,
    **variables: str,
) -> dict[str, Ended]:
    """Runs a script once for each list of arguments, one after another in one process.

    Args:
      script: file name.
      cases: arguments by a name of the case.
      folder: the current folder.
      patches: dotted name of a module's constant -> what to put in its place, in its type.
      full: names of cases whose standard output takes nothing.
      optimized: names of cases that compile with all optimizations.
      typed: name of a case -> its standard input, if it has any.
      seconds: how long all may take together.
      **variables: of the environment; `QUICK` unless they say otherwise.
    """
    job = {"script": script, "cases": cases, "patches": patches or {}, "full": list(full)}
    job |= {"optimized": list(optimized), "typed": typed or {}, "folder": str(folder)}
    found = run_job(job | {"environment": environment(**QUICK | KEEPING | variables)}, seconds)
    return dict(zip(cases, (Ended(**ended) for ended in found), strict=True))


@contextlib.contextmanager
def started(
    script: str, *arguments: str, folder: Path, ids: range, count: int
) -> Iterator[list[subprocess.Popen]]:
    """Some (`ids`) of the `count` processes that run one script together, ended at the end."""
    together = [f"--coordinator={free_address()}", f"--num_processes={count}"]
    command = [sys.executable, str(SCRIPTS / script), *arguments, *together]
    with each_started([[*command, f"--process_id={i}"] for i in ids], folder, {}) as processes:
        yield processes


@contextlib.contextmanager
def each_started(
    commands: list[list[str]], folder: Path, *variables: dict[str, str]
) -> Iterator[list[subprocess.Popen]]:
    """Each command in a process, with the variables that stand at its place or the last ones."""
    processes = [
        subprocess.Popen(
            command,
            cwd=folder,
            env=environment(**QUICK | NO_CACHE | variables[min(number, len(variables) - 1)]),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number, command in enumerate(commands)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def ends(processes: list[subprocess.Popen], timeout: float = 600) -> list[Ended]:
    """How each ended."""
    texts = [process.communicate(timeout=timeout) for process in processes]
    return [Ended(p.returncode, *text) for p, text in zip(processes, texts, strict=True)]
