"""Weights of a CPU in huge pages: fewer addresses to translate for every byte that a step reads.

JAX allocates arrays in pages of 4 KiB, of which a processor knows the addresses of a few thousand
at a time; a step reads more. On a virtual machine each that it does not know takes two look-ups.
Linux gives pages of 2 MiB to memory for which they are asked, and arrays are packed into it.
"""

import contextlib
import mmap

import jax
import numpy as np

PAGE = 2**21
_REGION = 2**26  # bytes asked for at a time
_ALIGNMENT = 64  # bytes; XLA:CPU takes a NumPy array that begins at a multiple without a copy


def in_huge_pages(parameters: dict, mesh: jax.sharding.Mesh) -> dict:
    """The same arrays in huge pages, where they are on CPUs of a system that has such pages.

    Args:
      parameters: nested dict of arrays. It is emptied if they move, so that few are held twice.
      mesh: their devices.
    """
    arrays, tree = jax.tree.flatten(parameters)
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    fill_pages = sum(array.nbytes for array in arrays) >= PAGE
    if not (on_cpu and fill_pages and hasattr(mmap, "MADV_HUGEPAGE")):
        return parameters
    parameters.clear()
    memory = _Memory()
    for number, array in enumerate(arrays):
        arrays[number] = _moved(array, memory)
    return jax.tree.unflatten(tree, arrays)


def _moved(array: jax.Array, memory: "_Memory") -> jax.Array:
    shards = [
        jax.device_put(memory.copy(np.asarray(shard.data)), shard.device)
        for shard in array.addressable_shards
    ]
    return jax.make_array_from_single_device_arrays(array.shape, array.sharding, shards)


class _Memory:
    """Hands out pieces of huge pages, one behind the other."""

    def __init__(self):
        self._free = np.empty(0, np.uint8)

    def copy(self, values: np.ndarray) -> np.ndarray:
        """A copy of the values; its memory is freed with the last array of the same region."""
        size = -(-values.nbytes // _ALIGNMENT) * _ALIGNMENT
        if size > self._free.size:
            self._free = _region(max(size, _REGION))
        piece, self._free = self._free[: values.nbytes], self._free[size:]
        copied = piece.view(values.dtype).reshape(values.shape)
        copied[...] = values
        return copied


def _region(size: int) -> np.ndarray:
    """So many bytes that begin where a huge page can."""
    memory = mmap.mmap(-1, size + PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel built without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    free = np.frombuffer(memory, np.uint8)
    start = -free.ctypes.data % PAGE
    return free[start : start + size]
