"""Eight CPU devices for all tests, set before JAX starts, and engines that tests share."""

import contextlib
import ctypes
import dataclasses
import functools
import gc
import os
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import pytest

from model.dtypes import FLOAT32
from sharding.mesh import request_cpu_devices

request_cpu_devices(8)


from decode.engine import Engine  # noqa: E402
from decode.load import ModelSource, find_source  # noqa: E402
from model.catalog import find_model  # noqa: E402
from model.config import ModelConfig  # noqa: E402
from sharding.catalog import LAYOUTS  # noqa: E402
from sharding.mesh import parse_mesh  # noqa: E402
from tests.engines import random_engine  # noqa: E402
from tests.kept_programs import READING, keep_whole  # noqa: E402
from tests.scripts.running import XLA_FLAGS  # noqa: E402

REFERENCES = Path(__file__).parent / "references"
COMPILED_AS_BY_USERS = ("speed", "serve", "parity", "tpu_compile", "gpu_compile")
"""Marked sets whose programs are compiled with all optimizations."""
GROWN = 1e9
"""Bytes by which a process may grow before its memory is given back, which takes half a second."""
LARGE = tuple(f"tests/decode/test_{name}.py" for name in ("gemma3", "load_memory", "perplexity"))
"""Files of tests that hold 7 to 10 GB: two of them side by side would not fit in 24 GB."""
TOGETHER = "tests/profiles/published/", "tests/test_readme.py"
"""Files that ask for published services, whose times take seconds to find: once for all."""

_kept = types.SimpleNamespace(bytes=0)  # resident since memory was last given back


def pytest_configure(config: pytest.Config) -> None:
    """Compiles the default set, `slow` and `long` with few optimizations, in a fifth of the time.

    These are of machine code: sharding, collectives and buffers are settled before. The other
    marked sets, tests that take `all_optimizations`, and scripts that tests run as users do,
    compile as users' programs do.

    Python looks for cycles far less often there, which takes a tenth of the time else: it goes
    through all that JAX keeps of each program.
    """
    if config.option.markexpr not in COMPILED_AS_BY_USERS:
        gc.set_threshold(200_000, 50, 100)
        jax.config.update("jax_disable_most_optimizations", True)
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {XLA_FLAGS}".strip()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object | None:
    """One process takes all files that are `TOGETHER`, or `LARGE` where each takes single tests.

    With pytest 9.2, xdist 3.8 takes no notice of its mark `xdist_group`.
    """
    from xdist.scheduler import LoadFileScheduling, LoadGroupScheduling

    ways = {"loadfile": (LoadFileScheduling, TOGETHER), "loadgroup": (LoadGroupScheduling, LARGE)}
    if (way := ways.get(config.getoption("dist"))) is None:
        return None
    base, files = way

    class InOne(base):
        def _split_scope(self, nodeid: str) -> str:
            return files[0] if nodeid.startswith(files) else super()._split_scope(nodeid)

    return InOne(config, log)


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(
    tmp_path_factory: pytest.TempPathFactory, worker_id: str, pytestconfig: pytest.Config
) -> None:
    """Programs, once compiled, for both workers, and in the default set for scripts that they run.

    The folder is the run's own: nothing of an earlier one is taken. JAX counts a program that it
    finds there as compiled, so tests that count see no difference. Programs are written in one
    piece: by these workers and by `tests.scripts.driver`; all other scripts only read them. Scripts
    of `slow` have no folder.
    """
    if not jax.config.read("jax_disable_most_optimizations"):
        return
    keep_whole()
    run = tmp_path_factory.getbasetemp()
    folder = (run if worker_id == "master" else run.parent) / "compiled"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if pytestconfig.option.markexpr == "slow":
        return
    os.environ.update({"JAX_COMPILATION_CACHE_DIR": str(folder)} | READING)


def resident() -> int:
    """Bytes of memory that this process has now; 0 where the system has no such file."""
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


@pytest.fixture(autouse=True)
def memory_back() -> Iterator[None]:
    """Gives the system back what tests held, once that is much.

    Engines are parts of cycles, for which Python hardly looks here, and the C library keeps most of
    what the compiler has let go. What is left after that is in use, and not looked through again.
    """
    yield
    if resident() < _kept.bytes + GROWN:
        _kept.bytes = min(_kept.bytes, resident())
        return
    gc.collect()
    with contextlib.suppress(AttributeError):  # a C library that has no such function
        ctypes.CDLL(None).malloc_trim(0)
    _kept.bytes = resident()


@pytest.fixture(scope="module")
def all_optimizations() -> Iterator[None]:
    """All optimizations for tests that run a large model for long."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="session")
def tiny_engine() -> Callable[..., Engine]:
    """Makes an engine of the tiny model with random weights; one for each model and mesh.

    Takes a mesh such as "1x1x2" and changes to the configuration, such as ``kv_heads=1``.
    """

    @functools.cache
    def engine_of(config: ModelConfig, mesh: str) -> Engine:
        return random_engine(config, LAYOUTS["weight_stationary_1d"], mesh, FLOAT32)

    def make(mesh: str = "1x1x1", **changes: object) -> Engine:
        return engine_of(dataclasses.replace(find_model("tiny"), **changes), mesh)

    return make


@pytest.fixture(scope="session")
def smollm2() -> ModelSource:
    """SmolLM2-135M-Instruct, fetched once."""
    return find_source("smollm2-135m")


@pytest.fixture(scope="session")
def smollm2_engine(smollm2) -> Callable[[str], Engine]:
    """Makes an engine of SmolLM2 in float32 on a mesh such as "1x1x2", and keeps the last two."""

    @functools.lru_cache(maxsize=2)  # each holds half a gigabyte
    def make(mesh: str = "1x1x1") -> Engine:
        layout = LAYOUTS["weight_stationary_1d"]
        return smollm2.engine(layout, parse_mesh(mesh), FLOAT32)

    return make
