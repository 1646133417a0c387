"""From a model's name or file to an engine on a mesh."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path

import jax

from decode import tokenizer_files, tokenizer_gguf
from decode.engine import Engine
from decode.ignored_settings import ignored_in_folder, ignored_in_metadata
from decode.tokenizer import Tokenizer
from decode.unreadable_tokenizers import unreadable_file
from model.catalog import CATALOG, find_model
from model.config import ModelConfig
from model.config_checks import ConfigError
from model.declarations import Path as ParameterPath
from model.declarations import matrices, total_bytes
from model.dtypes import PLAIN_DTYPES, Dtypes, check_runs
from model.layout_check import settle
from model.parameters import Parameters, Readable, convert_parameters, initialise, place_parameters
from model.transformer import Transformer
from model.weights import WeightsError, gguf
from model.weights.fetch import FETCHABLE, fetch
from model.weights.gguf_file import GGUFFile
from model.weights.gguf_parts import open_model
from model.weights.huggingface import HuggingFaceFolder
from model.weights.orbax_checkpoint import MANIFEST, OrbaxFolder, is_checkpoint
from sharding.layout import Layout
from sharding.mesh import MeshShape, make_mesh
from sharding.placement import Placement
from sharding.quantization import Quantization, QuantizedArray

# Takes the total number of bytes; the context's value is called with each number of bytes loaded.
Progress = Callable[[int], contextlib.AbstractContextManager[Callable[[int], None]]]


def _unseen(total: int) -> contextlib.AbstractContextManager[Callable[[int], None]]:
    return contextlib.nullcontext(lambda count: None)


@dataclasses.dataclass(frozen=True)
class ModelSource:
    """A model that is known but not loaded.

    Attributes:
      config: its sizes.
      file: the file or folder with its weights; None for random weights.
      tokenizer: turns text into the model's tokens; None if the model has none.
    """

    config: ModelConfig
    file: GGUFFile | HuggingFaceFolder | OrbaxFolder | None
    tokenizer: Tokenizer | None

    def engine(
        self,
        layout: Layout,
        shape: MeshShape,
        dtypes: Dtypes,
        seed: int = 0,
        progress: Progress = _unseen,
    ) -> Engine:
        """Puts the model on a mesh.

        Args:
          layout: checked against the model and the mesh before anything is allocated.
          shape: sizes of x, y and z.
          dtypes: how its numbers are stored.
          seed: seed of random weights.
          progress: shows how much of the weights is loaded.

        Raises:
          LayoutError: the layout divides the model or the mesh's axes in a way that it cannot.
          WeightsError: the file does not hold this model, or holds it quantized in another way.
        """
        self.check_dtypes(dtypes)
        placement = settle(self.config, dtypes, layout, shape)
        model = Transformer(self.config, dtypes)
        mesh = make_mesh(shape)
        if self.file is None:
            parameters = initialise(model, placement, mesh, seed)
        elif isinstance(self.file, OrbaxFolder):
            parameters = self._checkpoint(model, placement, mesh, progress)
        else:
            with progress(total_bytes(model)) as watch:
                parameters = place_parameters(model, self._arrays(model), placement, mesh, watch)
            if isinstance(self.file, GGUFFile):
                self.file.let_go()
        return Engine(self.config, parameters, placement, mesh, dtypes)

    def check_dtypes(self, dtypes: Dtypes) -> None:
        """Refuses dtypes that the stored weights cannot be converted to.

        Raises:
          UsageError: a type is counted but does not run.
          WeightsError: a checkpoint is quantized, and other dtypes are asked for.
        """
        check_runs(dtypes)
        stored = self.stored_quantization()
        if isinstance(self.file, OrbaxFolder) and stored and dtypes.quantization is not stored:
            raise WeightsError(
                f"weight_dtype is {dtypes.weights.name}, but {self.file.path} holds weights in "
                f"{stored.name}; leave out --weight_dtype, or convert the source again"
            )

    def _checkpoint(
        self, model: Transformer, placement: Placement, mesh: jax.sharding.Mesh, progress: Progress
    ) -> Parameters:
        """The parameters of a checkpoint: as stored, or quantized once they are read."""
        dtypes = model.dtypes
        if dtypes.quantization and not self.file.quantization:
            dtypes = dataclasses.replace(dtypes, weights=PLAIN_DTYPES[self.file.dtype])
        stored = Transformer(self.config, dtypes)
        with progress(self.file.bytes) as watch:
            parameters = self.file.restore(stored, placement, mesh, watch)
        return parameters if dtypes == model.dtypes else convert_parameters(model, parameters, mesh)

    def stored_quantization(self) -> Quantization | None:
        """The quantization that stored matrices are in, all or experts'; None for plain ones."""
        if isinstance(self.file, GGUFFile):
            return gguf.stored_quantization(self.file)
        return self.file.quantization if self.file else None

    def stored_dtype(self) -> str:
        """The dtype of `PLAIN_DTYPES` that represents the file's weights exactly."""
        if isinstance(self.file, OrbaxFolder | HuggingFaceFolder):
            return self.file.dtype
        return "float32"

    def tokenizer_files(self) -> dict[str, bytes]:
        """The files that `Tokenizer.from_folder` reads this model's tokenizer from, by path."""
        if isinstance(self.file, GGUFFile) and self.tokenizer is not None:
            return {tokenizer_gguf.FILE: tokenizer_gguf.metadata_to_json(self.file.metadata)}
        if isinstance(self.file, HuggingFaceFolder):
            return tokenizer_files.read_files(self.file.path)
        if isinstance(self.file, OrbaxFolder):
            folder = self.file.tokenizer
            files = [path for path in folder.rglob("*") if path.is_file()]
            return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
        return {}

    def without_tokenizer(self) -> tuple[str, list[str]]:
        """Why a model that has no tokenizer reads no text, and what would change that."""
        name = self.config.name
        if isinstance(self.file, OrbaxFolder):
            remedy = "convert a model again that has tokenizer.json"
            return f"{name} was converted without a tokenizer", [remedy]
        if isinstance(self.file, HuggingFaceFolder) and (other := unreadable_file(self.file.path)):
            file, remedy = other
            return f"{name} has its tokenizer in {file}, which is not read", [remedy]
        return f"{name} has no tokenizer", []

    def notes(self) -> list[str]:
        """Settings in the model's files that are ignored, as messages for the user."""
        notes = list(self.tokenizer.notes) if self.tokenizer else []
        if isinstance(self.file, GGUFFile):
            return notes + ignored_in_metadata(self.file.metadata)
        if isinstance(self.file, OrbaxFolder):
            return notes + ignored_in_folder(self.file.tokenizer)
        return notes + ignored_in_folder(self.file.path) if self.file else notes

    def _arrays(
        self, model: Transformer
    ) -> Iterable[tuple[ParameterPath, Readable | QuantizedArray]]:
        keep = {path: matrix.dtypes.quantization for path, matrix in matrices(model).items()}
        if isinstance(self.file, HuggingFaceFolder):
            stored = self.file.quantization
            alike = [path for path, quantization in keep.items() if quantization is stored]
            return self.file.read_parameters(self.config, alike)
        return gguf.read_parameters(self.file, self.config, keep)


def find_source(
    model: str,
    *,
    random_weights: bool = False,
    report: Callable[[str], None] | None = None,
    accept_terms: bool = False,
) -> ModelSource:
    """The model that ``--model`` names: a catalogue entry, a GGUF file or a folder.

    A folder is one as Hugging Face writes it, or one that `scripts/convert_checkpoint.py` made. A
    GGUF file may have any name; of a model in several files the first is given.

    Args:
      model: a name in the catalogue or a path.
      random_weights: use random weights instead of reading them; catalogue names only.
      report: called with a line to show: before anything is downloaded, with the terms of a model
        that has some, and with settings in its files that are ignored.
      accept_terms: the user accepts the model's terms.

    Raises:
      ConfigError: no such model, or one whose weights cannot be fetched.
      UsageError: terms that are not accepted.
      WeightsError: a file that cannot be read.
    """
    if random_weights:
        if model not in CATALOG:
            raise ConfigError(
                f"model is {model!r}, which random weights have no shapes for; "
                f"use one of {', '.join(CATALOG)}"
            )
        return ModelSource(find_model(model), None, None)
    if model in FETCHABLE:
        source = _from_file(fetch(model, report=report, accept_terms=accept_terms), report)
        return dataclasses.replace(source, config=dataclasses.replace(source.config, name=model))
    if model in CATALOG:
        raise ConfigError(
            f"model is {model!r}, whose weights are not fetched; give the path of a GGUF file or "
            "of a Hugging Face or Orbax folder, or --random_weights for its shapes alone"
        )
    try:
        exists = Path(model).exists()
    except OSError as error:
        raise ConfigError(
            f"model is {model[:60]!r}..., which is no path ({error.strerror}); give a name or path"
        ) from None
    if not (exists or model.endswith(".gguf") or "/" in model):
        find_model(model)  # neither a name nor a path: the error lists the names
    return _from_file(Path(model), report)


def _from_file(path: Path, report: Callable[[str], None] | None) -> ModelSource:
    source = _read(path)
    for note in source.notes() if report else ():
        report(note)
    return source


def _read(path: Path) -> ModelSource:
    if is_checkpoint(path):
        saved = OrbaxFolder(path)
        return ModelSource(saved.config, saved, Tokenizer.from_folder(saved.tokenizer))
    if path.is_dir():
        if not (path / "config.json").exists():
            raise WeightsError(
                f"model folder is {path}, which holds neither config.json nor {MANIFEST}; give a "
                "folder of Hugging Face or of scripts/convert_checkpoint.py, or a .gguf file"
            )
        folder = HuggingFaceFolder(path)
        return ModelSource(folder.config, folder, Tokenizer.from_folder(path))
    file = open_model(path)
    return ModelSource(gguf.read_config(file), file, Tokenizer.from_gguf(file.metadata))
