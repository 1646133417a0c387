"""Tensors of a Hugging Face model directory, kept in one or several safetensors files.

Sources: the format's description in https://github.com/huggingface/safetensors (README, "Format"),
and `save_pretrained` of https://github.com/huggingface/transformers, which writes the index of a
model in several files. The headers are parsed here, because reading part of a tensor in another
shape than the stored one needs the position of its bytes.
"""

import contextlib
import dataclasses
import io
import json
import math
import os
import re
import stat
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import ml_dtypes
import numpy as np

from model.weights import WeightsError
from model.weights.gguf_file import DAMAGED, short
from model.weights.quantized_names import NOT_READ, file_of

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_JSON_BYTES = 100_000_000  # the format's limit for a header
# Rotary frequencies, which old versions saved. They follow from the configuration, so they are
# left out of files and indexes alike.
_DERIVED = re.compile(r"(.*\.)?rotary_emb\.(inv_freq|cos_cached|sin_cached)")
# In many models a copy of the embedding: an index may list it where no file has it, or the reverse.
# A model that needs it and lacks it is refused by name.
_UNEMBEDDING = re.compile(r"(.*\.)?lm_head\.weight")
_SHORT_RUN = 1 << 16  # bytes; between shorter runs, seeking costs more than reading the gap
_BLOCK = 1 << 24  # bytes read at a time where runs are short
_MAX_DIMENSIONS = 64  # numpy's limit

_T = TypeVar("_T")
_DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype(bool),
}


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """Position and type of one tensor.

    Attributes:
      file: the file that holds it.
      dtype: dtype of its elements.
      shape: row-major, as numpy has it.
      start: position of its first byte in the file.
    """

    file: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int


class SafetensorsFiles:
    """All tensors of a directory: one `model.safetensors`, or the files that the index names.

    Args:
      folder: the directory. If it has both an index and a single file, the index is used, unless
        a file that it names is missing.

    Attributes:
      tensors: name to `StoredTensor`; rotary frequencies, which old versions saved, are left out.
      beside: names of all files in the directory.

    Raises:
      WeightsError: a file is missing, unreadable or breaks the format anywhere before the data of
        its tensors, or the index and the files do not agree on which tensors there are.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        folder = Path(folder)
        self.beside = _names(folder)
        index = _find_index(folder, self.beside)
        tensors: dict[str, StoredTensor] = {}
        for file in [SINGLE] if index is None else sorted(set(index.values())):
            with _opened(folder / file) as opened:
                found = _without_derived(_read_header(folder / file, opened))
            for name in found.keys() & tensors.keys():
                other = short(tensors[name].file.name)
                _fail(f"tensor {short(name)}", file, f"also in {other}", "delete one of the files")
            tensors |= found
        if index is not None:
            _check_index(index, tensors)
        self.tensors: Mapping[str, StoredTensor] = tensors

    def read(
        self,
        name: str,
        shape: tuple[int, ...] | None = None,
        index: tuple[slice, ...] | None = None,
        first: int | None = None,
    ) -> np.ndarray:
        """A tensor or part of it, reading no other bytes of the file. Threads may share this.

        Args:
          name: a key of `tensors`.
          shape: shape to view the tensor in; its own by default.
          index: the part of that view to read, slices of step 1; all of it by default.
          first: the element at which a view of some of the tensor begins; None where the view is of
            the whole tensor.

        Returns:
          A new contiguous array.

        Raises:
          WeightsError: no such tensor, another number of elements than the view has, or a file
            that is no longer what it was when its header was read.
          ValueError: slices of another step, or too many of them.
        """
        tensor = self.tensors.get(name)
        if tensor is None:
            raise WeightsError(f"tensor {short(name)} is missing; fetch the model again")
        shape = tensor.shape if shape is None else shape
        size = math.prod(tensor.shape)
        if math.prod(shape) + first > size if first is not None else math.prod(shape) != size:
            raise WeightsError(
                f"shape of tensor {short(name)} is {list(tensor.shape)}, not to be viewed as "
                f"{list(shape)}; check that config.json belongs to these weights"
            )
        start = tensor.start + (first or 0) * tensor.dtype.itemsize
        tensor = dataclasses.replace(tensor, start=start)
        bounds = _bounds(shape, index or ())
        out = np.empty([stop - start for start, stop in bounds], tensor.dtype)
        if out.size:
            # Plain reads and no memory map: when the file shrinks or its disk fails, a read raises
            # an error, but access to a map kills the process.
            with _opened(tensor.file) as file:
                _read_part(file, tensor, shape, bounds, out)
            if tensor.dtype == bool and out.view(np.uint8).max() > 1:
                _fail(f"tensor {short(name)}", tensor.file.name, "neither false nor true somewhere")
        return out


def _without_derived(entries: dict[str, _T]) -> dict[str, _T]:
    return {name: value for name, value in entries.items() if not _DERIVED.fullmatch(name)}


def _read_part(
    file: io.FileIO,
    tensor: StoredTensor,
    shape: tuple[int, ...],
    bounds: list[tuple[int, int]],
    out: np.ndarray,
) -> None:
    """Fills `out` with a part of a tensor; if its runs are short, also reads the gaps between."""
    size, starts = tensor.dtype.itemsize, _run_starts(shape, bounds)
    rows = out.reshape(-1).view(np.uint8).reshape(len(starts), -1)
    if len(starts) == 1 or rows.shape[1] >= _SHORT_RUN:
        for start, row in zip((tensor.start + starts * size).tolist(), rows, strict=True):
            _fill(memoryview(row), file, start)
        return
    row_size, (first, last) = math.prod(shape[1:]), bounds[0]
    step = max(1, _BLOCK // (row_size * size))
    inner = tuple(slice(*bound) for bound in bounds[1:])
    block = np.empty(min(step, last - first) * row_size, tensor.dtype)
    for at in range(first, last, step):
        count = min(step, last - at)
        part = block[: count * row_size]
        _fill(memoryview(part.view(np.uint8)), file, tensor.start + at * row_size * size)
        out[at - first : at - first + count] = part.reshape(count, *shape[1:])[:, *inner]


def _bounds(shape: tuple[int, ...], index: tuple[slice, ...]) -> list[tuple[int, int]]:
    """Start and stop in every dimension."""
    if len(index) > len(shape) or any(part.step not in (None, 1) for part in index):
        raise ValueError(f"index is {index}; give at most {len(shape)} slices of step 1")
    index += (slice(None),) * (len(shape) - len(index))
    ranges = (part.indices(size) for part, size in zip(index, shape, strict=True))
    return [(start, max(start, stop)) for start, stop, _ in ranges]


def _run_starts(shape: tuple[int, ...], bounds: list[tuple[int, int]]) -> np.ndarray:
    """First element of each run of neighbouring elements that make up the part, in its order."""
    cut = [axis for axis, size in enumerate(shape) if bounds[axis] != (0, size)]
    if not cut:
        return np.zeros(1, np.int64)
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    last = cut[-1]  # the part has all of the dimensions after this one
    starts = np.array([bounds[last][0] * strides[last]], np.int64)
    for axis in reversed(range(last)):
        steps = np.arange(*bounds[axis], dtype=np.int64) * strides[axis]
        starts = (steps[:, None] + starts).reshape(-1)
    return starts


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[io.FileIO]:
    """Opens a file for reading; an OSError in the block becomes a WeightsError."""
    try:
        # Opening a pipe might block forever.
        if not stat.S_ISREG(path.stat().st_mode):
            raise WeightsError(f"model file is {path}, not a regular file; {DAMAGED}")
        with open(path, "rb", buffering=0) as file:
            yield file
    except OSError as error:
        raise WeightsError(
            f"model file is {path}, which cannot be read ({error.strerror}); fetch it again"
        ) from None


def _fill(buffer: memoryview, file: io.FileIO, start: int) -> None:
    """Fills all of the buffer from byte `start` on."""
    file.seek(start)
    while buffer:
        count = file.readinto(buffer)
        if not count:
            _fail("end", Path(file.name).name, f"at byte {file.tell()}, too early")
        buffer = buffer[count:]


def _fail(what: str, file: str, value: str, remedy: str = DAMAGED) -> NoReturn:
    raise WeightsError(f"{what} of {short(file)} is {value}; {remedy}")


def _parse(raw: bytearray, what: str, file: str) -> dict[str, Any]:
    """Parses a JSON object; refuses duplicate keys."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            _fail(what, file, f"a JSON object with {short(max(keys, key=keys.count))} twice")
        return found

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not JSON")

    try:
        found = json.loads(raw.decode(), object_pairs_hook=unique, parse_constant=refuse)
    # ValueError: not UTF-8, not JSON, or an integer of thousands of digits.
    except (ValueError, RecursionError) as error:
        _fail(what, file, f"not JSON ({short(str(error))})")
    if not isinstance(found, dict):
        _fail(what, file, "not a JSON object")
    return found


def _read_header(path: Path, file: io.FileIO) -> dict[str, StoredTensor]:
    """The tensors of one file, after a check that they cover its data without gaps."""
    size = os.fstat(file.fileno()).st_size
    length = bytearray(8)
    _fill(memoryview(length), file, 0)
    count = int.from_bytes(length, "little")
    if count > min(MAX_JSON_BYTES, size - 8):
        _fail("header", path.name, f"{count} bytes long in a file of {size}")
    raw = bytearray(count)
    _fill(memoryview(raw), file, 8)
    header = _parse(raw, "header", path.name)
    if not isinstance(header.pop("__metadata__", {}), dict):
        _fail("__metadata__", path.name, "not a JSON object")
    ends, tensors = {}, {}
    for name, entry in header.items():
        tensors[name], ends[name] = _stored_tensor(path, name, entry, 8 + count)
    at = 8 + count
    # An empty tensor starts where the next one does.
    for name in sorted(tensors, key=lambda name: (tensors[name].start, ends[name])):
        if tensors[name].start != at:
            start = tensors[name].start
            _fail(f"tensor {short(name)}", path.name, f"stored at byte {start}, not {at}")
        at = ends[name]
    if at != size:
        _fail("size", path.name, f"{size} bytes, not {at} as its header says")
    return tensors


def _stored_tensor(path: Path, name: str, entry: Any, data: int) -> tuple[StoredTensor, int]:
    """The tensor of one entry of the header, and its end; the file's data start at byte `data`."""
    what = f"tensor {short(name)}"
    if not isinstance(entry, dict):
        _fail(what, path.name, f"{short(entry)}, not a JSON object")
    kind, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    dtype = _DTYPES.get(kind) if isinstance(kind, str) else None
    if dtype is None:
        _fail(f"dtype of {what}", path.name, short(kind), "give weights in BF16, F16 or F32")
    if not _are_sizes(shape) or len(shape) > _MAX_DIMENSIONS:
        _fail(f"shape of {what}", path.name, f"{short(shape)}, not a list of sizes")
    if not _are_sizes(offsets) or len(offsets) != 2:
        _fail(f"data_offsets of {what}", path.name, f"{short(offsets)}, not two offsets")
    start, end = offsets
    # An empty tensor needs no bytes, but numpy refuses one whose other dimensions are huge.
    if math.prod(max(size, 1) for size in shape) * dtype.itemsize > sys.maxsize:
        _fail(f"shape of {what}", path.name, f"{short(shape)}, too large")
    if end - start != math.prod(shape) * dtype.itemsize:
        span = f"{short(offsets)}, not as long as {kind} of shape {short(shape)}"
        _fail(f"data_offsets of {what}", path.name, span)
    return StoredTensor(path, dtype, tuple(shape), data + start), data + end


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)


def _names(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise WeightsError(
            f"model folder is {folder}, which cannot be read ({reason}); "
            "give the folder of a Hugging Face model"
        ) from None


def _find_index(folder: Path, names: set[str]) -> dict[str, str] | None:
    """The index, tensor name to file name; None where the single file is to be read."""
    if INDEX in names:
        index = _read_index(folder / INDEX)
        missing = sorted(set(index.values()) - names)
        if not missing:
            return index
        if SINGLE not in names:
            raise WeightsError(
                f"model file {short(missing[0])} is named in {INDEX} but missing from {folder}; "
                "fetch it too"
            )
    if SINGLE in names:
        return None
    if pickled := sorted(n for n in names if n.endswith(".bin") or n.startswith("pytorch_model")):
        raise WeightsError(
            f"model file is {short(pickled[0])}, not safetensors; convert the model to "
            "safetensors, for example with save_pretrained of transformers"
        )
    if quantizer := file_of(names):
        raise WeightsError(
            f"model folder is {folder}, quantized as {quantizer} says; such weights {NOT_READ}"
        )
    if others := sorted(n for n in names if n.endswith(".safetensors")):
        raise WeightsError(
            f"model file is {short(others[0])}, which no {INDEX} names; "
            f"fetch that too, or call the file {SINGLE} where it is the only one"
        )
    raise WeightsError(
        f"model folder is {folder}, which has neither {SINGLE} nor {INDEX}; "
        "give the folder of a Hugging Face model"
    )


def _read_index(path: Path) -> dict[str, str]:
    with _opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_JSON_BYTES:
            _fail("size", path.name, f"{size} bytes, too large for an index")
        raw = bytearray(size)
        _fill(memoryview(raw), file, 0)
    found = _parse(raw, "content", path.name).get("weight_map")
    if not isinstance(found, dict) or not found:
        _fail("weight_map", path.name, f"{short(found)}, not an object that maps tensors to files")
    for file in found.values():
        if not isinstance(file, str) or not file.endswith(".safetensors") or set(file) & set("/\\"):
            remedy = "use the index that belongs to the files beside it"
            _fail(
                "file in weight_map", path.name, f"{short(file)}, not a .safetensors file", remedy
            )
    return _without_derived(found)


def _check_index(index: Mapping[str, str], tensors: Mapping[str, StoredTensor]) -> None:
    """Refuses an index that disagrees with the files on which file has which tensor."""
    remedy = "fetch all files of the model again, from one version of it"
    for name, tensor in tensors.items():
        if not (name in index or _UNEMBEDDING.fullmatch(name)):
            _fail(f"tensor {short(name)}", tensor.file.name, f"not in {INDEX}", remedy)
    for name, file in index.items():
        if name not in tensors and _UNEMBEDDING.fullmatch(name):
            continue
        if name not in tensors or tensors[name].file.name != file:
            _fail(f"weight_map {short(name)}", INDEX, f"{short(file)}, which lacks it", remedy)
