"""XLA's compilers for TPUs and GPUs on machines without them: what each needs and is told.

Sources: https://docs.jax.dev, "Ahead-of-time lowering and compilation";
`jax.experimental.topologies`.
"""

import dataclasses
import importlib.util
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from profiles.chips.gpu_targets import gpu_targets, target_config
from profiles.chips.slices import Slice
from profiles.report.document import GPU_COMPILERS
from sharding.error_types import FloorlineError, UsageError

Topology = tuple[str, dict[str, object]]
"""What `get_topology_desc` calls a slice, and its further arguments."""
TPU_MODULES = "libtpu"
GPU_MODULES = "jax_cuda13_plugin jax_cuda12_plugin"
"""Modules of which any one brings the compiler."""


class CompilerError(FloorlineError):
    """There is no compiler for a slice here."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Toolchain:
    """A compiler of XLA that runs on a CPU machine.

    Attributes:
      platform: JAX's name of the devices, ``tpu`` or ``gpu``.
      name: in words.
      chips: short names of the chips that it compiles for.
      refused: why it does not compile for another chip, in words.
      topology_platform: what `get_topology_desc` calls the platform.
      topology: what it calls a slice.
      libraries: installed libraries whose versions decide what is compiled.
      missing: what to say where there is no compiler.
      environment: variables of the process that loads it.
    """

    platform: str
    name: str
    chips: tuple[str, ...]
    refused: str
    topology_platform: str
    topology: Callable[[Slice], Topology]
    libraries: tuple[str, ...]
    missing: str
    environment: dict[str, str]

    def child_environment(self) -> dict[str, str]:
        """The environment of a process that may load it, with this project's modules."""
        root = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        return os.environ | _QUIET | self.environment | {"PYTHONPATH": path}


def _tpu_topology(slice: Slice) -> Topology:
    """A slice of TPUs by the compiler's name.

    Both cores of a v4 chip are one device, as on machines that have them, only if it is told so.
    A slice smaller than a host must say that its host is so small.
    """
    shape = "x".join(map(str, slice.shape))
    options: dict[str, object] = {}
    if slice.chip.name == "v4":
        options["chip_config_name"] = "megacore"
    if any(size % 2 for size in slice.shape[:2]):
        options["chips_per_host_bounds"] = [*slice.shape, 1][:3]
    if slice.count > 1:
        options["num_slices"] = slice.count
    return f"{slice.chip.name}:{shape}", options


def _gpu_topology(slice: Slice) -> Topology:
    """GPUs of one NVLink domain: domains, hosts, and GPUs of a host."""
    chips, hosts = slice.chips, slice.hosts or 1
    hosts = hosts if chips % hosts == 0 else 1
    name = f"1x{hosts}x{chips // hosts}"
    return name, {"topology": name, "target_config": target_config(slice.chip)}


_GPU_VENDORS = ("NVIDIA", "AMD")  # first words of the names of their devices
_QUIET = {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "2"}

TPU = Toolchain(
    platform="tpu",
    name="XLA's TPU compiler",
    chips=("v3", "v4", "v5e", "v5p", "v6e", "tpu7x"),  # of libtpu 0.0.42
    refused="which XLA's TPU compiler does not compile for",
    topology_platform="tpu",
    topology=_tpu_topology,
    libraries=("libtpu",),
    missing="libtpu is not installed, and has the compiler for TPUs (0.6 GB, under Google's "
    "terms); run `pip install -e '.[tpu-compile]'` in the clone",
    environment={
        "TPU_SKIP_MDS_QUERY": "1",  # asks Google's cloud where it is
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",  # what it is told then; of no matter for a topology
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_LOG_DIR": "disabled",
        "TPU_MIN_LOG_LEVEL": "2",
    },
)
GPU = Toolchain(
    platform="gpu",
    name="XLA's GPU compiler",
    chips=gpu_targets(),
    refused="of which profiles/chips/gpu_targets.json has no target configuration for XLA's GPU "
    "compiler",
    topology_platform="cuda",
    topology=_gpu_topology,
    libraries=GPU_COMPILERS,
    missing="jax-cuda13-plugin is not installed, and has the compiler for GPUs (0.4 GB; no driver "
    "and no CUDA is needed); run `pip install -e '.[gpu-compile]'` in the clone",
    environment={"CUDA_VISIBLE_DEVICES": ""},
)


def toolchain_of(slice: Slice) -> Toolchain:
    """The compiler for a slice.

    Raises:
      UsageError: there is none for its chip, or it takes no slice as large.
    """
    chosen = GPU if slice.chip.device_kinds[0].startswith(_GPU_VENDORS) else TPU
    if slice.chip.name not in chosen.chips:
        raise UsageError(
            f"topology is {slice}, {chosen.refused}; use one of {', '.join(chosen.chips)}"
        )
    if chosen is GPU and slice.chips > slice.domain:
        domain = slice.domain
        raise UsageError(
            f"topology is {slice}, more GPUs than the {domain} of one NVLink domain, and steps are "
            f"compiled within one; use {slice.chip.name}:{domain}"
        )
    return chosen


def check_compiler(slice: Slice) -> None:
    """Says how to get the compiler for a slice where there is none; does not load it.

    Raises:
      CompilerError: it is not installed.
      UsageError: as `toolchain_of`.
    """
    chosen = toolchain_of(slice)
    modules = TPU_MODULES if chosen is TPU else GPU_MODULES
    if not any(map(importlib.util.find_spec, modules.split())):
        raise CompilerError(chosen.missing)


def libraries_of(slices: Iterable[Slice]) -> tuple[str, ...]:
    """Libraries whose versions decide what is compiled for these slices."""
    found = (name for slice in slices for name in toolchain_of(slice).libraries)
    return tuple(dict.fromkeys(found))
