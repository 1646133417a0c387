"""Convert a model to an Orbax checkpoint, which loads in parallel on any mesh.

Reads a Hugging Face folder, a GGUF file or another such checkpoint, and writes a folder with the
weights, the configuration and the tokenizer, and checksums of all files. `--model=FOLDER` of the
other scripts reads it. The entire model must fit into the memory of the devices: use a mesh of
several if one is too small. A checkpoint that the folder already holds stays until the new one is
complete; a folder with any other files is refused. Several processes must all see the folder.

Examples:
  python scripts/convert_checkpoint.py --output_dir=smollm2-orbax
  python scripts/convert_checkpoint.py --model=Qwen3-8B --output_dir=qwen3-orbax --dtype=bfloat16
  python scripts/convert_checkpoint.py --model=a.gguf --output_dir=a-orbax --devices=8
  python scripts/generate.py --model=smollm2-orbax --prompt="Once upon a time"
"""

import functools
import time
from pathlib import Path

import _array_flags
import _common
from absl import flags

_DEVICES = flags.DEFINE_integer(
    "devices",
    None,
    "Number of devices, with the simplest mesh that the layout can use. Default: one on a CPU, "
    "elsewhere all that the layout can divide.",
    1,
)
_OUTPUT_DIR = flags.DEFINE(_common.PATH, "output_dir", None, "Folder for the checkpoint.")
_MESH = flags.DEFINE_string("mesh", None, "Sizes of mesh axes x, y and z, such as 2x2x2.")

if __name__ == "__main__":
    for module in (_common, _array_flags):
        flags.adopt_module_key_flags(module)

with _common.importing(__name__):
    import _dtypes
    import _layouts

    from model.dtypes import Dtypes
    from model.weights.orbax_checkpoint import OrbaxFolder, check_target, save
    from profiles.report.files import write_json
    from profiles.report.progress import byte_progress
    from sharding import processes
    from sharding.error_types import UsageError


def main() -> None:
    """Loads the model and saves it."""
    if not _OUTPUT_DIR.value:
        raise UsageError("--output_dir is missing; name the folder that the checkpoint goes to")
    _common.refuse(
        ("attention", "prefill_layout", "collectives"), "a checkpoint is the same for all steps"
    )
    folder = Path(_OUTPUT_DIR.value)
    check_target(folder)
    _dtypes.check()
    meshes = _layouts.meshes(_DEVICES.value, _MESH.value)
    _common.check_json()
    source = _common.source()
    started = time.perf_counter()

    @functools.cache
    def dtypes_of_source() -> Dtypes:  # which starts JAX: not before the layout has its devices
        return _dtypes.dtypes(source.stored_quantization(), source.stored_dtype())

    # No step runs here, so the simplest mesh is enough; others would divide weights needlessly.
    layout, shape = _layouts.layout(source.config, meshes, dtypes_of_source, steps=[])
    dtypes = dtypes_of_source()
    engine = source.engine(layout, shape, dtypes, progress=byte_progress)
    loaded = time.perf_counter()
    save(folder, source.config, engine.parameters, source.tokenizer_files(), dtypes.quantization)
    seconds = {"load_s": loaded - started, "save_s": time.perf_counter() - loaded}
    size = OrbaxFolder(folder).bytes
    _common.say(
        f"{source.config.name} in {dtypes.weights.name}: {size / 1e6:.1f} MB in {folder}, "
        f"read in {seconds['load_s']:.1f} s, written in {seconds['save_s']:.1f} s "
        f"({size / seconds['save_s'] / 1e6:.0f} MB/s)"
    )
    if source.tokenizer is None:
        why, remedies = source.without_tokenizer()
        _common.say("; ".join([f"it takes token ids and no text, for {why}", *remedies]))
    if _common.JSON.value and processes.is_first():
        written = {
            "model": source.config.name,
            "dtype": dtypes.plain.name,
            "weight_dtype": dtypes.weights.name,
            "bytes": size,
            **seconds,
        }
        write_json(_common.JSON.value, {"checkpoint": str(folder), **written})


if __name__ == "__main__":
    _common.start(main)
