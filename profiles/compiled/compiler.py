"""Compiles a step for a slice of TPUs or GPUs that need not be there, with XLA for its chips.

The compiler runs in a process of its own, `profiles.compiled.child`: once loaded, libtpu takes over
much of a process, and a compiler may end one where it fails.
"""

import dataclasses
import json
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import jax

from model.config import ModelConfig
from model.dtypes import Dtypes, Storage
from profiles.chips.slices import Slice
from profiles.compiled.inspection import PassProgram
from profiles.compiled.toolchains import toolchain_of
from profiles.floor.passes import Pass
from sharding.catalog import attend_by, divide_experts, find_layout, schedule_by
from sharding.layout import Layout
from sharding.placement import Placement
from sharding.quantization import QUANTIZATIONS

_CHILD = ("-m", "profiles.compiled.child")
_SIZE = r"([\d.]+)([KMGT]?)"
_TAIL = 6  # lines that a crash leaves
DIED = "compiler ended"
"""How the message begins of a compiler that died, rather than refused."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compilation:
    """What came of compiling.

    Attributes:
      status: ``ok``, ``does_not_fit`` for want of a chip's memory, ``out_of_memory`` of the
        machine that compiles, or ``unsupported``: refused, or the compiler died, see `DIED`.
      message: the compiler's, where it failed.
      memory: bytes per device: ``argument_bytes``, ``output_bytes``, ``aliased_bytes`` and
        ``temporary_bytes``.
      text: the optimized, scheduled program, as XLA prints it.
      compile_s: seconds in XLA; tracing the model comes on top.
      trace_s: seconds of tracing the model.
      missing_bytes: bytes per device by which it does not fit; None if it does, or if the compiler
        did not say.
    """

    status: str
    message: str = ""
    memory: dict[str, int] = dataclasses.field(default_factory=dict)
    text: str = ""
    compile_s: float = 0.0
    trace_s: float = 0.0
    missing_bytes: float | None = None


def compile_step(
    program: PassProgram,
    slice: Slice,
    auto_weight_layout: bool = False,
    options: Mapping[str, str] | None = None,
) -> Compilation:
    """Compiles a pass for a slice; what goes wrong in the compiler is an outcome.

    Args:
      program: the pass.
      slice: the slice, of as many devices as the mesh of the pass has.
      auto_weight_layout: the compiler also chooses how each weight's shard lies in memory.
      options: options of the compiler beside the engine's own, or in place of some of them.
    """
    chosen = toolchain_of(slice)
    name, shape = chosen.topology(slice)
    job = {"program": to_json(program), "topology": name, "options": shape}
    job["platform"] = chosen.topology_platform
    job["auto_weight_layout"] = auto_weight_layout
    job["compiler_options"] = _spelled(options or {}, chosen.platform)
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, *_CHILD, folder],
            input=json.dumps(job),
            env=chosen.child_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        result = Path(folder, "result.json")
        if done.returncode or not result.is_file():
            return _crashed(done.returncode, done.stdout)
        found = json.loads(result.read_text())
        text = Path(folder, "program.txt")
        found["text"] = text.read_text() if text.is_file() else ""
    if found["status"] != "ok":
        return refused(found["message"])
    compilation = Compilation(**found)
    return held_against(compilation, slice) if chosen.platform == "gpu" else compilation


def _spelled(options: Mapping[str, str], platform: str) -> dict[str, str]:
    """Options with truth as a platform spells it: XLA:GPU takes True, where XLA_FLAGS has true."""
    if platform != "gpu":
        return dict(options)
    return {k: v.capitalize() if v in ("true", "false") else v for k, v in options.items()}


def held_against(compilation: Compilation, slice: Slice) -> Compilation:
    """The outcome where a device must hold the program: XLA:GPU compiles any size."""
    sizes = compilation.memory
    beside = sizes["temporary_bytes"] + sizes["output_bytes"] - sizes["aliased_bytes"]
    missing = sizes["argument_bytes"] + beside - slice.chip.recommended.capacity
    if missing <= 0:
        return compilation
    words = f"arguments of {sizes['argument_bytes']:,} bytes and {beside:,} bytes beside them"
    return Compilation(status="does_not_fit", message=words, missing_bytes=missing)


def refused(message: str) -> Compilation:
    """The outcome of a message that the compiler raised."""
    message = " ".join(message.split())
    if "RESOURCE_EXHAUSTED" not in message:
        return Compilation(status="unsupported", message=message[:600])
    if "hbm" in message.lower():
        status = "does_not_fit"
    else:  # one of a chip's own memories is the program's matter, and not this machine's
        status = "unsupported" if "memory space" in message else "out_of_memory"
    return Compilation(
        status=status,
        message=message[:600],
        missing_bytes=_missing_bytes(message),
    )


def _missing_bytes(message: str) -> float | None:
    """Bytes by which a chip's memory is exceeded, as the compiler says it in one of two ways."""
    if found := re.search(rf"Exceeded hbm capacity by {_SIZE}", message):
        return _bytes(*found.groups())
    found = re.search(rf"\({_SIZE}\) exceeds available HBM \({_SIZE}\)", message)
    return _bytes(found[1], found[2]) - _bytes(found[3], found[4]) if found else None


def _bytes(number: str, unit: str) -> float:
    return float(number) * 2 ** (10 * " KMGT".index(unit or " "))


def memory_sizes(compiled: jax.stages.Compiled) -> dict[str, int]:
    """The sizes that a compiled program accounts for, as `Compilation.memory` has them.

    Raises:
      NotImplementedError: its platform does not tell them.
    """
    found = compiled.memory_analysis()
    if found is None:
        raise NotImplementedError("the platform does not tell the sizes of a program's memory")
    return {
        "argument_bytes": found.argument_size_in_bytes,
        "output_bytes": found.output_size_in_bytes,
        "aliased_bytes": found.alias_size_in_bytes,
        "temporary_bytes": found.temp_size_in_bytes,
    }


def _crashed(code: int, output: str) -> Compilation:
    """The outcome of a process that ended before it could say how."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    last = " | ".join(lines[-_TAIL:]) or "without a word"
    killed = code == -signal.SIGKILL  # by the system, as it does where memory ends
    how = f"by signal {-code}" if code < 0 else f"with code {code}"
    status = "out_of_memory" if killed else "unsupported"
    return Compilation(status=status, message=f"{DIED} {how}: {last}")


# A program as JSON -------------------------------------------------------------------------------


def to_json(program: PassProgram) -> dict:
    """The program of a pass for another process."""
    layout, dtypes = program.placement.layout, program.dtypes
    return {
        "config": dataclasses.asdict(program.config),
        "mesh": dict(program.placement.mesh),
        "layout": [layout.name, layout.attends, layout.collectives, layout.expert_parallel],
        "dtypes": [*dtypes.names().values(), dtypes.round_activations, dtypes.gpu_kernels],
        "pass": dataclasses.asdict(program.pass_),
    }


def from_json(values: dict) -> PassProgram:
    """What `to_json` wrote."""
    config = ModelConfig.from_record(values["config"])
    dtype, weights, cache, rounded, kernels = values["dtypes"]
    return PassProgram(
        config=config,
        placement=Placement.of(_layout(*values["layout"]), config.sizes, values["mesh"]),
        dtypes=Dtypes(
            dtype, _storage(weights), _storage(cache), rounded, gpu_kernels=tuple(kernels)
        ),
        pass_=Pass(**values["pass"]),
    )


def _layout(name: str, attends: str, collectives: str, experts: bool) -> Layout:
    layout = attend_by(find_layout(name), attends)
    return schedule_by(divide_experts(layout) if experts else layout, collectives)


def _storage(name: str) -> Storage | str:
    return QUANTIZATIONS.get(name, name)
