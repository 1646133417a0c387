"""Which of this project's kernels the steps of a model have on GPUs, as records name them."""

from model.attention import attends_at_once
from model.config import ModelConfig
from model.dtypes import Dtypes
from sharding.placement import Placement


def kernels_on(
    platform: str, config: ModelConfig, dtypes: Dtypes, placement: Placement
) -> str | None:
    """Names of those of ``--gpu_kernels`` that steps may have; None where the platform is no GPU.

    A kernel for attention is left out where the model, its cache or its layout does not go with it.

    Args:
      platform: JAX's name of the devices.
      config: the model.
      dtypes: how its numbers are stored, and which kernels are asked for.
      placement: the layout on a mesh.
    """
    if platform not in ("gpu", "cuda"):
        return None
    names = list(dtypes.gpu_kernels)
    if "attention_step" in names and not attends_at_once(config, dtypes, placement):
        names.remove("attention_step")
    return ",".join(names) or "none"
