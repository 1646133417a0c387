"""Flags of scripts that run one model on the devices that are here."""

import _array_flags
from absl import flags

DEVICES = flags.DEFINE_integer(
    "devices",
    None,
    "Number of devices, with the mesh of the lowest floor. Default: one on a CPU, elsewhere all "
    "that the layout can divide.",
    1,
)
MESH = flags.DEFINE_string("mesh", None, "Sizes of mesh axes x, y and z, such as 2x2x2.")
_array_flags.define_step_flags()
_array_flags.define_gpu_kernels()
