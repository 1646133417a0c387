"""Whether a model, stored in some form, goes with a layout on a mesh, or is refused."""

import functools

from model.config import ModelConfig
from model.declarations import Matrix, Path, matrices
from model.dtypes import Dtypes
from model.transformer import Transformer
from sharding.error_types import LayoutError
from sharding.layout import Layout
from sharding.mesh import MeshShape
from sharding.placement import Placement, entry_axes, shards


def settle(config: ModelConfig, dtypes: Dtypes, layout: Layout, mesh: MeshShape) -> Placement:
    """A layout settled for one model; allocates nothing.

    Whoever loads, estimates, plans or compiles asks here, so that all admit the same.

    Args:
      config: the model.
      dtypes: how its numbers are stored.
      layout: the strategy.
      mesh: sizes of the mesh axes.

    Raises:
      LayoutError: an axis that must divide does not, or groups of inputs that share a scale would
        cross devices; with both sizes, and what works.
    """
    placement = Placement.of(layout, config.sizes, mesh)
    for path, matrix in _grouped(config, dtypes).items():
        _check_groups(path, matrix, placement)
    return placement


@functools.cache
def _grouped(config: ModelConfig, dtypes: Dtypes) -> dict[Path, Matrix]:
    """Matrices whose scales are of groups of inputs; a layer of each kind stands for all layers."""
    if dtypes.quantization is None or not dtypes.quantization.group:
        return {}
    return matrices(Transformer(config.one_of_each(), dtypes))


def _check_groups(path: Path, matrix: Matrix, placement: Placement) -> None:
    """Refuses groups of one matrix's inputs that would cross devices.

    Raises:
      LayoutError: see `settle`.
    """
    quantization, inputs = matrix.dtypes.quantization, matrix.shape[-1]
    parts = shards(entry_axes(placement.weights(matrix.axes)[-1]), placement.mesh)
    group = quantization.group_of(inputs)
    if inputs % (parts * group):
        fitting = [n for n in range(1, parts) if inputs % (n * group) == 0]
        remedy = f"use {' or '.join(map(str, fitting))} shards, " if fitting else "use "
        raise LayoutError(
            f"{'.'.join(map(str, path[-2:]))} has {inputs} inputs in {parts} shards, which "
            f"groups of {group} ({quantization.name}) do not divide; "
            f"{remedy}int8, fp8 or bfloat16"
        )
