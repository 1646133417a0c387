"""Compiles several programs, some of them at the same time."""

import concurrent.futures
import os
from collections.abc import Sequence
from typing import Protocol

from profiles.report.progress import progress
from sharding import processes

COMPILERS = 2  # programs compiled at the same time: each takes one core, and memory


class Compiles(Protocol):
    """What has programs to compile, and a name."""

    def compile(self) -> None:
        """Compiles them, so that the first run finds them there."""


def compile_together(several: Sequence[Compiles]) -> None:
    """Compiles programs, some of them at once, and shows which are done.

    Compiling leaves the interpreter to other threads. Many processes compile in one order, because
    they may share what they find out.
    """
    workers = min(COMPILERS, os.cpu_count() or 1) if processes.count() == 1 else 1
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        jobs = [pool.submit(each.compile) for each in several]
        try:
            named = list(zip(jobs, several, strict=True))
            for job, _ in progress(named, lambda each: f"compiling {each[1]}"):
                job.result()
        finally:
            pool.shutdown(cancel_futures=True)
