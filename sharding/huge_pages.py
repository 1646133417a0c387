"""Weights of a CPU in huge pages: fewer addresses to translate for every byte that a step reads.

JAX allocates arrays in pages of 4 KiB, of which a processor knows the addresses of a few thousand
at a time; a step reads more. On a virtual machine each that it does not know takes two look-ups.
Linux gives pages of 2 MiB to memory for which they are asked, and arrays are packed into it.
"""

import contextlib
import mmap
import threading
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

PAGE = 2**21
_REGION = 2**26  # bytes asked for at a time
_ALIGNMENT = 64  # bytes; XLA:CPU takes a NumPy array that begins at a multiple without a copy


Convert = Callable[[np.ndarray, jnp.dtype], np.ndarray]
"""Gives the values in another type, in memory of their own."""


def convert(values: np.ndarray, dtype: jnp.dtype) -> np.ndarray:
    """The values in another type, wherever NumPy puts them."""
    return np.asarray(values).astype(dtype)


def convert_to_stay(mesh: jax.sharding.Mesh) -> Convert:
    """What converts arrays that stay on the mesh as they are.

    For CPUs it packs them into huge pages, if the system has them, and JAX leaves them there. Each
    keeps others' memory, so those that are soon gone are better left to `convert`. It may be called
    from several threads.
    """
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    if on_cpu and hasattr(mmap, "MADV_HUGEPAGE"):
        return _Memory().convert
    return convert


class _Memory:
    """Hands out pieces of huge pages, one behind the other."""

    def __init__(self):
        self._free = np.empty(0, np.uint8)
        self._lock = threading.Lock()

    def convert(self, values: np.ndarray, dtype: jnp.dtype) -> np.ndarray:
        """The values in another type; their memory is freed with the last array of its region."""
        values, dtype = np.asarray(values), np.dtype(dtype)
        piece = self._take(values.size * dtype.itemsize)
        converted = piece.view(dtype).reshape(values.shape)
        converted[...] = values
        return converted

    def _take(self, size: int) -> np.ndarray:
        """So many bytes, uint8, that nothing else has."""
        whole = -(-size // _ALIGNMENT) * _ALIGNMENT
        with self._lock:
            if whole > self._free.size:
                self._free = _region(max(whole, _REGION))
            piece, self._free = self._free[:size], self._free[whole:]
        return piece


def _region(size: int) -> np.ndarray:
    """So many bytes, uint8, that begin where a huge page can."""
    memory = mmap.mmap(-1, size + PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel built without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    free = np.frombuffer(memory, np.uint8)
    start = -free.ctypes.data % PAGE
    return free[start : start + size]
