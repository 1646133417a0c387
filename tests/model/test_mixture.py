"""Experts: every token's output is that of a dense computation over the experts it chose."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from model.catalog import find_model
from model.dtypes import FLOAT32, Dtypes
from model.mixture import Experts, Mixture, grouped, touched_only
from sharding.catalog import LAYOUTS, divide_experts
from sharding.mesh import make_mesh, parse_mesh
from sharding.placement import Placement

E, K, D, F, N = 8, 2, 64, 128, 24
BATCH = (8, 3)
CONFIG = dataclasses.replace(find_model("tiny"), experts=E, experts_per_token=K)
ROUTINGS = ["balanced", "skewed", "identical"]


def routed(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [N, D] and router [E, D] for routing that is balanced, skewed or all alike."""
    random = np.random.default_rng(0)
    x, router = random.normal(size=(N, D)), random.normal(size=(E, D))
    if kind == "skewed":  # every token prefers experts 4 and 1 by far
        x[:, 0], router[[1, 4], 0] = 5.0, [20, 30]
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


@pytest.mark.parametrize(
    ("mesh", "way", "renormalise"),
    # Loops of eight devices have divided experts below.
    [("1x1x1", "loop", False), ("2x2x2", "groups", True),
     *(pytest.param(*case, marks=pytest.mark.slow)
       for case in (("1x1x1", "loop", True), ("2x2x2", "groups", False),
                    ("2x2x2", "loop", True), ("2x2x2", "loop", False)))],
)  # fmt: skip
def test_every_token_gets_the_dense_answer_of_its_experts(mesh, way, renormalise, monkeypatch):
    if way == "groups":
        run_as_on_tpu(monkeypatch)
    check(LAYOUTS["weight_stationary_1d"], mesh, ROUTINGS, renormalise)


def run_as_on_tpu(monkeypatch):
    def groups(x, share, experts, *how):
        return grouped(x, share, experts, K, *how)

    monkeypatch.setattr("model.mixture.touched_only", groups)


@pytest.mark.parametrize("way", ["loop", "groups"])
def test_a_share_may_be_of_what_an_expert_reads(way):
    """As in Llama 4: twice as much of an input is not twice as much of an answer."""
    random = np.random.default_rng(1)
    x, share = random.normal(size=(4, 16)), np.array([[0, 0.3], [0.9, 0], [0.2, 0.5], [0, 0]])
    gate_up, down = random.normal(size=(2, 2, 8, 16)), random.normal(size=(2, 16, 8))
    expected = np.zeros(x.shape)
    for token, expert in np.ndindex(share.shape):
        gate, up = gate_up[expert] @ (share[token, expert] * x[token])
        expected[token] += down[expert] @ (gate / (1 + np.exp(-gate)) * up)
    form = touched_only if way == "loop" else functools.partial(grouped, chosen=2)
    arrays = [jnp.asarray(each, jnp.float32) for each in (x, share, gate_up, down)]
    experts = Experts(*arrays[2:])
    run = jax.jit(functools.partial(form, activation="silu", of_inputs=True))
    found = run(*arrays[:2], experts)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("layout", "mesh", "way"),
    [
        ("weight_stationary_2d", "2x2x2", "loop"),
        ("weight_gathered_xyz", "2x2x2", "groups"),
        pytest.param("weight_stationary_2d", "2x1x4", "groups", marks=pytest.mark.slow),
        pytest.param("weight_gathered_x", "2x2x2", "groups", marks=pytest.mark.slow),
        pytest.param("weight_gathered_xyz", "2x2x2", "loop", marks=pytest.mark.slow),
        ("data_parallel_x_2d", "4x2x1", "loop"),
    ],
)
def test_divided_experts_answer_every_token_wherever_it_is(layout, mesh, way, monkeypatch):
    if way == "groups":
        run_as_on_tpu(monkeypatch)
    check(divide_experts(LAYOUTS[layout]), mesh, ROUTINGS)


@pytest.mark.parametrize(
    ("layout", "way"),
    [pytest.param(layout, way, marks=() if (n % 4, m) in ((0, 1), (3, 0)) else pytest.mark.slow)
     for n, layout in enumerate(LAYOUTS) for m, way in enumerate(["loop", "groups"])],
)  # fmt: skip
def test_experts_that_divide_over_some_axes_are_divided_further_over_the_others(
    layout, way, monkeypatch
):
    if way == "groups":
        run_as_on_tpu(monkeypatch)
    check(divide_experts(LAYOUTS[layout]), "2x2x2", ["balanced"], experts=6)


def check(layout, mesh, kinds, renormalise=True, experts=E):
    """Compiles once and runs tokens of every kind of routing."""
    config = dataclasses.replace(CONFIG, renormalise_experts=renormalise, experts=experts)
    shape = parse_mesh(mesh)
    placement = Placement.of(layout, config.sizes, shape)
    structure, state = nnx.split(Mixture(config, FLOAT32))
    axes = {path[0]: param.axes for path, param in nnx.to_flat_state(state)}
    run = jax.jit(lambda w, x, real: nnx.merge(structure, w)(x, real, placement))
    random = np.random.default_rng(1)
    gate_up = random.normal(size=(experts, 2, F, D)).astype(np.float32) * 0.1
    down = random.normal(size=(experts, D, F)).astype(np.float32) * 0.1
    for kind in kinds:
        x, router = routed(kind)
        weights = {"router": router[:experts], "gate_up": gate_up, "down": down}
        with jax.set_mesh(mesh := make_mesh(shape)):
            placed = {
                name: jax.device_put(a, jax.NamedSharding(mesh, placement.weights(axes[name])))
                for name, a in weights.items()
            }
            out, touched = run(placed, x.reshape(*BATCH, D), np.ones(BATCH, bool))
        expected, chosen = dense(x, **weights, renormalise=renormalise)
        error = np.abs(np.asarray(out).reshape(N, D) - expected).max()
        assert error < 1e-4 * np.abs(expected).max(), kind
        assert np.asarray(touched).any(axis=0).sum() == len(chosen)
        if kind != "balanced":
            assert len(chosen) == K


@pytest.mark.parametrize("kind", ROUTINGS)
def test_the_grouped_matmul_equals_the_loop_over_touched_experts(kind):
    x, router = routed(kind)
    random = np.random.default_rng(1)
    gate_up = random.normal(size=(E, 2, F, D)).astype(np.float32) * 0.1
    down = random.normal(size=(E, D, F)).astype(np.float32) * 0.1
    best, which = jax.lax.top_k(jax.nn.softmax(x @ router.T), K)
    share = np.zeros((N, E), np.float32)
    np.put_along_axis(share, np.asarray(which), np.asarray(best), axis=1)
    one = grouped(x, share, Experts(gate_up, down), K, "silu")
    other = touched_only(x, share, Experts(gate_up, down), "silu")
    assert np.abs(one - other).max() < 1e-5 * np.abs(one).max()


@pytest.mark.parametrize("dtype", [pytest.param(jnp.float32, marks=pytest.mark.slow), jnp.bfloat16])
@pytest.mark.parametrize(
    ("name", "exchanges"),
    [("weight_stationary_2d", 0), ("weight_gathered_xyz", 2),
     *(pytest.param(*case, marks=pytest.mark.slow)
       for case in (("weight_stationary_1d", 0), ("weight_gathered_x", 2),
                    ("data_parallel_x_1d", 2)))],
)  # fmt: skip
def test_tokens_go_to_experts_and_back_and_no_expert_moves(name, exchanges, dtype):
    sent, gathered = moved(divide_experts(LAYOUTS[name]), dtype)
    assert max(gathered, default=0) < D * F
    shares = E // 8 * 4 // jnp.dtype(dtype).itemsize  # float32, in units of the tokens' type
    assert sorted(sent) == [N * D, N * (D + shares)][:exchanges]


def test_weights_that_move_would_be_seen():
    sent, gathered = moved(LAYOUTS["weight_gathered_xyz"], jnp.float32)
    assert not sent and max(gathered) >= E * D * F


def moved(layout, dtype) -> tuple[list[int], list[int]]:
    """Elements that each all-to-all and each all-gather of a compiled mixture makes."""
    shape = parse_mesh("2x2x2")
    placement = Placement.of(layout, CONFIG.sizes, shape)
    structure, state = nnx.split(Mixture(CONFIG, Dtypes(dtype)))
    with jax.set_mesh(mesh := make_mesh(shape)):

        def abstract(shape, dtype, spec):
            return jax.ShapeDtypeStruct(shape, dtype, sharding=jax.NamedSharding(mesh, spec))

        weights = {
            path[0]: abstract(param.shape, param.dtype, placement.weights(param.axes))
            for path, param in nnx.to_flat_state(state)
        }
        x = abstract((*BATCH, D), dtype, placement.activations("BTR"))
        real = abstract(BATCH, bool, placement.activations("BT"))
        run = jax.jit(lambda w, x, real: nnx.merge(structure, w)(x, real, placement))
        text = run.lower(weights, x, real).compile().as_text()

    def made(kind):
        # XLA:CPU gives each block of an all-to-all as an element of a tuple.
        lines = re.findall(rf"= (.*?) {kind}(?:-start)?\(", text)
        shapes = [re.findall(r"\[([\d,]+)\]", line) for line in lines]
        return [sum(int(np.prod([*map(int, one.split(","))])) for one in line) for line in shapes]

    return made("all-to-all"), made("all-gather")
