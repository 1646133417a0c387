"""The decoder against a plain NumPy forward pass written from the papers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from model.cache import abstract_cache
from model.catalog import find_model
from model.dtypes import FLOAT32, Dtypes
from model.parameters import abstract, initialise
from model.transformer import Transformer, scaled_embedding
from sharding.catalog import LAYOUTS
from sharding.mesh import make_mesh, parse_mesh
from sharding.placement import Placement
from sharding.quantization import QUANTIZATIONS
from tests.engines import FAMILIES

TOKENS = np.array([[3, 14, 15, 92, 65, 35, 89], [79, 32, 38, 46, 26, 43, 38]], np.int32)


def reference(config, parameters, tokens):
    """Logits [T, V] of one sequence, in float64, with no cache and one head at a time."""
    p = jax.tree.map(lambda array: np.asarray(array, np.float64), parameters)

    def norm(x, scale):
        if config.norm == "layer":
            x = x - x.mean(-1, keepdims=True)
        return scale * x / np.sqrt((x * x).mean(-1, keepdims=True) + config.norm_epsilon)

    def rotate(x):  # [T, h]
        pairs = np.arange(config.head_size // 2)
        rates = config.rotary_base ** (-2.0 * pairs / config.head_size)
        rates = rates / np.asarray(config.rotary_factors or 1.0)
        turn = np.exp(1j * np.arange(len(x))[:, None] * rates)
        z = (x[:, : len(pairs)] + 1j * x[:, len(pairs) :]) * turn
        return np.concatenate([z.real, z.imag], -1)

    def attention(x, w):
        out = np.zeros_like(x)
        for k, rows in enumerate(w["key_value"]):  # [2, h, D]
            key, value = rotate(x @ rows[0].T), x @ rows[1].T
            for g in range(config.group):
                scores = rotate(x @ w["query"][k, g].T) @ key.T / np.sqrt(config.head_size)
                scores[np.triu_indices(len(x), 1)] = -np.inf
                weights = np.exp(scores - scores.max(-1, keepdims=True))
                weights /= weights.sum(-1, keepdims=True)
                out += (weights @ value) @ w["output"][:, k, g].T
        return out

    def mlp(x, w):
        gate, up = x @ w["gate_up"][0].T, x @ w["gate_up"][1].T
        return (gate / (1 + np.exp(-gate)) * up) @ w["down"].T

    x = p["embedding"]["weight"][tokens]
    for block in p["layers"].values():
        y = norm(x, block["attention_norm"]["scale"])
        if config.parallel_block:
            x = x + attention(y, block["attention"]) + mlp(y, block["mlp"])
        else:
            x = x + attention(y, block["attention"])
            x = x + mlp(norm(x, block["mlp_norm"]["scale"]), block["mlp"])
    out = p["embedding" if config.tied_embedding else "unembedding"]["weight"]
    return norm(x, p["final_norm"]["scale"]) @ out.T


@pytest.mark.parametrize("mesh", ["1x1x1", pytest.param("2x2x2", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "family", ["grouped", "multi_head_untied", "multi_query_parallel", "stretched_positions"]
)
def test_logits_equal_a_plain_forward_pass(tiny_engine, family, mesh):
    engine = tiny_engine(mesh, **FAMILIES[family])
    logits = np.asarray(engine.forward(TOKENS))
    for row, tokens in zip(logits, TOKENS, strict=True):
        expected = reference(engine.config, engine.parameters, tokens)
        assert np.abs(row - expected).max() < 1e-4 * np.abs(expected).max()


def test_parameters_do_not_depend_on_the_mesh():
    model = Transformer(find_model("tiny"), FLOAT32)
    one, eight = (
        initialise(model, Placement.of(LAYOUTS["weight_stationary_1d"], model.config.sizes, shape),
                   make_mesh(shape), seed=0)
        for shape in map(parse_mesh, ("1x1x1", "2x2x2"))
    )  # fmt: skip
    jax.tree.map(np.testing.assert_array_equal, one, eight)


@pytest.mark.parametrize(
    "weights", [jnp.float32, jnp.bfloat16, QUANTIZATIONS["int8"], QUANTIZATIONS["int4"]]
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    "changes",
    [{"attention_bias": True}, {"experts": 4, "experts_per_token": 2},
     {"query_key_norm": True, "norm_after": True, "embedding_scale": 8.0}],
)  # fmt: skip
def test_activations_have_the_type_of_arithmetic_whatever_weights_have(changes, dtype, weights):
    config, dtypes = dataclasses.replace(find_model("tiny"), **changes), Dtypes(dtype, weights)
    mesh = make_mesh(parse_mesh("1"))
    placement = Placement.of(LAYOUTS["weight_stationary_1d"], config.sizes, parse_mesh("1"))
    model = Transformer(config, dtypes)
    structure, _ = nnx.split(model)

    def hidden(parameters, cache, tokens):
        return nnx.merge(structure, parameters)(tokens, tokens, cache, placement).hidden

    tokens = jax.ShapeDtypeStruct((2, 1), jnp.int32)
    with jax.set_mesh(mesh):
        parameters, cache = abstract(model, placement, mesh), abstract_cache(config, 2, 8, dtypes)
        assert jax.eval_shape(hidden, parameters, cache, tokens).dtype == dtype


@pytest.mark.parametrize("exact", [True, False])
def test_a_factor_of_embeddings_is_rounded_before_only_where_the_family_does(exact):
    """As transformers multiplies by a float (Granite), or one of the embeddings' type (Gemma)."""
    changes = {"embedding_scale": 5.65, "embedding_scale_exact": exact}
    config = dataclasses.replace(find_model("tiny"), **changes)
    x = np.random.default_rng(0).normal(size=1000).astype(jnp.bfloat16)
    factor = np.float32(5.65) if exact else np.asarray(5.65, jnp.bfloat16).astype(np.float32)
    wanted = (x.astype(np.float32) * factor).astype(jnp.bfloat16)
    np.testing.assert_array_equal(scaled_embedding(jnp.asarray(x), config), wanted)
