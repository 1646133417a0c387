"""Programs compiled at the same time, and kept for later runs."""

import concurrent.futures
import contextlib
import hashlib
import os
import platform
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path

import jax

from model.weights import WeightsError
from model.weights.fetch import cache_folder
from sharding import processes

COMPILERS = 2
"""Programs compiled at the same time: each takes one core, and memory."""
_ROOM = 1 << 20  # bytes that there must be room for
_ZSTD = b"\x28\xb5\x2f\xfd"  # how what zstandard has packed begins


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
    """Programs that take a second or more to compile are found again by later runs on CPUs.

    They lie in the folder `compiled` beside fetched models. Whoever has chosen a folder for JAX
    (`$JAX_COMPILATION_CACHE_DIR`) keeps that; `$JAX_ENABLE_COMPILATION_CACHE=0` goes without. So do
    many processes, of which JAX writes for the first alone, and a folder that cannot be written to.
    """
    with contextlib.suppress(WeightsError, OSError):  # no home folder is known, or it takes nothing
        if jax.config.jax_compilation_cache_dir or processes.count() > 1:
            return
        if jax.default_backend() != "cpu":
            return
        folder = cache_folder() / "compiled" / _cores()
        folder.mkdir(parents=True, exist_ok=True)
        _drop_damaged(folder)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(_ROOM))
        jax.config.update("jax_compilation_cache_dir", str(folder))


def _drop_damaged(folder: Path) -> None:
    """Deletes programs that a run was killed in writing: JAX would warn of them for ever."""
    for path in folder.glob("*-cache"):
        stored = path.read_bytes()
        if not stored.startswith(_ZSTD):  # then JAX has packed it by zlib
            try:
                zlib.decompress(stored)
            except zlib.error:
                path.unlink()


def _cores() -> str:
    """Names the instructions that this machine's cores have: XLA:CPU's programs use them."""
    kind = platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        kind += next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256(kind.encode()).hexdigest()[:12]
