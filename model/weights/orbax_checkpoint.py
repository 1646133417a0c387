"""This project's checkpoints: a folder with arrays that Orbax writes, configuration and tokenizer.

    floorline.json     the configuration, and every file's size and SHA-256
    data-<letters>/    everything else; floorline.json names the current one
      arrays/          written by Orbax
      tokenizer/       copies of the tokenizer's files

A save writes a new data folder beside the old one and then replaces floorline.json in one rename.
A save that is interrupted leaves the old model in place, if there was one; a save that fails also
removes what it wrote.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import math
import os
import re
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from model.config import ModelConfig
from model.declarations import declarations
from model.parameters import Parameters, copy_per_device, shardings
from model.weights import WeightsError
from model.weights.data_folder import check_writable, new_folder, remove_others
from sharding.placement import Placement
from sharding.quantization import QUANTIZATIONS, Quantization

MANIFEST = "floorline.json"
TOKENIZER = "tokenizer"
_ARRAYS = "arrays"
_FORMAT = 1
_DATA = re.compile("data-[0-9a-f]{16}")
# Size of a chunk on disk: a chip that needs part of an array reads at most so much in excess.
_CHUNK_BYTES = 64 * 2**20
# Bytes read concurrently, unless one array has more.
_READ_BYTES = 256 * 2**20
_LARGEST_MANIFEST = 100_000_000
_ENDING_SECONDS = 5.0  # longest wait for a thread of a failed save; none took as long
_AGAIN = "the checkpoint is damaged, convert or save it again"

Watch = Callable[[int], None]
"""Called with each number of bytes that have been read."""


def save(
    folder: str | os.PathLike[str],
    config: ModelConfig,
    parameters: Parameters,
    tokenizer: Mapping[str, bytes] | None = None,
    quantization: Quantization | None = None,
) -> None:
    """Saves a model; a model that the folder already holds stays until the new one is complete.

    Every process of a run calls this, and all must see the same folder.

    Args:
      folder: the folder, created if absent.
      config: the model's configuration.
      parameters: as an engine holds them, on any mesh.
      tokenizer: content of the files that `Tokenizer.from_folder` reads, by their path.
      quantization: how matrices are quantized; None for plain ones.

    Raises:
      WeightsError: the folder holds something else, or cannot be written to.
    """
    folder = Path(folder).absolute()
    check_target(folder)
    number = np.frombuffer(secrets.token_bytes(8), np.uint8)
    data = folder / f"data-{bytes(_agreed(number)).hex()}"
    flat = {_key(path): _signed(array) for path, array in flatten_dict(parameters).items()}
    dtype = str(flat["embedding.weight"].dtype)
    current = functools.partial(_current, folder)
    with new_folder(data, current) as stands:
        with _orbax(), _threads_ended():
            ocp.save(data / _ARRAYS, flat)
        if jax.process_index() == 0:
            kinds = {"dtype": dtype, "weight_dtype": quantization.name if quantization else dtype}
            manifest = _finish(data, config, kinds, tokenizer or {})
            if not stands():  # another save moved the folder away, so it may be incomplete
                raise FileNotFoundError(f"{data} was removed")
            os.replace(manifest, folder / MANIFEST)
            _synchronise(folder)
            remove_others(data, _DATA.match, current)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"saved {data.name}")


def _current(folder: Path) -> str | None:
    """The data folder that a folder's manifest names."""
    with contextlib.suppress(WeightsError):
        return _read_manifest(folder / MANIFEST)["data"]


def check_target(folder: Path) -> None:
    """Refuses a folder that holds other files, or that cannot be written to.

    The folder need not exist, and is not created.

    Raises:
      WeightsError: the path is no folder, or one that holds other files or is not writable.
    """
    try:
        others = [entry.name for entry in folder.iterdir()] if folder.exists() else []
    except OSError as error:
        raise WeightsError(f"{folder} is no folder ({error.strerror}); name another one") from None
    if others := sorted(n for n in others if n != MANIFEST and not _is_ours(n)):
        raise WeightsError(
            f"folder {folder} holds {others[0]!r:.60}, which no checkpoint has; name a new folder"
        )
    check_writable(folder)


def _is_ours(name: str) -> bool:
    return bool(_DATA.match(name)) or name == f".{MANIFEST}"


def _finish(
    data: Path,
    config: ModelConfig,
    kinds: Mapping[str, str],
    tokenizer: Mapping[str, bytes],
) -> Path:
    """Writes everything but the arrays; returns the path of the manifest, yet to be renamed."""
    (data / TOKENIZER).mkdir()
    for file, content in tokenizer.items():
        (data / TOKENIZER / file).parent.mkdir(exist_ok=True)
        (data / TOKENIZER / file).write_bytes(content)
    files = sorted(path for path in data.rglob("*") if path.is_file())
    content = {
        "format": _FORMAT,
        "config": dataclasses.asdict(config),
        **kinds,
        "data": data.name,
        "files": {
            path.relative_to(data).as_posix(): {"bytes": path.stat().st_size, "sha256": digest}
            for path, digest in zip(files, _digests(files), strict=True)
        },
    }
    for path in (*data.rglob("*"), data):
        _synchronise(path)
    temporary = data / MANIFEST  # no other save writes to this data folder
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(content | {"sha256": _own_digest(content)}, file, indent=1, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())
    return temporary


class OrbaxFolder:
    """A saved model; the constructor reads and checks floorline.json alone.

    Attributes:
      path: the folder.
      config: the model.
      tokenizer: folder with the tokenizer's files.
      dtype: dtype of plain arrays.
      quantization: how matrices are quantized; None for plain ones.
      bytes: size of all files.

    Raises:
      WeightsError: no checkpoint, or one that is damaged.
      ConfigError: sizes that contradict each other.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path).absolute()
        content = _read_manifest(self.path / MANIFEST)
        self.config = _config(content["config"])
        self.dtype: str = content["dtype"]
        self.quantization = self._known_quantization(content.get("weight_dtype", self.dtype))
        self._data = self.path / content["data"]
        self._files: dict[str, dict[str, Any]] = content["files"]
        self.tokenizer = self._data / TOKENIZER
        self.bytes = sum(entry["bytes"] for entry in self._files.values())
        for name, entry in self._files.items():
            try:
                size = (self._data / name).stat().st_size
            except OSError as error:
                raise WeightsError(
                    f"file {self._data / name} cannot be read ({error.strerror}); {_AGAIN}"
                ) from None
            if size != entry["bytes"]:
                raise WeightsError(
                    f"file {self._data / name} has {size} bytes, not {entry['bytes']}; {_AGAIN}"
                )
        self._verify([name for name in self._files if name.startswith(f"{TOKENIZER}/")])

    def restore(
        self,
        model: nnx.Module,
        placement: Placement,
        mesh: jax.sharding.Mesh,
        watch: Watch | None = None,
    ) -> Parameters:
        """The model's parameters on a mesh, whatever mesh they were saved from.

        Args:
          model: declares shapes and dtypes; values stored in another dtype are converted.
          placement: the layout to put them in.
          mesh: the devices.
          watch: called as files are checked; the numbers add up to `bytes` over all processes.

        Raises:
          WeightsError: a file differs from what was saved.
        """
        mine = sorted(self._files)[jax.process_index() :: jax.process_count()]
        self._verify(mine, watch)
        by_path = shardings(model, placement, mesh)
        wanted = {
            _key(path): jax.ShapeDtypeStruct(
                param.shape, _SIGNED.get(param.dtype, param.dtype), sharding=by_path[path]
            )
            for path, param in declarations(model).items()
        }
        try:
            with _orbax(wanted.values()):
                flat = ocp.load(self._data / _ARRAYS, wanted)
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise WeightsError(
                f"arrays of {self.path} cannot be read ({reason:.120}); {_AGAIN}"
            ) from error
        return unflatten_dict(
            {
                path: copy_per_device(_as_bits(flat[_key(path)], param.dtype), placement)
                for path, param in declarations(model).items()
            }
        )

    def _known_quantization(self, stored: str) -> Quantization | None:
        if stored != self.dtype and stored not in QUANTIZATIONS:
            raise WeightsError(
                f"weight_dtype of {self.path} is {stored!r}, which is not known (known: "
                f"{', '.join(QUANTIZATIONS)}); "
                "use the version that saved it, or convert the source again"
            )
        return QUANTIZATIONS.get(stored)

    def _verify(self, names: list[str], watch: Watch | None = None) -> None:
        for name, found in zip(
            names, _digests([self._data / name for name in names], watch), strict=True
        ):
            if found != self._files[name]["sha256"]:
                raise WeightsError(f"file {self._data / name} has changed; {_AGAIN}")


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is meant to hold a model that `save` wrote."""
    return (folder / MANIFEST).exists()


def _key(path: tuple[str | int, ...]) -> str:
    return ".".join(map(str, path))


_SIGNED = {jnp.dtype(jnp.uint4): jnp.dtype(jnp.int4)}  # TensorStore knows no uint4


def _signed(array: jax.Array) -> jax.Array:
    return _as_bits(array, _SIGNED.get(array.dtype, array.dtype))


def _as_bits(array: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The same bits as another type of the same width."""
    return array if array.dtype == dtype else _reinterpret(array, dtype)


_reinterpret = jax.jit(jax.lax.bitcast_convert_type, static_argnums=1)


def _agreed(value: np.ndarray) -> np.ndarray:
    """Process 0's value, in every process."""
    if jax.process_count() == 1:
        return value
    return np.asarray(multihost_utils.broadcast_one_to_all(value))


def _orbax(wanted: Iterable[jax.ShapeDtypeStruct] = ()) -> contextlib.AbstractContextManager:
    """Orbax's options: uncompressed chunks, read with little additional memory."""
    context = ocp.Context()
    # If it creates folders in the background and fails, Orbax waits for them for minutes.
    context.async_options.create_directories_asynchronously = False
    context.array.saving.storage_options.chunk_byte_size = _CHUNK_BYTES
    # Compression would save a quarter of bfloat16 weights, but every compressed array stays in
    # memory until the save ends, as much again as the model.
    context.array.saving.use_compression = False
    largest = max((math.prod(array.shape) for array in wanted), default=0)
    # Orbax needs room for more than the largest array, which it counts as float32.
    context.memory_options.read_concurrent_bytes = max(_READ_BYTES, 4 * largest + 1)
    return context


@contextlib.contextmanager
def _threads_ended() -> Iterator[None]:
    """If a save fails, waits for its threads, which go on writing for a moment.

    Also drops the stack traces that they log: the exception says the same.
    """
    before, log = set(threading.enumerate()), logging.getLogger("absl")

    def below_error(record: logging.LogRecord) -> bool:
        return record.levelno < logging.ERROR

    log.addFilter(below_error)
    try:
        yield
    except BaseException:
        for thread in set(threading.enumerate()) - before:
            thread.join(_ENDING_SECONDS)
        raise
    finally:
        log.removeFilter(below_error)


def _digests(files: list[Path], watch: Watch | None = None) -> list[str]:
    """SHA-256 of each file, computed in several threads."""

    def digest(path: Path) -> str:
        state, buffer = hashlib.sha256(), bytearray(2**20)
        try:
            with open(path, "rb", buffering=0) as file:
                while count := file.readinto(buffer):
                    state.update(memoryview(buffer)[:count])
                    if watch:
                        watch(count)
        except OSError as error:
            raise WeightsError(f"file {path} cannot be read ({error.strerror}); {_AGAIN}") from None
        return state.hexdigest()

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(digest, files))


def _synchronise(path: Path) -> None:
    """Waits until a file's bytes, or a folder's names, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _own_digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        if not path.is_file() or path.stat().st_size > _LARGEST_MANIFEST:
            raise ValueError("it is too large, or no regular file")
        content = json.loads(path.read_text("utf-8"))
        if content.get("format", 0) > _FORMAT:
            raise WeightsError(f"{path} is of format {content['format']}; use a newer version")
        if content.pop("sha256") != _own_digest(content):
            raise ValueError("its checksum differs")
        if not _DATA.fullmatch(content["data"]):
            raise ValueError("it names no data folder")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)[:80]
        raise WeightsError(f"{path} is not readable ({reason}); {_AGAIN}") from None
    return content


def _config(values: dict[str, Any]) -> ModelConfig:
    try:
        return ModelConfig.from_record(values)
    except TypeError as error:  # another version's ModelConfig had other fields
        raise WeightsError(f"configuration is not readable ({error}); {_AGAIN}") from None
