"""The GGUF container: metadata and named, mostly quantized tensors in one memory-mapped file.

Source: the GGUF specification, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md,
versions 2 and 3. Numbers of the format and dequantization come from the `gguf` package. The header
is parsed here and not by its `GGUFReader`, which reads arrays one element at a time and trusts
every length: one corrupt byte makes it loop almost forever or fill the memory. Here each step
is checked against the end of the file first.
"""

import dataclasses
import math
import mmap
import os
import stat
import struct
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from gguf import GGML_QUANT_SIZES, GGUF_DEFAULT_ALIGNMENT, GGMLQuantizationType, GGUFValueType
from gguf.quants import dequantize

from model.weights import WeightsError
from model.weights.gguf_blocks import KEPT, Blocks, read_blocks

DAMAGED = "the file is damaged or cut short, fetch it again"
MIXED_PARTS = "fetch all parts again, from one version of the model"

_NUMBERS = {
    GGUFValueType.UINT8: "<u1",
    GGUFValueType.INT8: "<i1",
    GGUFValueType.UINT16: "<u2",
    GGUFValueType.INT16: "<i2",
    GGUFValueType.UINT32: "<u4",
    GGUFValueType.INT32: "<i4",
    GGUFValueType.FLOAT32: "<f4",
    GGUFValueType.UINT64: "<u8",
    GGUFValueType.INT64: "<i8",
    GGUFValueType.FLOAT64: "<f8",
    GGUFValueType.BOOL: "<u1",
}

# Types that are plain numbers; `gguf.quants.dequantize` knows the others.
_PLAIN = {
    GGMLQuantizationType.F32: "<f4",
    GGMLQuantizationType.F16: "<f2",
    GGMLQuantizationType.F64: "<f8",
    GGMLQuantizationType.I8: "<i1",
    GGMLQuantizationType.I16: "<i2",
    GGMLQuantizationType.I32: "<i4",
    GGMLQuantizationType.I64: "<i8",
}


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """Position and type of one tensor in the file.

    Attributes:
      file: the file that holds it.
      name: the tensor's name in the file.
      shape: row-major, as numpy has it: a matrix is (outputs, inputs).
      type: GGML's type of the stored values.
      offset: position of the first byte in the file.
      bytes: stored size.
    """

    file: Path
    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    offset: int
    bytes: int


class GGUFFile:
    """One GGUF file: its header read and checked, its tensors read on demand.

    Of a model in several files, `gguf_parts.open_model` joins the others to the first.

    Attributes:
      path: the file.
      metadata: key to value; a value is a Python scalar, a string, a list of strings or a numpy
        array of numbers.
      tensors: name to `TensorInfo`, in the order of the file; then those that were joined.

    Raises:
      WeightsError: the file is missing, unreadable, or breaks the format anywhere.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        data = _map(self.path)
        self._data = {self.path: data}  # of each file that tensors lie in
        header = _Header(self.path, data)
        tensor_count, key_count = header.start()
        self.metadata: dict[str, Any] = {}
        for _ in range(key_count):
            key = header.string("a metadata key")
            if key in self.metadata:
                header.fail("metadata key", f"{short(key)} twice")
            self.metadata[key] = header.value(f"metadata {short(key)}")
        self.tensors = _tensor_infos(header, tensor_count, self._alignment(header))

    @property
    def paths(self) -> tuple[Path, ...]:
        """The file, and those that were joined to it."""
        return tuple(self._data)

    def join(self, part: "GGUFFile") -> None:
        """Adds the tensors of another file of the same model; its metadata are left out.

        Raises:
          WeightsError: a tensor is in both.
        """
        for name in part.tensors:
            if name in self.tensors:
                raise WeightsError(
                    f"tensor {short(name)} of {part.path.name} is also in "
                    f"{self.tensors[name].file.name}; {MIXED_PARTS}"
                )
        self.tensors |= part.tensors
        self._data |= part._data

    def _alignment(self, header: "_Header") -> int:
        alignment = self.metadata.get("general.alignment", GGUF_DEFAULT_ALIGNMENT)
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            header.fail("general.alignment", f"{short(alignment)}, not a power of two")
        return alignment

    def read(self, name: str) -> np.ndarray:
        """One tensor, dequantized.

        Args:
          name: a key of `tensors`.

        Returns:
          A new float32 array of the tensor's shape.

        Raises:
          WeightsError: no such tensor, a type that cannot be dequantized, or values that are not
            finite, as a corrupt scale gives.
        """
        info = self._find(name)
        with np.errstate(all="ignore"):  # any fault ends as a value that is not finite
            values = self._dequantize(info)
        _check_finite(info, values)
        return values

    def quantization(self, name: str) -> str | None:
        """Name of the quantization that stores values as this tensor does; None if none does."""
        kept = KEPT.get(self._find(name).type)
        return kept and kept[0]

    def read_kept(self, name: str) -> Blocks:
        """A tensor whose type has a `quantization`, without dequantizing it.

        Returns:
          Codes of the tensor's shape; a scale, and perhaps an offset, for each 32 in a row.

        Raises:
          WeightsError: no such tensor, or scales that are not finite.
        """
        info = self._find(name)
        with np.errstate(all="ignore"):
            parts = read_blocks(self._rows(info), info.type)
        for part in parts[1:]:
            _check_finite(info, part)
        return tuple(part.reshape(*info.shape[:-1], -1) for part in parts)

    def let_go(self) -> None:
        """Lets the system take back the pages that were read, where it can be told to.

        They are read again where they are needed.
        """
        for data in self._data.values():
            if isinstance(data.base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
                data.base.madvise(mmap.MADV_DONTNEED)

    def _find(self, name: str) -> TensorInfo:
        if name not in self.tensors:
            raise WeightsError(
                f"tensor {short(name)} is not in {self.path.name}; "
                f"it has {len(self.tensors)} others, such as {short(next(iter(self.tensors), ''))}"
            )
        return self.tensors[name]

    def _rows(self, info: TensorInfo) -> np.ndarray:
        stored = np.asarray(self._data[info.file][info.offset : info.offset + info.bytes])
        return stored.reshape(-1, info.bytes * info.shape[-1] // math.prod(info.shape))

    def _dequantize(self, info: TensorInfo) -> np.ndarray:
        rows = self._rows(info)
        if plain := _PLAIN.get(info.type):
            return rows.view(plain).reshape(info.shape).astype(np.float32)
        try:
            return dequantize(rows, info.type).reshape(info.shape)
        except NotImplementedError:
            raise WeightsError(
                f"type of tensor {short(info.name)} in {info.file.name} is {info.type.name}, "
                "which cannot be dequantized here; take a file of another quantization, "
                "such as Q4_K or Q8_0"
            ) from None


def _check_finite(info: TensorInfo, values: np.ndarray) -> None:
    # Minimum and maximum show it without an array of flags: both are NaN if a value is.
    if not (np.isfinite(values.min()) and np.isfinite(values.max())):
        raise WeightsError(
            f"tensor {short(info.name)} of {info.file.name} is not finite everywhere; {DAMAGED}"
        )


class _Header:
    """Reads the values of a header in order, and refuses to read beyond the end of the file."""

    def __init__(self, path: Path, data: np.ndarray):
        self.path, self._data = path, memoryview(data)
        self.at, self.size = 0, len(data)

    def fail(self, what: str, value: str, remedy: str = DAMAGED) -> NoReturn:
        raise WeightsError(f"{what} of {self.path.name} is {value}; {remedy}")

    def take(self, size: int, what: str) -> memoryview:
        if size > self.size - self.at:
            self.fail(what, f"{size} bytes at byte {self.at} of {self.size}")
        self.at += size
        return self._data[self.at - size : self.at]

    def number(self, code: str, what: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize(code), what))[0]

    def string(self, what: str) -> str:
        raw = self.take(self.number("Q", what), what)
        try:
            return str(raw, "utf-8")
        except UnicodeDecodeError:
            self.fail(what, f"{short(bytes(raw[:60]))}, not UTF-8")

    def start(self) -> tuple[int, int]:
        """Reads magic and version; returns the numbers of tensors and of metadata entries."""
        magic = bytes(self.take(4, "start"))
        if magic != b"GGUF":
            self.fail("start", f"{magic!r}, not b'GGUF'", "give a GGUF file")
        version = self.number("I", "version")
        if version and not version & 0xFFFF:
            self.fail("byte order", "big-endian", "give a little-endian file")
        if version not in (2, 3):
            self.fail("version", str(version), "give a file of GGUF version 2 or 3")
        return self.number("Q", "tensor count"), self.number("Q", "metadata count")

    def value(self, what: str) -> Any:
        kind = self._kind(what)
        if kind is GGUFValueType.STRING:
            return self.string(what)
        if kind is not GGUFValueType.ARRAY:
            return self._numbers(kind, 1, what)[0].item()
        kind = self._kind(what)
        count = self.number("Q", f"length of {what}")
        if kind is GGUFValueType.ARRAY:
            self.fail(what, "an array of arrays", "this is not supported, give another file")
        if kind is not GGUFValueType.STRING:
            return self._numbers(kind, count, what)
        if count > (self.size - self.at) // 8:  # each string has at least its length, 8 bytes
            self.fail(what, f"{count} strings at byte {self.at} of {self.size}")
        return [self.string(what) for _ in range(count)]

    def _kind(self, what: str) -> GGUFValueType:
        number = self.number("I", f"type of {what}")
        try:
            return GGUFValueType(number)
        except ValueError:
            self.fail(f"type of {what}", f"{number}, not a GGUF value type")

    def _numbers(self, kind: GGUFValueType, count: int, what: str) -> np.ndarray:
        dtype = np.dtype(_NUMBERS[kind])
        stored = np.frombuffer(self.take(count * dtype.itemsize, what), dtype)
        if kind is not GGUFValueType.BOOL:
            return stored.astype(dtype.newbyteorder("="))
        if count and stored.max() > 1:
            self.fail(what, f"{stored.max()}, neither false nor true")
        return stored.astype(bool)


def _tensor_infos(header: _Header, count: int, alignment: int) -> dict[str, TensorInfo]:
    """All tensors, after a check that each is inside the file and that none overlap."""
    infos: dict[str, TensorInfo] = {}
    for _ in range(count):
        info = _tensor_info(header, alignment)
        if info.name in infos:
            header.fail("tensor", f"{short(info.name)} twice")
        infos[info.name] = info
    start = -(-header.at // alignment) * alignment
    infos = {i.name: dataclasses.replace(i, offset=start + i.offset) for i in infos.values()}
    end, before = start, ""
    for info in sorted(infos.values(), key=lambda info: info.offset):
        if info.offset < end:
            header.fail(f"tensor {short(info.name)}", f"stored over tensor {short(before)}")
        end, before = info.offset + info.bytes, info.name
        if end > header.size:
            header.fail(f"tensor {short(info.name)}", f"stored up to byte {end} of {header.size}")
    return infos


def _tensor_info(header: _Header, alignment: int) -> TensorInfo:
    """One tensor, with its offset still relative to the start of the tensor data."""
    name = header.string("a tensor name")
    what = f"tensor {short(name)}"
    dimensions = header.number("I", f"number of dimensions of {what}")
    if not 1 <= dimensions <= 4:
        header.fail(f"number of dimensions of {what}", f"{dimensions}, not 1 to 4")
    shape = tuple(header.number("Q", f"shape of {what}") for _ in range(dimensions))[::-1]
    number = header.number("I", f"type of {what}")
    offset = header.number("Q", f"offset of {what}")
    try:
        kind = GGMLQuantizationType(number)
    except ValueError:
        header.fail(f"type of {what}", f"{number}, not a known type", "upgrade the gguf package")
    block, block_bytes = GGML_QUANT_SIZES[kind]
    if 0 in shape or shape[-1] % block:
        header.fail(f"shape of {what}", f"{list(shape)}, not in {kind.name} blocks of {block}")
    if offset % alignment:
        header.fail(f"offset of {what}", f"{offset}, not a multiple of {alignment}")
    size = math.prod(shape) // block * block_bytes
    return TensorInfo(header.path, name, shape, kind, offset, size)


def _map(path: Path) -> np.ndarray:
    """The file's bytes, memory-mapped."""
    try:
        status = path.stat()
        # A pipe or device has no size to check against, and opening one might block forever.
        if not stat.S_ISREG(status.st_mode):
            raise WeightsError(f"model file is {path}, not a regular file; give a .gguf file")
        if not status.st_size:
            raise WeightsError(f"model file is {path}, which is empty; fetch it again")
        return np.memmap(path, np.uint8, mode="r")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise WeightsError(
            f"model file is {path}, which cannot be read ({reason}); give a .gguf file"
        ) from None


def short(value: object) -> str:
    """A value of the file as one printable line of bounded length."""
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."
