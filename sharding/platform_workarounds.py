"""What each platform's compiler does best, chosen as a step is traced."""

from collections.abc import Callable

import jax


def by_platform(*operands: object, default: Callable, **others: Callable) -> object:
    """What the function of the mesh's platform makes of the operands.

    As `jax.lax.platform_dependent`, to which it leaves what no mesh decides. Only the function that
    is chosen is traced: the others take their time, and leave conditionals in the program.

    Args:
      operands: of any of the functions.
      default: of platforms that are not named.
      others: by platform, such as ``cpu``, ``tpu`` or ``cuda``.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is None:
        return jax.lax.platform_dependent(*operands, default=default, **others)
    platform = device.platform
    if platform == "gpu":
        platform = "cuda" if device.device_kind.startswith("NVIDIA") else "rocm"
    return others.get(platform, default)(*operands)
