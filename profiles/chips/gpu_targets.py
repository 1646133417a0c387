"""What XLA's GPU compiler is told of GPUs that need not be there; data in `gpu_targets.json`.

Source of the form: XLA's `GpuTargetConfigProto` in its text form, as
`jax.experimental.topologies.get_topology_desc` takes it with ``platform="cuda"``.
"""

import functools
import json
from pathlib import Path

from profiles.chips.chip import Chip

_FILE = Path(__file__).with_name("gpu_targets.json")
_VERSION = ("major", "minor", "patch")


@functools.cache
def _data() -> dict:
    return json.loads(_FILE.read_text(encoding="utf-8"))


def gpu_targets() -> tuple[str, ...]:
    """Short names of the GPUs that there is a target configuration of."""
    return tuple(target["name"] for target in _data()["targets"])


def target_figures(name: str) -> dict[str, float]:
    """What the compiler is told of one of `gpu_targets`, by the names of its fields."""
    return _data()["common"]["figures"] | _target(name)["figures"]


def _target(name: str) -> dict:
    return next(target for target in _data()["targets"] if target["name"] == name)


def target_config(chip: Chip) -> str:
    """The target configuration of a GPU, one of `gpu_targets`, in the text form of its message."""
    libraries_told, target = _data()["libraries"], _target(chip.name)
    device = [f"{name}: {value}" for name, value in target_figures(chip.name).items()]
    device.append(f"cuda_compute_capability {{ {_capability(target)} }}")
    libraries = [
        f"{field} {{ {_numbered(libraries_told[field])} }}"
        for field in ("dnn_version_info", "runtime_version")
    ]
    named = ['platform_name: "CUDA"', f'device_description_str: "{chip.device_kinds[0]}"']
    return "\n".join((f"gpu_device_info {{ {' '.join(device)} }}", *libraries, *named))


def _capability(target: dict) -> str:
    """Major and minor number, and whether instructions of that architecture alone are allowed."""
    feature = "ACCELERATED_FEATURES" if target["accelerated"] else "NONE"
    return f"{_numbered(target['compute_capability'])} feature_extension: {feature}"


def _numbered(version: str) -> str:
    """The fields of a version such as ``9.12.0``."""
    return " ".join(
        f"{field}: {number}" for field, number in zip(_VERSION, version.split("."), strict=False)
    )
