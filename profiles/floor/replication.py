"""What a layout replicates because sizes do not divide over a mesh, in words, with the bytes."""

import jax

from model.cache import CACHE_AXES, DELTA_AXES
from model.config import ModelConfig
from model.dtypes import Dtypes
from profiles.floor.alike_layers import alike_layers, layer_token_bytes
from profiles.floor.bytes_and_flops import declared
from profiles.floor.delta_counts import state_bytes
from profiles.report.numbers import byte_size
from sharding.placement import Placement, entry_axes, shards, used_axes
from sharding.quantization import stored_bytes


def replication_cost(config: ModelConfig, placement: Placement, dtypes: Dtypes) -> list[str]:
    """Lines that say what a layout replicates because sizes do not divide over the mesh.

    Returns:
      One line per kind of array, with the additional bytes; empty if everything divides.
    """
    arrays: dict[str, float] = {}
    for path, param, stated, times in declared(config, dtypes):
        if rest := placement.unused_axes("weights", stated.axes):
            share = placement.share(("weights", param.axes))
            extra = times * stored_bytes(param) * share * (1 - 1 / shards(rest, placement.mesh))
            # Values and scales of a quantized matrix count as one array.
            name = ".".join(map(str, (path if stated is param else path[:-1])[-2:]))
            arrays[name] = arrays.get(name, 0) + extra
    lines = [
        f"{name} does not divide and is copied: each device reads {byte_size(extra)} per step "
        "more than its share"
        for name, extra in arrays.items()
    ]
    return lines + _copied_caches(config, placement, dtypes)


def _copied_caches(config: ModelConfig, placement: Placement, dtypes: Dtypes) -> list[str]:
    """A line for each number of KV heads that mesh axes do not divide."""
    kinds: dict[ModelConfig, float] = {}
    for layers in alike_layers(config):
        token = layer_token_bytes(layers, placement, dtypes) * layers.count
        kinds[layers.config] = kinds.get(layers.config, 0.0) + token
    lines = []
    for seen, token in kinds.items():
        where = placement.with_sizes(seen.sizes)
        if not (rest := where.unused_axes("cache", CACHE_AXES)):
            continue
        copies = shards(rest, where.mesh)
        what = "one latent for all heads does" if seen.latent else f"{seen.kv_heads} KV heads do"
        which = "" if len(kinds) == 1 else f" of layers with heads of {seen.head_size}"
        lines.append(
            f"{what} not divide over {' '.join(f'{axis}={where.mesh[axis]}' for axis in rest)}, "
            f"so the KV cache{which} is copied {copies} times: each device reads "
            f"{byte_size(token * (1 - 1 / copies))} per cached token and step more than its share"
        )
    if config.delta and (rest := placement.unused_axes("cache", DELTA_AXES[0])):
        copies = shards(rest, placement.mesh)
        extra = byte_size(2 * state_bytes(config, placement, dtypes) * (1 - 1 / copies))
        lines.append(
            f"{config.delta.value_heads} value heads do not divide over "
            f"{' '.join(f'{axis}={placement.mesh[axis]}' for axis in rest)}, so their states are "
            f"copied {copies} times: each device reads and writes {extra} per sequence and step "
            "more than its share"
        )
    return lines


def experts_per_device(config: ModelConfig, placement: Placement) -> list[str]:
    """A line that says how an expert-parallel layout divides experts; none for other layouts."""
    if not (config.experts and placement.layout.expert_parallel):
        return []
    experts, *within = placement.weights("EDF")
    here = config.experts // shards(entry_axes(experts), placement.mesh)
    line = f"{here} of {config.experts} experts on each device"
    if rest := used_axes(jax.P(*within)):
        sizes = " ".join(f"{axis}={placement.mesh[axis]}" for axis in rest)
        line += f", each divided over {sizes}, which do not divide the experts"
    return [line]
