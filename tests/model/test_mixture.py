"""Experts: every token's output is that of a dense computation over the experts it chose."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from model.catalog import find_model
from model.mixture import Mixture, grouped, touched_only
from sharding.layout import LAYOUTS
from sharding.mesh import make_mesh, parse_mesh

E, K, D, F, N = 6, 2, 64, 128, 24
CONFIG = dataclasses.replace(find_model("tiny"), experts=E, experts_per_token=K)


def routed(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [N, D] and router [E, D] for routing that is balanced, skewed or all alike."""
    random = np.random.default_rng(0)
    x, router = random.normal(size=(N, D)), random.normal(size=(E, D))
    if kind == "skewed":  # every token prefers experts 4 and 1 by far
        x[:, 0], router[:, 0] = 5.0, [0, 20, 0, 0, 30, 0]
    if kind == "identical":
        x[:] = x[0]
    return x.astype(np.float32), router.astype(np.float32)


def dense(x, router, gate_up, down, renormalise):
    """Token by token, expert by expert, in float64. Returns outputs and the experts chosen."""
    out, chosen = np.zeros(x.shape), set()
    for row, token in zip(out, x.astype(np.float64), strict=True):
        scores = router @ token
        share = np.exp(scores - scores.max())
        share /= share.sum()
        best = np.argsort(-share)[:K]
        chosen |= set(best.tolist())
        total = share[best].sum() if renormalise else 1.0
        for expert in best:
            gate, up = gate_up[expert] @ token
            hidden = gate / (1 + np.exp(-gate)) * up
            row += share[expert] / total * (down[expert] @ hidden)
    return out, chosen


@pytest.mark.parametrize("kind", ["balanced", "skewed", "identical"])
@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize(
    ("mesh", "way"), [("1x1x1", "loop"), ("2x2x2", "loop"), ("2x2x2", "groups")]
)
def test_every_token_gets_the_dense_answer_of_its_experts(
    mesh, way, renormalise, kind, monkeypatch
):
    if way == "groups":  # what a TPU runs
        monkeypatch.setattr(
            "model.mixture.touched_only",
            lambda *arrays_and_activation: grouped(
                *arrays_and_activation[:4], K, arrays_and_activation[4]
            ),
        )
    config = dataclasses.replace(CONFIG, renormalise_experts=renormalise)
    shape = parse_mesh(mesh)
    placement = LAYOUTS["weight_stationary_1d"].check(config.sizes, shape)
    x, router = routed(kind)
    random = np.random.default_rng(1)
    gate_up = random.normal(size=(E, 2, F, D)).astype(np.float32) * 0.1
    down = random.normal(size=(E, D, F)).astype(np.float32) * 0.1
    weights = {"router": router, "gate_up": gate_up, "down": down}
    structure, state = nnx.split(Mixture(config, jnp.float32))
    axes = {path[0]: param.axes for path, param in nnx.to_flat_state(state)}
    with jax.set_mesh(mesh := make_mesh(shape)):
        placed = {
            name: jax.device_put(a, jax.NamedSharding(mesh, placement.weights(*axes[name])))
            for name, a in weights.items()
        }
        run = jax.jit(lambda w, x, real: nnx.merge(structure, w)(x, real, placement))
        out, touched = run(placed, x.reshape(4, 6, D), np.ones((4, 6), bool))
    expected, chosen = dense(x, **weights, renormalise=renormalise)
    assert np.abs(np.asarray(out).reshape(N, D) - expected).max() < 1e-4 * np.abs(expected).max()
    assert touched == len(chosen)
    if kind != "balanced":
        assert len(chosen) == K


@pytest.mark.parametrize("kind", ["balanced", "skewed", "identical"])
def test_the_grouped_matmul_equals_the_loop_over_touched_experts(kind):
    x, router = routed(kind)
    random = np.random.default_rng(1)
    gate_up = random.normal(size=(E, 2, F, D)).astype(np.float32) * 0.1
    down = random.normal(size=(E, D, F)).astype(np.float32) * 0.1
    best, which = jax.lax.top_k(jax.nn.softmax(x @ router.T), K)
    share = np.zeros((N, E), np.float32)
    np.put_along_axis(share, np.asarray(which), np.asarray(best), axis=1)
    one = grouped(x, share, gate_up, down, K, "silu")
    other = touched_only(x, share, gate_up, down, "silu")
    assert np.abs(one - other).max() < 1e-5 * np.abs(one).max()
