"""Whether a model, stored in some form, goes with a layout on a mesh, or is refused."""

import dataclasses
import functools

from model.config import ModelConfig
from model.declarations import Matrix, Path, matrices
from model.form import Form
from model.transformer import Transformer
from sharding.error_types import LayoutError
from sharding.layout import Layout
from sharding.mesh import MeshShape
from sharding.placement import Placement, entry_axes, shards


def settle(config: ModelConfig, form: Form, layout: Layout, mesh: MeshShape) -> Placement:
    """A layout settled for one model; allocates nothing.

    Whoever loads, estimates, plans or compiles asks here, so that all admit the same.

    Args:
      config: the model.
      form: how its numbers are stored.
      layout: the strategy.
      mesh: sizes of the mesh axes.

    Raises:
      LayoutError: an axis that must divide does not, or groups of inputs that share a scale would
        cross devices; with both sizes, and what works.
    """
    placement = Placement.of(layout, config.sizes, mesh)
    for path, matrix in _grouped(config, form).items():
        _check_groups(path, matrix, placement)
    return placement


@functools.cache
def _grouped(config: ModelConfig, form: Form) -> dict[Path, Matrix]:
    """Matrices whose scales are of groups of inputs; those of one layer stand for all layers."""
    if form.scheme is None or not form.scheme.group:
        return {}
    return matrices(Transformer(dataclasses.replace(config, layers=1, windows=None), form))


def _check_groups(path: Path, matrix: Matrix, placement: Placement) -> None:
    """Refuses groups of one matrix's inputs that would cross devices.

    Raises:
      LayoutError: as of `settle`.
    """
    scheme, inputs = matrix.form.scheme, matrix.shape[-1]
    parts = shards(entry_axes(placement.weights(*matrix.axes)[-1]), placement.mesh)
    if inputs % (parts * scheme.group):
        whole = [n for n in range(1, parts) if inputs % (n * scheme.group) == 0]
        remedy = f"use {' or '.join(map(str, whole))} shards, " if whole else "use "
        raise LayoutError(
            f"{'.'.join(map(str, path[-2:]))} has {inputs} inputs in {parts} shards, which "
            f"groups of {scheme.group} ({scheme.name}) do not divide; {remedy}int8 or fp8"
        )
