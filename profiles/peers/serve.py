"""The process of one engine: loads once, then runs a round whenever it is told to, and waits.

    python -m profiles.peers.llama_cpp

reads a `Job` and then each `Work` from standard input and answers on standard output. What
libraries print goes to standard error.
"""

import contextlib
import dataclasses
import importlib.util
import json
import os
import sys
from collections.abc import Callable
from typing import TextIO

from profiles.peers.messages import About, Failure, Job, Round, Work
from sharding.error_types import FloorlineError, UsageError

Run = Callable[[Work], Round]
Start = Callable[[Job], tuple[Run, About]]
REMEDY = "pip install -e '.[compare]'"


class MissingPackageError(UsageError):
    """A package that an engine needs is not installed."""


def need(*packages: str) -> None:
    """Refuses to go on without these packages.

    Raises:
      MissingPackageError: one of them is not installed.
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise MissingPackageError(f"package {package} is missing; {REMEDY}")


def serve(start: Start) -> None:
    """Answers on standard output until standard input ends.

    Args:
      start: loads a job's engine; it gives what runs a round, and what the engine says of itself.
    """
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    with answers:
        code = _answer(start, answers)
    os._exit(code)  # threads of libraries may not hold the process


def _answer(start: Start, answers: TextIO) -> int:
    """Serves; returns the process's exit code."""

    def tell(message: About | Round | Failure) -> None:
        print(json.dumps(dataclasses.asdict(message)), file=answers, flush=True)

    try:
        job = Job(**json.loads(sys.stdin.readline()))
        limit_processors(job.threads)
        run, about = start(job)
        tell(about)
        for line in sys.stdin:
            tell(run(Work(**json.loads(line))))
    except MissingPackageError as error:
        tell(Failure("missing", str(error)))
        return 2
    except FloorlineError as error:
        tell(Failure("unsupported" if isinstance(error, UsageError) else "failed", str(error)))
        return error.exit_code
    except BrokenPipeError:  # nobody waits for the answer
        return 1
    except Exception as error:
        words = " ".join(str(error).split())[:300]
        with contextlib.suppress(BrokenPipeError):
            tell(Failure("failed", f"{type(error).__name__}: {words}"))
        return 1
    return 0


def limit_processors(threads: int) -> None:
    """Binds the process to its first `threads` processors, before any library makes threads.

    XLA makes as many as there are processors to run on. Systems other than Linux bind nothing.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
