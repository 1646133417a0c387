"""Programs compiled at the same time, and kept for later runs."""

import concurrent.futures
import contextlib
import hashlib
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path

import jax

from model.weights import WeightsError
from model.weights.fetch import cache_folder
from sharding import processes

COMPILERS = 2
"""Programs compiled at the same time: each takes one core, and memory."""


@contextlib.contextmanager
def compiling(jobs: Sequence[Callable[[], object]]) -> Iterator[list[Future]]:
    """Runs jobs that compile, some of them at once; those that have not begun at the end never do.

    Compiling leaves the interpreter to other threads. Many processes compile in one order, because
    they may share what they find out.
    """
    workers = min(COMPILERS, os.cpu_count() or 1) if processes.count() == 1 else 1
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        try:
            yield [pool.submit(job) for job in jobs]
        finally:
            pool.shutdown(cancel_futures=True)


def keep_compiled() -> None:
    """Programs that take a second or more to compile are found again by later runs.

    They lie in the folder `compiled` beside fetched models. Whoever has chosen a folder for JAX
    (`$JAX_COMPILATION_CACHE_DIR`) keeps that; `$JAX_ENABLE_COMPILATION_CACHE=0` goes without.
    """
    with contextlib.suppress(WeightsError):  # no home folder is known
        if not jax.config.jax_compilation_cache_dir:
            folder = cache_folder() / "compiled" / _cores()
            jax.config.update("jax_compilation_cache_dir", str(folder))


def _cores() -> str:
    """Names the instructions that this machine's cores have: XLA:CPU's programs use them."""
    kind = platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        kind += next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256(kind.encode()).hexdigest()[:12]
