"""Matmuls with their collectives by hand: the plain product, whatever is gathered or scattered."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharding.mesh import make_mesh, parse_mesh
from sharding.products import LONGEST_UNROLLED, ProductSpecs, multiply, ring_directions, transfers

# Weight [R, F] times x [B, T, F], both orders of what layouts ask for:
#   stored          use             x given             x contracted    result
CASES = {
    "gather over one axis": ((None, "x"), (None, "x"), (("x", "z"),), ("x",), (None,)),
    "gather over two": (("y", None), ("y", None), (("z", "x"),), (None,), ("y",)),
    "gather over all": ((None, None), (None, None), (("z", "y", "x"),), (None,), (None,)),
    "scatter over one": (("y", "x"), ("y", "x"), ("x",), ("x",), (("y", "x"),)),
    "scatter over two": (("x", ("z", "y")),) * 2 + ((("z", "y"),),) * 2 + ((("x", "z", "y"),),),
    "scatter over all": ((None, ("z", "y", "x")),) * 2 + ((("z", "y", "x"),),) * 3,
    "scatter over one, sum over another": ((None, ("z", "y")),) * 2 + ((("z", "y"),),) * 2
    + (("z",),),
    "sum over all": ((None, ("x", "y", "z")),) * 2 + ((("x", "y", "z"),),) * 2 + ((None,),),
    "gather and scatter": ((("z", "y"), "x"),) * 2 + ((("x", "z", "y"),), ("x",))
    + ((("z", "y", "x"),),),
    "gather and sum": ((None, "x"), (None, "x"), (("x", "y"),), ("x",), (None,)),
    "fetch inputs": ((("z", "y"), "x"), (("z", "y"), None), (None,), (None,), (("z", "y"),)),
    "fetch outputs": (("x", ("z", "y")), (None, ("z", "y")), (("z", "y"),), (("z", "y"),), (None,)),
    "fetch both": ((("z", "y"), "x"), (("z",), None), (None,), (None,), ("z",)),
    "fetch everything": ((("z", "y"), "x"), (None, None), (None,), (None,), (None,)),
    "fetch, gather and scatter": (("x", ("z", "y")), (None, ("z", "y")), (("z", "y"),),
                                  (("z", "y"),), (("z", "y"),)),
}  # fmt: skip
SIZES = {"halves": (16, 48), "at once": (16, 48), "odd": (8, 8)}


def product_of(case: str, mesh: str, sizes: tuple[int, int], looped: bool = True):
    """The product on the mesh, x gathered, and what both should be; small whole numbers."""
    stored, use, given, contracted, result = CASES[case]
    random = np.random.default_rng(0)
    weight = random.integers(-4, 5, sizes).astype(np.float32)
    x = random.integers(-4, 5, (2, 3, sizes[1])).astype(np.float32)
    stored, use = jax.P(*stored), jax.P(*use)
    of_tokens = (jax.P(None, None, *spec) for spec in (given, contracted, result))
    specs = ProductSpecs(stored, use, *of_tokens)
    devices = make_mesh(parse_mesh(mesh))
    with jax.set_mesh(devices):
        put = [
            jax.device_put(jnp.asarray(array), jax.NamedSharding(devices, spec))
            for array, spec in ((weight, stored), (x, specs.incoming))
        ]
        plan = transfers(sizes, specs, dict(devices.shape))
        assert plan is not None and plan.communicates
        step = jax.jit(lambda w, x: multiply(w, x, plan, specs.contracted, looped=looped))
        found, gathered = step(*put)
        text = step.lower(*put).compile().as_text()
    assert plan.product_spec == found.sharding.spec == specs.result
    assert gathered.sharding.spec == specs.contracted
    return found, gathered, np.einsum("rf,btf->btr", weight, x), x, text


@pytest.mark.parametrize(
    ("case", "sizes"),
    # Halves always, one of the other two of every second case, by turns.
    [pytest.param(case, sizes, marks=pytest.mark.slow if m and (n + 2 * m) % 4 else ())
     for n, case in enumerate(CASES) for m, sizes in enumerate(SIZES)],
)  # fmt: skip
def test_a_product_is_the_same_whatever_travels(case, sizes):
    looped = sizes != "at once"
    found, gathered, expected, x, text = product_of(case, "2x2x2", SIZES[sizes], looped)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(gathered, x)
    assert ("collective-permute" in text) == looped


@pytest.mark.parametrize("case", ["gather over two", "scatter over two", "fetch inputs"])
@pytest.mark.parametrize(
    "mesh",
    ["4x1x2", "3x1x2", *(pytest.param(m, marks=pytest.mark.slow) for m in ("1x2x4", "1x1x3"))],
)
def test_rings_of_any_length_and_order_go_all_the_way_round(case, mesh):
    used = {axis for spec in CASES[case] for axis in str(spec) if axis in "xyz"}
    if all(size == 1 for axis, size in parse_mesh(mesh).items() if axis in used):
        pytest.skip("nothing moves")
    found, _, expected, _, _ = product_of(case, mesh, (48, 48))
    np.testing.assert_array_equal(found, expected)


def test_long_rings_are_loops_and_short_ones_are_not():
    assert LONGEST_UNROLLED == 4
    *_, four = product_of("gather over two", "2x1x2", (16, 48))
    *_, eight = product_of("gather over all", "2x2x2", (16, 48))
    assert "while(" not in four and "while(" in eight


def test_even_chunks_go_both_ways_round_where_there_are_two():
    assert ring_directions(6, 4) == (1, -1)
    assert ring_directions(6, 2) == ring_directions(5, 4) == (1,)


def test_axes_that_divide_no_input_only_slice_the_sum():
    specs = (jax.P(*spec) for spec in (("x", "z"),) * 2)
    rest = (jax.P(None, None, "z"), jax.P(None, None, "z"), jax.P(None, None, ("x", "z", "y")))
    plan = transfers((16, 48), ProductSpecs(*specs, *rest), {"x": 2, "y": 2, "z": 2})
    assert (plan.scattered, plan.summed) == (("z",), ())
    assert plan.product_spec == jax.P(None, None, ("x", "z"))


def test_what_is_not_one_gather_and_one_scatter_is_left_to_the_compiler():
    def plan(stored, use, given, contracted, result):
        specs = ProductSpecs(*(jax.P(*spec) for spec in (stored, use, given, contracted, result)))
        return transfers((16, 48), specs, {"x": 2, "y": 2, "z": 2})

    same = ("y", "x")
    batch_changes = (("x", None, None), (None, None, None))
    assert plan((None, None), (None, None), *batch_changes, (None, None, None)) is None
    order_changes = ((None, None, ("z", "x")), (None, None, "x"))
    assert plan(same, same, *order_changes, (None, None, "y")) is None
