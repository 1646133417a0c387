"""Weights, KV cache and FLOPs of 20 deployments, counted anew by formulas written out here alone.

Sizes of models are as their makers publish them and stand in this file; nothing of the project is
asked but for the answer. All count a multiply-add as two FLOPs, and are per chip.
"""

from typing import NamedTuple

import jax.numpy as jnp
import pytest

from model.catalog import find_model
from model.dtypes import Dtypes
from profiles.chips.calibration import calibration_of
from profiles.chips.slices import parse_slice
from profiles.expected.estimate import Estimate, Estimator
from profiles.floor.deployment import Deployment
from sharding.catalog import attend_by, divide_experts, find_layout
from sharding.mesh import parse_mesh
from sharding.quantization import QUANTIZATIONS


class Sizes(NamedTuple):
    """A model as its maker publishes it."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head: int
    hidden: int
    vocabulary: int
    tied: bool = False
    experts: int = 0
    chosen: int = 0
    window: int = 0
    windowed: int = 0  # layers that have it


MODELS = {
    "llama2-7b": Sizes(32, 4096, 32, 32, 128, 11_008, 32_000),
    "llama2-70b": Sizes(80, 8192, 64, 8, 128, 28_672, 32_000),
    "llama3-8b": Sizes(32, 4096, 32, 8, 128, 14_336, 128_256),
    "llama3-70b": Sizes(80, 8192, 64, 8, 128, 28_672, 128_256),
    "llama3-405b": Sizes(126, 16_384, 128, 8, 128, 53_248, 128_256),
    "mistral-7b": Sizes(32, 4096, 32, 8, 128, 14_336, 32_000, window=4096, windowed=32),
    "mixtral-8x7b": Sizes(32, 4096, 32, 8, 128, 14_336, 32_000, experts=8, chosen=2),
    "qwen2-7b": Sizes(28, 3584, 28, 4, 128, 18_944, 152_064),
    "qwen3-30b-a3b": Sizes(48, 2048, 32, 4, 128, 768, 151_936, experts=128, chosen=8),
    "gemma2-9b": Sizes(
        42, 3584, 16, 8, 256, 14_336, 256_000, tied=True, window=4096, windowed=21
    ),
    "palm-540b": Sizes(118, 18_432, 48, 1, 256, 73_728, 256_000, tied=True),
}  # fmt: skip
ONE_D, TWO_D = "weight_stationary_1d", "weight_stationary_2d"
BYTES = {"bfloat16": 2, "int8": 1, "fp8": 1, "int8_grouped": 1 + 4 / 32, "int4": 0.5 + 8 / 32}


class Recount(NamedTuple):
    """A pass of a deployment to recount.

    Attributes:
      kv_parts: into how many parts its cache is divided; of fewer than chips each is copied.
      attention_parts: into how many its attention is divided.
    """

    model: str
    topology: str
    mesh: str
    layout: str
    attention: str
    batch: int
    context: int
    weights: str
    cache: str
    kv_parts: int
    attention_parts: int
    tokens: int = 1
    divided: bool = False  # experts


D = Recount
DEPLOYMENTS = [
    D("llama3-8b", "v5e:2x4", "1x1x8", ONE_D, "heads", 8, 2048, "bfloat16", "bfloat16", 8, 8),
    D("llama3-8b", "v5e:4x4", "1x8x2", ONE_D, "heads", 64, 2048, "bfloat16", "bfloat16", 8, 16),
    D("llama3-8b", "v5e:2x4", "1x1x8", ONE_D, "batch", 64, 4096, "int8", "int8", 8, 8),
    D("llama3-8b", "v5e:2x4", "1x1x8", ONE_D, "sequence", 2, 8184, "bfloat16", "int8", 8, 8),
    D("llama2-7b", "a100-80gb:4", "1x1x4", ONE_D, "heads", 16, 1000, "bfloat16", "bfloat16", 4, 4),
    D("llama2-70b", "h100:8", "1x1x8", ONE_D, "heads", 32, 3000, "fp8", "fp8", 8, 8),
    D("llama3-70b", "v5p:2x2x2", "2x2x2", TWO_D, "heads", 32, 8000, "bfloat16", "bfloat16", 8, 8),
    D("llama3-70b", "v5e:4x4", "4x2x2", TWO_D, "batch", 32, 8000, "int8", "int8", 16, 16),
    D("llama3-70b", "v6e:2x4", "1x1x8", ONE_D, "heads", 8, 2048, "int4", "bfloat16", 8, 8),
    D("llama3-70b", "h200:4", "1x1x4", ONE_D, "heads", 8, 2048, "int8_grouped", "int8", 4, 4),
    D("llama3-405b", "h200:8", "1x1x8", ONE_D, "heads", 8, 100_000, "int8", "int8", 8, 8),
    D("mistral-7b", "l4:1", "1x1x1", ONE_D, "heads", 4, 20_000, "bfloat16", "bfloat16", 1, 1),
    D("qwen2-7b", "v5e:2x4", "1x4x2", ONE_D, "heads", 16, 4096, "bfloat16", "bfloat16", 4, 4),
    D("gemma2-9b", "h100:2", "1x1x2", ONE_D, "heads", 8, 8000, "bfloat16", "bfloat16", 2, 2),
    D("mixtral-8x7b", "v6e:2x4", "1x1x8", ONE_D, "heads", 16, 4096, "int8", "bfloat16", 8, 8),
    D("qwen3-30b-a3b", "v5p:2x2x2", "1x4x2", ONE_D, "heads", 64, 2048, "int8", "bfloat16", 4, 8),
    D("palm-540b", "v4:4x4x4", "4x4x4", TWO_D, "batch", 256, 2040, "int8", "bfloat16", 64, 64),
    D("llama3-8b", "v5e:2x4", "1x1x8", ONE_D, "sequence", 8, 0, "bfloat16", "bfloat16", 8, 8, 8192),
    D("llama3-8b", "v5p:2x2x1", "2x2x1", "weight_gathered_xyz", "heads",
      4, 0, "int8", "bfloat16", 4, 4, 4096),
    D("mixtral-8x7b", "h100:4", "1x1x4", ONE_D, "heads", 2, 0, "fp8", "bfloat16", 4, 4, 2048, True),
]  # fmt: skip


@pytest.mark.parametrize("one", DEPLOYMENTS, ids=lambda one: f"{one.model}-{one.topology}")
def test_a_recount_by_hand_agrees(one):
    found, sizes = _estimate(one).counts, MODELS[one.model]
    chips = find_chips(one)
    near = {"rel": 0.005}
    matrices, tables = _weights(one, sizes)
    assert found.weights_resident == pytest.approx((matrices + tables) / chips, **near)
    assert found.weights_read == pytest.approx(_read(one, sizes, matrices, tables), **near)
    token = 2 * sizes.kv_heads * (sizes.head * BYTES[one.cache] + 4 * (one.cache in QUANTIZATIONS))
    whole, held = sizes.layers - sizes.windowed, min(one.context + one.tokens, sizes.window)
    kept = token * one.batch * (whole * (one.context + one.tokens) + sizes.windowed * held)
    assert found.kv_resident == pytest.approx(kept / one.kv_parts, **near)
    seen = whole * one.context + sizes.windowed * min(one.context, sizes.window - 1)
    assert found.kv_read == pytest.approx(token * one.batch * seen / one.kv_parts, **near)
    assert found.flops == pytest.approx(_flops(one, sizes, chips), **near)


def find_chips(one: Recount) -> int:
    """Chips of the mesh."""
    x, y, z = map(int, one.mesh.split("x"))
    return x * y * z


def _estimate(one: Recount) -> Estimate:
    slice = parse_slice(one.topology)
    layout = attend_by(find_layout(one.layout), one.attention)
    stored = [QUANTIZATIONS.get(name) or jnp.dtype(name) for name in (one.weights, one.cache)]
    estimator = Estimator(
        Deployment(
            model=find_model(one.model),
            slice=slice,
            dtypes=Dtypes(jnp.bfloat16, *stored),
            calibration=calibration_of(slice.chip.name),
            layout=divide_experts(layout) if one.divided else layout,
            mesh=parse_mesh(one.mesh),
        )
    )
    if one.tokens > 1:
        return estimator.prefill(one.batch, one.tokens)
    return estimator.decode(one.batch, one.context)


def _in_attention(sizes: Sizes) -> int:
    """Weights of one layer: queries, keys, values and the way back."""
    return 2 * sizes.width * sizes.head * (sizes.heads + sizes.kv_heads)


def _in_mlp(sizes: Sizes) -> int:
    """Weights of one layer's gate, up and down, or of those of one expert."""
    return 3 * sizes.width * sizes.hidden


def _weights(one: Recount, sizes: Sizes) -> tuple[float, float]:
    """Bytes of all matrices in blocks, and of the tables at both ends; norms are too few."""
    chips, mlps = find_chips(one), max(sizes.experts, 1)
    layer = (_in_attention(sizes) + mlps * _in_mlp(sizes)) * BYTES[one.weights]
    if one.weights in ("int8", "fp8"):  # a scale of each output, whole where inputs are divided
        outputs = (sizes.heads + 2 * sizes.kv_heads) * sizes.head + mlps * 2 * sizes.hidden
        layer += 4 * (outputs + (1 + mlps) * sizes.width * chips)
    router = 2 * sizes.width * sizes.experts * chips  # whole on every chip
    tables = (1 if sizes.tied else 2) * sizes.vocabulary * sizes.width * 2
    return sizes.layers * (layer + router), tables


def _read(one: Recount, sizes: Sizes, matrices: float, tables: float) -> float:
    """Bytes of weights that a chip reads in the pass."""
    tokens, chips = one.batch * one.tokens, find_chips(one)
    rows = 0 if sizes.tied else min(tokens, sizes.vocabulary) * sizes.width * 2
    looked_up = 0 if sizes.tied else tables / 2
    unread = 0.0
    if sizes.experts:
        missed = (1 - sizes.chosen / sizes.experts) ** tokens
        experts = sizes.layers * sizes.experts * _in_mlp(sizes) * BYTES[one.weights]
        unread = experts * missed
    return (matrices + tables - looked_up - unread + rows) / chips


def _flops(one: Recount, sizes: Sizes, chips: int) -> float:
    """Of a chip: two for each weight and token, four for each pair of a query and a key."""
    router = sizes.width * sizes.experts * chips
    mlps = max(sizes.chosen, 1) * _in_mlp(sizes) + router
    layers = sizes.layers * (_in_attention(sizes) + mlps)
    work = 2 * (one.tokens * layers + sizes.vocabulary * sizes.width)
    whole, near = sizes.layers - sizes.windowed, 0
    pairs = sum(one.context + token + 1 for token in range(one.tokens))
    if sizes.windowed:
        near = sum(min(one.context + token + 1, sizes.window) for token in range(one.tokens))
    seen = whole * pairs + sizes.windowed * near
    attention = 4 * sizes.heads * sizes.head * seen
    return one.batch * (work / chips + attention / one.attention_parts)
