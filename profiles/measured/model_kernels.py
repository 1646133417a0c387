"""The kernels of a microbenchmark that are sized as a model: products, and layers with attention.

A model's products take more time than those of one large matrix: each waits for the one before it,
its matrix is read from memory, and XLA:CPU multiplies few rows by narrow matrices at a rate of
their own. So products are those of several layers in turn, each with weights of its own.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from decode.engine import Engine
from decode.sampling import highest
from model.catalog import find_model
from model.config import ModelConfig
from model.declarations import declarations
from model.dtypes import Dtypes
from model.layout_check import settle
from model.transformer import Transformer
from profiles.floor.bytes_and_flops import PassCounter
from profiles.floor.communication import expected_collectives
from profiles.floor.passes import Pass
from profiles.measured.bandwidth import ALL_AXES, filled
from profiles.measured.kernels import Kernel
from profiles.measured.timing import RepeatedStep
from profiles.report.document import summarise
from sharding.catalog import LAYOUTS
from sharding.dot import dot
from sharding.quantization import Quantization, Weight, quantize, specs_of

MOST_FLOPS = 1 << 32  # of one run of products, but that of a layer is whole
FEW_LAYERS, MANY_LAYERS = 1, 4
THIN = 16  # d_model, d_ff and vocabulary for each device, of a model that hardly multiplies
STEPS, MORE_STEPS = 4, 32  # of a sample, of many sequences and of one
WHOLE = jax.P(None, None, None)


def product_kernels(
    mesh: jax.sharding.Mesh,
    dtypes: Sequence[Dtypes],
    rows: Sequence[int],
    config: ModelConfig,
    most_bytes: float,
) -> Iterator[Kernel]:
    """Products of so many rows with the matrices of a model's layers, one after the other.

    Outputs or inputs of each matrix are divided over all devices, as heads and d_ff are, and no
    device waits for another. The last matrix is of the vocabulary, as much of it as of the layers;
    of its products the most likely tokens are chosen. Amounts and seconds are of one layer's worth.

    Args:
      mesh: the devices.
      dtypes: types of weights, and of what they multiply and the products.
      rows: numbers of tokens, one of each sequence.
      config: the model.
      most_bytes: bytes of weights over all devices; at least one layer is multiplied.
    """
    for each in dtypes:
        shapes = _matrices(config, mesh.size)
        one = sum(map(math.prod, shapes)) * mesh.size
        most = most_bytes / each.dtype.itemsize / one
        layers = [
            [_weight(mesh, shape, each) for shape in shapes] for _ in range(_whole(most, config))
        ]
        for count in rows:
            few = layers[: _whole(MOST_FLOPS / (2 * count * one), config)]
            share = len(few) / config.layers
            shape = max(int(config.vocabulary * share) // mesh.size, 1), config.d_model
            last = _weight(mesh, shape, dataclasses.replace(each, weights=each.plain))
            x = filled(mesh, (count, 1, config.d_model), WHOLE, each.dtype)  # [B, T, D]
            fields = {"dtype": each.dtype.name, "rows": count, "width": config.d_model}
            amount, runs = 2.0 * count * one, len(few) + math.prod(shape) * mesh.size / one
            operands = few, last, x
            yield Kernel(mesh, fields, _layers_program(few, last), operands, amount, float(runs))


def _whole(layers: float, config: ModelConfig) -> int:
    return int(min(max(layers, 1), config.layers))


def _matrices(config: ModelConfig, devices: int) -> list[tuple[int, int]]:
    """Outputs and inputs of a layer's matrices on each of so many devices."""
    heads = max(config.query_heads * config.head_size // devices, 1)
    both = max(2 * config.kv_heads * config.head_size // devices, 1)
    wide, width = max(config.d_ff // devices, 1), config.d_model
    return [(heads, width), (both, width), (width, heads), *[(wide, width)] * 2, (width, wide)]


def _weight(mesh: jax.sharding.Mesh, shape: tuple[int, int], dtypes: Dtypes) -> Weight:
    """A matrix [outputs.xyz, inputs] of which each device has so many outputs."""
    stored = dtypes.weights
    plain = dtypes.dtype if isinstance(stored, Quantization) else stored
    array = filled(mesh, (shape[0] * mesh.size, shape[1]), jax.P(ALL_AXES, None), plain)
    if not isinstance(stored, Quantization):
        return array
    with jax.set_mesh(mesh):
        return jax.jit(lambda each: quantize(each, 1, stored)[0])(array)


def _layers_program(layers: list[list[Weight]], last: jax.Array):
    """A program of these products with x [B, T, D], and of the choice of tokens, [B]."""
    specs = jax.tree.map(specs_of, (layers, last), is_leaf=_is_weight)

    def local(layers: list[list[Weight]], last: jax.Array, x: jax.Array) -> jax.Array:
        for weights in layers:
            x = _layer(x, *weights)
        return dot(last, _norm(x), jnp.float32)

    divided = {"in_specs": (*specs, WHOLE), "out_specs": jax.P(None, None, ALL_AXES)}

    def run(layers: list[list[Weight]], last: jax.Array, x: jax.Array) -> jax.Array:
        logits = jax.shard_map(local, **divided, check_vma=False)(layers, last, x)  # [B, T, V.xyz]
        tokens, logprobs = highest(logits[:, 0])
        return tokens + logprobs  # one array, which needs both

    return jax.jit(run)


def _is_weight(each: object) -> bool:
    return not isinstance(each, list | tuple)


def _layer(x: jax.Array, query, key_value, output, gate, up, down) -> jax.Array:
    """x: [B, T, D] -> [B, T, D], by all products of a layer and what lies between them."""
    y, multiply = _norm(x), functools.partial(dot, dtype=x.dtype)
    mixed = multiply(query, y) + multiply(key_value, y)[..., :1]
    x = x + multiply(output, mixed)
    y = _norm(x)
    return x + multiply(down, jax.nn.silu(multiply(gate, y)) * multiply(up, y))


def _norm(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-5)


class Layers:
    """Decode steps of a model of hardly any width, but with the heads of another.

    What a layer adds to a step is then its fixed time, that of its collectives, and what grows with
    the batch: attention over the cache, with its rotation and the write of the new tokens.

    Args:
      mesh: the devices.
      dtypes: how its numbers are stored.
      config: gives the number of heads and their size.
      batch: sequences of the steps that have more than one.
      context: tokens in the cache of each.
    """

    def __init__(
        self, mesh: jax.sharding.Mesh, dtypes: Dtypes, config: ModelConfig, batch: int, context: int
    ):
        self.pass_ = Pass(batch, context)
        self.steps: list[RepeatedStep] = []
        thin = dict.fromkeys(("d_model", "d_ff", "vocabulary"), THIN * mesh.size)
        heads = {name: getattr(config, name) for name in ("query_heads", "kv_heads", "head_size")}
        own = dataclasses.replace(find_model("tiny"), max_context=2 * context, **heads, **thin)
        for layers, sequences in ((FEW_LAYERS, [1]), (MANY_LAYERS, [1, batch])):
            engine = _engine(mesh, dataclasses.replace(own, layers=layers), dtypes)
            for each in sequences:
                burst = MORE_STEPS if each == 1 else STEPS
                self.steps.append(RepeatedStep(engine, each, context, burst=burst))

    def __str__(self) -> str:
        return "decode steps of a model without width"

    def prepare(self) -> None:
        """Compiles and warms up."""
        for step in self.steps:
            step.compile()

    def sample(self) -> None:
        """Times a burst of each."""
        for step in self.steps:
            step.sample()

    def as_records(self) -> list[dict[str, object]]:
        """The seconds of the steps, with samples."""
        return [
            {
                "layers": step.engine.config.layers,
                "batch": step.batch,
                "context": step.context,
                "seconds": summarise(step.samples),
            }
            for step in self.steps
        ]

    def fit(self) -> dict[str, float]:
        """What a layer takes, by differences of medians between few and many layers.

        Returns:
          `layer_s`, whatever the batch, and its `collectives`; `sequence_s` of each sequence more,
          and the `attention_flops_per_s` of all devices in it, 0 where no time was seen.
        """
        few, many, more = (float(np.median(step.samples)) for step in self.steps)
        one = (many - few) / (MANY_LAYERS - FEW_LAYERS)
        sequence = max(more - many, 0.0) / MANY_LAYERS / max(self.pass_.batch - 1, 1)
        engine = self.steps[-1].engine
        placed = engine.config, engine.placement, engine.dtypes
        listed = expected_collectives(*placed, batch=1, tokens=1, continues=False)
        flops = PassCounter(*placed).count(self.pass_).attention * engine.mesh.size
        flops /= self.pass_.batch * MANY_LAYERS
        return {
            "layer_s": max(one - sequence, 0.0),
            "collectives": sum(each.count for each in listed) // MANY_LAYERS,
            "sequence_s": sequence,
            "attention_flops_per_s": flops / sequence if sequence else 0.0,
        }


def _engine(mesh: jax.sharding.Mesh, config: ModelConfig, dtypes: Dtypes) -> Engine:
    """A model on a mesh with plain weights that are made sooner than random ones."""
    plain = dataclasses.replace(dtypes, weights=None, round_activations=False)
    placement = settle(config, plain, LAYOUTS["weight_stationary_1d"], dict(mesh.shape))
    weights = {
        path: filled(mesh, param.shape, placement.weights(param.axes), param.dtype)
        for path, param in declarations(Transformer(config, plain)).items()
    }
    return Engine(config, unflatten_dict(weights), placement, mesh, plain)
