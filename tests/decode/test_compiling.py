"""Programs compiled together, and the folder that keeps them."""

import threading
import zlib
from pathlib import Path

import jax
import pytest

from decode.compiling import COMPILERS, compiling, keep_compiled


@pytest.fixture(autouse=True)
def folder_as_before():
    before = jax.config.jax_compilation_cache_dir
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_some_jobs_run_at_once_and_those_after_a_failure_never(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: COMPILERS)
    both, ran = threading.Barrier(COMPILERS, timeout=60), []
    given_up = threading.Event()  # the last job is, which is among those that are to wait

    def fail():
        both.wait()
        raise ValueError("1")

    def later():
        ran.append(1)
        given_up.wait(60)
        given_up.set()  # where it never comes, the other jobs need not wait as long

    jobs = [fail, both.wait, *[later] * 50]
    with pytest.raises(ValueError, match="1"), compiling(jobs) as started:
        started[-1].add_done_callback(lambda _: given_up.set())
        started[0].result()
    assert len(ran) <= COMPILERS


def test_programs_are_kept_beside_fetched_models(monkeypatch, tmp_path):
    monkeypatch.setenv("FLOORLINE_CACHE", str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", None)
    keep_compiled()
    assert jax.config.jax_compilation_cache_dir.startswith(f"{tmp_path}/compiled/")


def test_a_folder_that_the_user_has_chosen_is_left(tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    keep_compiled()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path)


def test_a_folder_that_takes_nothing_is_not_used(monkeypatch, tmp_path):
    (tmp_path / "compiled").write_text("no folder")
    monkeypatch.setenv("FLOORLINE_CACHE", str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", None)
    keep_compiled()
    assert jax.config.jax_compilation_cache_dir is None


def test_programs_of_a_run_that_was_killed_are_compiled_again(monkeypatch, tmp_path):
    monkeypatch.setenv("FLOORLINE_CACHE", str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", None)
    keep_compiled()
    folder = Path(jax.config.jax_compilation_cache_dir)
    whole, cut = folder / "whole-cache", folder / "cut-cache"
    whole.write_bytes(zlib.compress(b"a program"))
    cut.write_bytes(zlib.compress(bytes(range(256)))[:100])
    jax.config.update("jax_compilation_cache_dir", None)
    keep_compiled()
    assert whole.exists() and not cut.exists()
