"""The devices that JAX has, and the platform that they are of."""

import jax

from sharding.error_types import FloorlineError

_EXTRAS = {"cuda": "cuda", "gpu": "cuda", "tpu": "tpu"}  # this project's extras by JAX's platforms


def devices() -> list[jax.Device]:
    """The devices that JAX has; starts JAX.

    Raises:
      FloorlineError: it finds none of the platform that it is told to use.
    """
    try:
        return jax.devices()
    except (AssertionError, RuntimeError) as error:  # the first has no text
        platforms = jax.config.jax_platforms or ""
        reason = f" ({' '.join(str(error).split())})" if str(error) else ""
        extras = [extra for name, extra in _EXTRAS.items() if name in platforms.split(",")]
        install = f"install its plugin (pip install -e '.[{extras[0]}]') or " if extras else ""
        raise FloorlineError(
            f"JAX_PLATFORMS is {platforms!r}, of which JAX finds no device{reason}; "
            f"{install}set JAX_PLATFORMS=cpu"
        ) from error


def default_platform() -> str:
    """What JAX runs on where nothing else is said: ``cpu``, ``gpu`` or ``tpu``; starts JAX.

    Raises:
      FloorlineError: the same as `devices`.
    """
    return devices()[0].platform
