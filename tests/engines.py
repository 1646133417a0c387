"""Small models of every kind of block, and engines with random weights that are made once."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from decode.engine import Engine
from decode.load import ModelSource
from model.catalog import find_model
from model.config import ModelConfig
from model.declarations import Path
from model.delta_sizes import DeltaSizes
from model.dtypes import FLOAT32, Dtypes
from model.full_attention import FullAttention
from model.latent_sizes import LatentSizes
from model.parameters import place_parameters
from model.routing_rule import Routing
from model.transformer import Transformer
from sharding.catalog import LAYOUTS, divide_experts
from sharding.layout import Layout
from sharding.mesh import make_mesh, parse_mesh
from sharding.placement import Placement

_LATENT = {
    "kv_heads": 1,
    "query_heads": 8,
    "latent": LatentSizes(rank=32, rotary=8, content=8, value=24, query_rank=24),
}
_TWO_HEADS = {
    "layers": 2,
    "windows": (5, None),
    "norm_after": True,
    "query_key_norm": True,
    "value_norm": True,
    "block_scale": True,
    "attention_scale": 1.0,
    "local_rotary_base": 100.0,
    "full_attention": FullAttention(head_size=32, kv_heads=1, keys_are_values=True, rotary_pairs=4),
}
FAMILIES = {
    "grouped": {},
    "multi_head_untied": {"kv_heads": 4, "tied_embedding": False},
    "multi_head_two_norms": {"kv_heads": 4, "norm_after": True, "query_key_norm": True},
    "multi_head_parallel": {"kv_heads": 4, "parallel_block": True},
    "multi_query_parallel": {"kv_heads": 1, "parallel_block": True, "norm": "layer"},
    "wide_multi_query": {"d_model": 1024, "kv_heads": 1, "parallel_block": True},
    "biased_windowed": {"attention_bias": True, "windows": (5, 5)},
    "two_norms_and_caps": {
        "norm_after": True,
        "query_key_norm": True,
        "windows": (5, None),
        "local_rotary_base": 100.0,
        "rotary_factors": (2.0,) * 8,
        "attention_softcap": 2.0,
        "logit_softcap": 3.0,
        "embedding_scale": 8.0,
        "attention_scale": 0.5,
        "activation": "gelu_tanh",
    },
    "norms_over_heads_and_biases": {
        "norm_before": False,
        "norm_after": True,
        "query_key_norm": True,
        "norm_over_heads": True,
        "attention_bias": True,
        "output_bias": True,
        "mlp_bias": True,
        "rotary_size": 8,
        "rotary_layers": (True, False),
        "residual_scale": 0.5,
        "logit_scale": 2.0,
    },
    "stretched_positions": {"rotary_factors": (1.0, 1.0, 1.5, 2.0, 4.0, 8.0, 8.0, 8.0)},
    "three_heads": {"kv_heads": 3, "query_heads": 9, "d_model": 72, "d_ff": 144},
    "experts": {"experts": 8, "experts_per_token": 2},
    "experts_multi_query": {"experts": 8, "experts_per_token": 2, "kv_heads": 1},
    "six_experts": {"experts": 6, "experts_per_token": 2},
    "experts_with_sinks": {
        "experts": 4,
        "experts_per_token": 2,
        "expert_bias": True,
        "attention_bias": True,
        "output_bias": True,
        "attention_sinks": True,
        "activation": "clipped_silu",
        "windows": (5, None),
    },
    "chunks": {
        "windows": (5, None),
        "chunked": True,
        "rotary_layers": (True, False),
        "unit_queries_keys": True,
        "query_growth": (4, 0.3),
        "experts": 4,
        "experts_per_token": 1,
        "renormalise_experts": False,
        "routing": Routing(score="sigmoid", of_inputs=True),
        "shared_d_ff": 64,
    },
    "delta": {
        "delta": DeltaSizes(key_heads=2, values_per_key=2, key_size=8, value_size=16),
        "delta_layers": (True, False),
        "output_gate": True,
        "query_key_norm": True,
        "rotary_size": 8,
    },
    "gated_experts": {
        "output_gate": True,
        "experts": 8,
        "experts_per_token": 2,
        "shared_d_ff": 64,
        "shared_gate": True,
    },
    "two_kinds_of_heads": _TWO_HEADS,
    "experts_beside_mlp": _TWO_HEADS
    | {"experts": 8, "experts_per_token": 2, "shared_d_ff": 64, "experts_apart": True},
    "borrowed_caches": _TWO_HEADS
    | {
        "layers": 4,
        "windows": (5, None) * 2,
        "full_attention": FullAttention(head_size=32, kv_heads=2, rotary_pairs=4),
        "shared_cache_layers": 2,
        "shared_cache_d_ff": 256,
        "layer_inputs": 8,
    },
    "latent": _LATENT,
    "latent_experts": _LATENT
    | {
        "experts": 8,
        "experts_per_token": 2,
        "routing": Routing(
            score="sigmoid", bias=True, groups=4, chosen_groups=2, group_scores=2, scale=2.5
        ),
        "layers": 2,
        "dense_layers": 1,
        "dense_d_ff": 96,
        "shared_d_ff": 64,
    },
}
"""Changes that make the tiny model, which has two layers, one of another kind."""

DIVIDED = "divided "


def config_of(family: str, **sizes: int) -> ModelConfig:
    """The tiny model as one of `FAMILIES`, with `sizes` where the family does not say otherwise.

    Before the name may stand "divided ", see `divide`.
    """
    tiny = find_model("tiny")
    changes = sizes | FAMILIES[family.removeprefix(DIVIDED)]
    for field in {"windows", "rotary_layers", "delta_layers"} & changes.keys():
        changes[field] = changes[field][: changes.get("layers", tiny.layers)]
    return dataclasses.replace(tiny, **changes)


def divide(layout: Layout, family: str) -> Layout:
    """The layout, with experts divided over devices where the family's name begins so."""
    return divide_experts(layout) if family.startswith(DIVIDED) else layout


@functools.cache
def random_arrays(config: ModelConfig) -> dict[Path, np.ndarray]:
    """Random weights; making them on each mesh would compile more than steps do."""
    layout, source = LAYOUTS["weight_stationary_1d"], ModelSource(config, None, None)
    one = source.engine(layout, parse_mesh("1"), FLOAT32)
    return {path: np.asarray(array) for path, array in flatten_dict(one.parameters).items()}


def random_engine(config: ModelConfig, layout: Layout, mesh: str, dtypes: Dtypes) -> Engine:
    """An engine with the weights of `random_arrays`, brought to a form."""
    shape = parse_mesh(mesh)
    placement, devices = Placement.of(layout, config.sizes, shape), make_mesh(shape)
    model = Transformer(config, dtypes)
    parameters = place_parameters(model, random_arrays(config).items(), placement, devices)
    return Engine(config, parameters, placement, devices, dtypes)


def fresh(engine: Engine) -> Engine:
    """The same engine with programs of its own, none of which another test has compiled."""
    return Engine(engine.config, engine.parameters, engine.placement, engine.mesh, engine.dtypes)


def carry_bytes(batch: int) -> int:
    """Bytes per device of what a decode step takes beside weights and cache: `carry.Carry`."""
    tokens_lengths_and_sequences, index, seed = 3 * 4 * batch, 4, 8
    return tokens_lengths_and_sequences + index + seed


def logits_program(engine: Engine, batch: int, slots: int) -> str:
    """Text of the program that `Engine.decode_step` runs."""
    vector = engine.put(np.zeros(batch, np.int32))
    cache = engine._placed_cache(batch, slots)
    with jax.set_mesh(engine.mesh):
        step = engine._decode.lower(engine.parameters, cache, vector, vector)
    return step.compile().as_text()


@contextlib.contextmanager
def counted_compilations() -> Iterator[list[float]]:
    """Collects one entry per program that XLA compiles."""
    compiled: list[float] = []

    def listen(event: str, seconds: float, **_: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield compiled
    finally:
        jax.monitoring.clear_event_listeners()
