"""Meshes of a device of any platform, to trace steps for it where there is none."""

import contextlib

import jax

from sharding.mesh import MESH_AXES


def mesh_of(platform: str, kind: str = "") -> contextlib.AbstractContextManager:
    """Sets a mesh of one device."""
    device = jax.sharding.AbstractDevice(device_kind=kind, num_cores=None, platform=platform)
    explicit = (jax.sharding.AxisType.Explicit,) * len(MESH_AXES)
    mesh = jax.sharding.AbstractMesh(
        (1,) * len(MESH_AXES), tuple(MESH_AXES), explicit, abstract_device=device
    )
    return jax.sharding.use_abstract_mesh(mesh)


def like(tree: object) -> object:
    """Shapes of arrays, on no mesh yet."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), tree)
