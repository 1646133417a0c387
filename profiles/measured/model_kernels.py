"""The kernels of a microbenchmark that are sized as a model: products, attention, layers.

A model's products take more time than those of one large matrix: each waits for the one before it,
its matrix is read from memory, and XLA:CPU multiplies few rows by narrow matrices at a rate of
their own. So products are those of several layers in turn, each with weights of its own.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from decode.load import ModelSource
from model.catalog import find_model
from model.config import ModelConfig
from model.dtypes import Dtypes
from model.filled_attention import Softmax, attend
from model.softmax_parts import Spans
from profiles.measured.bandwidth import ALL_AXES, filled
from profiles.measured.kernels import Kernel
from profiles.measured.timing import RepeatedStep, slots_for
from profiles.report.document import summarise
from sharding.catalog import LAYOUTS
from sharding.dot import dot
from sharding.mesh import parse_mesh
from sharding.quantization import Quantization, Weight, quantize, specs_of

MOST_FLOPS = 1 << 32  # of one run of products, but that of a layer is whole
FEW_LAYERS, MANY_LAYERS = 2, 6
STEPS = 16
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
    device waits for another. The last matrix is of the vocabulary, in proportion to the layers.

    Args:
      mesh: the devices.
      dtypes: types of weights, and of what they multiply and the products.
      rows: numbers of tokens, one of each sequence.
      config: the model.
      most_bytes: bytes of weights over all devices; at least one layer is multiplied.
    """
    for each in dtypes:
        shapes = _matrices(config, mesh.size)
        one = sum(map(np.prod, shapes)) * mesh.size
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
            amount = 2 * count * (len(few) * one + np.prod(shape) * mesh.size)
            yield Kernel(mesh, fields, _layers_program(few, last), (few, last, x), float(amount))


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
    """A program of the products of these weights and x [B, T, D]: [B, T, V.xyz]."""
    specs = jax.tree.map(specs_of, (layers, last), is_leaf=_is_weight)

    def local(layers: list[list[Weight]], last: jax.Array, x: jax.Array) -> jax.Array:
        for weights in layers:
            x = _layer(x, *weights)
        return dot(last, _norm(x), jnp.float32)

    return jax.jit(
        jax.shard_map(
            local,
            in_specs=(*specs, WHOLE),
            out_specs=jax.P(None, None, ALL_AXES),
            check_vma=False,
        )
    )


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


def attention_kernel(
    mesh: jax.sharding.Mesh,
    dtype: jnp.dtype,
    batch: int,
    context: int,
    config: ModelConfig,
    most_bytes: float,
) -> Kernel:
    """Attention of one token of each sequence over what is cached, in several layers in turn.

    Args:
      mesh: the devices, each with sequences of its own.
      dtype: type of queries, keys and values.
      batch: sequences of each device.
      context: tokens in the cache before the step; the new one is there too.
      config: gives heads, groups and head size.
      most_bytes: bytes of caches over all devices; at least one layer's is read.
    """
    heads, size = config.kv_heads, config.head_size
    shape = (batch * mesh.size, heads, slots_for(context), size)
    one = 2 * np.prod(shape) * jnp.dtype(dtype).itemsize
    spec = jax.P(ALL_AXES, None, None, None)
    pairs = [
        tuple(filled(mesh, shape, spec, dtype) for _ in range(2))
        for _ in range(_whole(most_bytes / one, config))
    ]
    query_shape = (shape[0], 1, heads, config.group, size)
    q = filled(mesh, query_shape, jax.P(ALL_AXES, None, None, None, None), dtype)
    softmax = Softmax(None, size**-0.5)

    def run(q: jax.Array, pairs: list[tuple[jax.Array, jax.Array]]) -> jax.Array:
        first = jnp.full(shape[0], context, jnp.int32)
        spans = Spans(first, jnp.zeros_like(first), first + 1)
        for pair in pairs:
            q = attend(q, pair, spans, softmax).mean().astype(q.dtype)
        return q

    fields = {"dtype": jnp.dtype(dtype).name, "batch": batch, "context": context}
    amount = 4 * shape[0] * heads * config.group * size * (context + 1) * len(pairs)
    return Kernel(mesh, fields, jax.jit(run), (q, pairs), float(amount))


class Layers:
    """Decode steps of a model so small that hardly anything but fixed times is left, on one device.

    Args:
      dtypes: how its numbers are stored.
    """

    def __init__(self, dtypes: Dtypes):
        tiny, shape = find_model("tiny"), parse_mesh("1")
        self.steps: list[RepeatedStep] = []
        for layers in (FEW_LAYERS, MANY_LAYERS):
            config = dataclasses.replace(tiny, layers=layers)
            source = ModelSource(config, None, None)
            engine = source.engine(LAYOUTS["weight_stationary_1d"], shape, dtypes)
            self.steps.append(RepeatedStep(engine, 1, 1, burst=STEPS))

    def __str__(self) -> str:
        return "decode steps of a tiny model"

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
            {"layers": step.engine.config.layers, "seconds": summarise(step.samples)}
            for step in self.steps
        ]

    @property
    def seconds(self) -> float:
        """Of a layer: the difference of the medians, by their difference in layers."""
        few, many = (float(np.median(step.samples)) for step in self.steps)
        return max(many - few, 0.0) / (MANY_LAYERS - FEW_LAYERS)
