"""Compiled programs that processes of tests keep for each other, in a folder of the run."""

import os
import threading
from pathlib import Path

from jax._src import lru_cache  # has no public name

KEEPING = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
READING = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1e9"}
"""Environment of processes that keep what they compile, after `keep_whole`, and of all others."""


def keep_whole() -> None:
    """Has JAX write each program in one piece from now on.

    Its own way is one that another process can meet half done: that compiles the program anew, and
    warns of it on a standard error of which a test may know every line.
    """
    lru_cache.LRUCache.put = _put


def _put(cache: lru_cache.LRUCache, key: str, program: bytes) -> None:
    path: Path = cache.path / f"{key}-cache"
    if not path.exists():
        part = cache.path / f"{key}.{os.getpid()}.{threading.get_ident()}"
        part.write_bytes(program)
        os.replace(part, path)
