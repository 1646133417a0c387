"""Bytes and FLOPs that one forward pass must cost each device.

Counted from the model's own abstract arrays and the layout's own shardings, so that they cannot
drift from what runs. Bytes follow Pope et al. 2022, section 2.1: every weight is read once per
step (of experts, those that tokens choose), and so is every cached key and value that a sequence
still sees.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
from flax import nnx

from model.cache import CACHE_AXES, abstract_cache
from model.config import ModelConfig
from model.form import Form
from model.parameters import Matrix, Path, declarations, matrices, of_experts
from model.transformer import Transformer
from sharding.placement import Placement, entry_axes, shards, used_axes
from sharding.scaled import stored_bytes

LOOKED_UP: Path = ("embedding", "weight")


class _Declared(NamedTuple):
    """A parameter as the model declares it.

    Attributes:
      path: its own, or that of the first layer's.
      param: shape, dtype and axes.
      stated: the matrix in few bits that it is a part of, or itself.
      times: how many the model has.
    """

    path: Path
    param: nnx.Param
    stated: nnx.Param | Matrix
    times: int


@functools.cache
def _declared(config: ModelConfig, form: Form) -> list[_Declared]:
    """Every parameter of the model; many layouts are counted for one model.

    Layers differ in their windows alone, which no parameter depends on: one is declared for all.
    """
    model = Transformer(dataclasses.replace(config, layers=1, windows=None), form)
    whole = matrices(model)
    return [
        _Declared(
            path,
            param,
            stated=whole.get(path[:-1], param),
            times=config.layers if path[0] == "layers" else 1,
        )
        for path, param in declarations(model).items()
    ]


@dataclasses.dataclass(frozen=True)
class Traffic:
    """One decode step's least work per device: bytes, and FLOPs with a multiply-add as 2.

    Attributes:
      weights_resident: stored weights; a replicated array counts whole on every device.
      weights_read: the same, but of an embedding that is only looked up, the rows looked up.
      kv_resident: the allocated cache.
      kv_read: cached tokens of all sequences.
      kv_written: the new tokens.
      flops: matrix multiplications and attention.
    """

    weights_resident: float
    weights_read: float
    kv_resident: float
    kv_read: float
    kv_written: float
    flops: float

    @property
    def memory(self) -> float:
        """Bytes moved per step."""
        return self.weights_read + self.kv_read + self.kv_written


def decode_traffic(
    config: ModelConfig,
    placement: Placement,
    form: Form,
    *,
    batch: int,
    context: int,
    slots: int,
    experts_touched: float | None = None,
) -> Traffic:
    """The least that one decode step costs each device.

    Args:
      config: the model.
      placement: the layout on a mesh.
      form: how its numbers are stored; scales count.
      batch: sequences.
      context: tokens already in the cache of each.
      slots: tokens the cache has room for.
      experts_touched: distinct experts that a layer reads, on average; what `expected_experts`
        says if None. Where layouts divide the experts over devices, this is an average over those
        too: the device with the most of them reads more.
    """
    touched = _touched_by_one(config, placement, batch, experts_touched)
    resident = read = multiplied = 0.0
    for path, param, _, times in _declared(config, form):
        share = placement.copies(placement.weights(*param.axes)) / placement.devices
        size = times * stored_bytes(param) * share
        resident += size
        if path == LOOKED_UP and not config.tied_embedding:
            read += batch * config.d_model * param.dtype.itemsize * share
            continue
        read += size * (touched / config.experts if of_experts(param) else 1)
        used = config.experts_per_token / config.experts if of_experts(param) else 1
        if len(param.shape) > 1 and not param.scale:
            work = math.prod(param.shape) * used * _work_share(placement, param.axes)
            multiplied += times * work
    token = kv_token_bytes(config, placement, form)
    seen = [min(context, (config.window(n) or context + 1) - 1) for n in range(config.layers)]
    attention = 4 * config.query_heads * config.head_size * (sum(seen) + config.layers)
    cache = abstract_cache(config, batch, slots, form, placement.multiple("S"))
    kept = sum(map(stored_bytes, jax.tree.leaves(cache)))
    kept *= placement.copies(placement.cache(*CACHE_AXES)) / placement.devices
    return Traffic(
        weights_resident=resident,
        weights_read=read,
        kv_resident=kept,
        kv_read=batch * token * sum(seen) / config.layers,
        kv_written=batch * token,
        flops=batch * (2 * multiplied + attention * _query_share(placement)),
    )


def _touched_by_one(
    config: ModelConfig, placement: Placement, batch: int, touched: float | None
) -> float:
    """Distinct experts that the busiest replica reads at least, if all read `touched` together.

    Replicas are over mesh axes that divide the batch but not the experts: each has tokens of its
    own, and the step waits for the one that reads most.
    """
    experts = used_axes(placement.use("E"))
    batches = used_axes(placement.activations("B"))
    replicas = shards(tuple(axis for axis in batches if axis not in experts), placement.mesh)
    if touched is None:
        return expected_experts(config, batch // replicas)
    return max(touched / replicas, config.experts_per_token)


def expected_experts(config: ModelConfig, tokens: int) -> float:
    """Distinct experts that `tokens` tokens choose if they choose independently and evenly.

    E (1 - (1 - k / E) ** tokens); 0 for a model without experts.
    """
    if not config.experts:
        return 0.0
    missed = (1 - config.experts_per_token / config.experts) ** tokens
    return config.experts * (1 - missed)


def kv_token_bytes(config: ModelConfig, placement: Placement, form: Form) -> float:
    """Bytes one cached token takes on each device, keys and values of all layers."""
    cache = abstract_cache(config, 1, 1, form)
    share = placement.copies(placement.cache(*CACHE_AXES)) / placement.devices
    return sum(map(stored_bytes, jax.tree.leaves(cache))) * share


def replication_cost(config: ModelConfig, placement: Placement, form: Form) -> list[str]:
    """What this layout copies because sizes do not divide over the mesh, and the bytes it costs.

    Returns:
      One line per kind of array; empty if everything divides.
    """
    arrays: dict[str, float] = {}
    for path, param, stated, times in _declared(config, form):
        if rest := placement.left_over("weights", stated.axes):
            share = placement.copies(placement.weights(*param.axes)) / placement.devices
            extra = times * stored_bytes(param) * share * (1 - 1 / shards(rest, placement.mesh))
            # Values and scales of a matrix are one line.
            name = ".".join(map(str, (path if stated is param else path[:-1])[-2:]))
            arrays[name] = arrays.get(name, 0) + extra
    lines = [
        f"{name} does not divide and is copied: each device reads {_bytes(extra)} per step "
        "more than its share"
        for name, extra in arrays.items()
    ]
    if rest := placement.left_over("cache", CACHE_AXES):
        copies = shards(rest, placement.mesh)
        extra = _bytes(kv_token_bytes(config, placement, form) * (1 - 1 / copies))
        lines.append(
            f"{config.kv_heads} KV heads do not divide over "
            f"{' '.join(f'{axis}={placement.mesh[axis]}' for axis in rest)}, so the KV cache is "
            f"copied {copies} times: each device reads {extra} per cached token and step more "
            "than its share"
        )
    return lines


def experts_per_device(config: ModelConfig, placement: Placement) -> list[str]:
    """How an expert-parallel layout divides the experts, as a line; empty for any other."""
    if not (config.experts and placement.layout.expert_parallel):
        return []
    experts, *within = placement.weights("E", "D", "F")
    here = config.experts // shards(entry_axes(experts), placement.mesh)
    line = f"{here} of {config.experts} experts on each device"
    if rest := used_axes(jax.P(*within)):
        sizes = " ".join(f"{axis}={placement.mesh[axis]}" for axis in rest)
        line += f", each divided over {sizes}, which do not divide the experts"
    return [line]


def _work_share(placement: Placement, axes: tuple[str, ...]) -> float:
    """The part of a matmul that each device does: of its weight in use, and of the batch.

    Mesh axes that divide both the experts and the batch count once: a device has so many experts
    fewer, and answers the tokens of so many devices more.
    """
    divided = {*used_axes(placement.use(*axes)), *used_axes(placement.activations("B"))}
    return 1 / shards(tuple(divided), placement.mesh)


def _query_share(placement: Placement) -> float:
    """The part of attention that each device does: of heads, batch and slots."""
    divided = used_axes(placement.attention("B", "K", "G")) + used_axes(placement.cache("S"))
    return 1 / shards(divided, placement.mesh)


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.3g} {unit}"
        size /= 1000
    raise AssertionError
