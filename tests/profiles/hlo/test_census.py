"""The census finds each collective of a program once, with its kind, axes, payload and count."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from profiles.compiled.substitutes import CPU_SUBSTITUTES, substitute
from profiles.floor.collective import Collective, merge, without_places
from profiles.floor.element_types import element_of
from profiles.hlo.census import census, scopes
from profiles.hlo.program import HloError
from sharding.mesh import make_mesh, parse_mesh

ROWS, COLUMNS = 16, 8
WHOLE = 4 * ROWS * COLUMNS  # bytes of a float32 array of these
SETS = ["x", "y", "z", ("x", "z"), ("z", "x"), ("y", "z"), ("x", "y", "z")]


@pytest.fixture(scope="module", autouse=True)
def mesh():
    """2x2x2, and the current one of these tests."""
    mesh = make_mesh(parse_mesh("2x2x2"))
    with jax.set_mesh(mesh):
        yield mesh


def compiled(step: Callable, *specs: jax.P, shape=(ROWS, COLUMNS), dtype=jnp.float32):
    """The program of `step` over arrays of one shape, divided as `specs` say."""
    mesh = jax.sharding.get_mesh()
    arrays = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=jax.NamedSharding(mesh, spec)) for spec in specs
    ]
    return jax.jit(step).lower(*arrays).compile()


def counted(step: Callable, *specs: jax.P, **kinds: object) -> list[Collective]:
    """Its collectives, wherever they are."""
    found = census(compiled(step, *specs, **kinds).as_text(), jax.sharding.get_mesh())
    return without_places(found)


def by_hand(step: Callable, before: jax.P, after: jax.P) -> Callable:
    return jax.shard_map(step, in_specs=before, out_specs=after, check_vma=False)


def sorted_axes(axes: str | tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(axes))


@pytest.mark.parametrize("axes", SETS)
@pytest.mark.parametrize(
    "kind", ["all-gather", "reduce-scatter", "all-reduce", "all-to-all", "permute"]
)
def test_each_kind_by_hand_over_any_axes(kind, axes):
    size = 2 ** len(sorted_axes(axes))
    rows, whole = jax.P(axes, None), jax.P(None, None)
    ring = [(n, (n + 1) % size) for n in range(size)]
    step, before, after, payload = {
        "all-gather": (lambda a: jax.lax.all_gather(a, axes, tiled=True), rows, whole, WHOLE),
        "reduce-scatter": (lambda a: jax.lax.psum_scatter(a, axes, tiled=True), whole, rows, WHOLE),
        "all-reduce": (lambda a: jax.lax.psum(a, axes), rows, whole, WHOLE // size),
        "all-to-all": (
            lambda a: jax.lax.all_to_all(a, axes, 1, 0, tiled=True),
            rows, jax.P(None, axes), WHOLE // size,
        ),
        "permute": (
            lambda a: jax.lax.ppermute(a, sorted_axes(axes), ring), rows, rows, WHOLE // size,
        ),
    }[kind]  # fmt: skip
    found = counted(by_hand(step, before, after), before)
    assert found == [Collective(kind, sorted_axes(axes), payload)]


@pytest.mark.parametrize("order", [(3, 1, 7, 0, 2, 6, 5, 4), (7, 6, 5, 4, 3, 2, 1, 0)])
def test_axes_come_from_places_in_the_mesh_whatever_the_devices_ids(order):
    devices = np.array(jax.devices())[list(order)].reshape(2, 2, 2)
    explicit = (jax.sharding.AxisType.Explicit,) * 3
    mixed = jax.sharding.Mesh(devices, ("x", "y", "z"), axis_types=explicit)
    with jax.set_mesh(mixed):
        for axis in "xyz":
            one = by_hand(functools.partial(jax.lax.psum, axis_name=axis), jax.P(axis), jax.P())
            for step in (one, lambda a: jax.reshard(a, jax.P(None, None))):
                (found,) = counted(step, jax.P(axis, None))
                assert found.axes == (axis,)
        program = compiled(lambda a: a + 1, jax.P(("x", "y", "z"), None))
    placed = program.output_shardings.devices_indices_map((ROWS, COLUMNS))
    assert placed[devices[0, 0, 1]][0] == slice(2, 4)


@pytest.mark.parametrize("shape", ["1x2x4", "1x1x8", "2x4x1"])
def test_an_axis_of_one_device_is_never_named(shape):
    sizes = parse_mesh(shape)
    with jax.set_mesh(make_mesh(sizes)):
        found = counted(lambda a: jax.reshard(a, jax.P(None, None)), jax.P(("x", "y", "z"), None))
        assert found == [
            Collective("all-gather", tuple(a for a in sizes if sizes[a] > 1), WHOLE)
        ]  # fmt: skip
        alone = next(axis for axis in sizes if sizes[axis] == 1)
        psum = by_hand(functools.partial(jax.lax.psum, axis_name=alone), jax.P(), jax.P())
        assert counted(psum, jax.P(None, None)) == []


def reduced(array: jax.Array, axis: str) -> jax.Array:
    """An all-reduce of the whole array whose result is needed."""
    return by_hand(lambda a: jax.lax.pmean(a, axis) * 0.5, jax.P(), jax.P())(array)


def test_loops_multiply_and_a_loop_without_collectives_may_be_endless():
    def nested(a):
        inner = lambda _, b: reduced(jnp.sin(b), "x")  # noqa: E731
        outer = lambda _, b: reduced(jax.lax.fori_loop(0, 3, inner, b), "z")  # noqa: E731
        while_positive = lambda b: jnp.cos(b) + b  # noqa: E731
        return jax.lax.while_loop(
            lambda b: b[0, 0] < 0, while_positive, jax.lax.fori_loop(0, 5, outer, a)
        )

    assert counted(nested, jax.P(None, None)) == [
        Collective("all-reduce", ("x",), WHOLE, count=15),
        Collective("all-reduce", ("z",), WHOLE, count=5),
    ]


def test_a_collective_in_a_loop_of_unknown_length_is_an_error():
    def endless(a):
        return jax.lax.while_loop(lambda b: b[0, 0] < 9, lambda b: reduced(b + 1, "x"), a)

    with pytest.raises(HloError, match=r"trip count of loop .* is unknown .*; count with"):
        counted(endless, jax.P(None, None))


def test_of_a_conditional_the_branch_that_moves_most_counts():
    def branch(a):
        return jax.lax.cond(
            a[0, 0] > 0,
            lambda b: reduced(reduced(b, "x"), "y"),
            lambda b: reduced(jnp.sin(b), "z"),
            a,
        )

    assert counted(branch, jax.P(None, None)) == [
        Collective("all-reduce", ("x",), WHOLE),
        Collective("all-reduce", ("y",), WHOLE),
    ]


def test_each_operand_of_a_joint_all_reduce_is_an_entry():
    both = jax.shard_map(
        lambda a, b: jax.lax.psum((a, b[:2]), "z"),
        in_specs=(jax.P(), jax.P()), out_specs=(jax.P(), jax.P()), check_vma=False,
    )  # fmt: skip
    found = counted(both, jax.P(None, None), jax.P(None, None))
    assert found == [
        Collective("all-reduce", ("z",), WHOLE // 8),
        Collective("all-reduce", ("z",), WHOLE),
    ]


def test_named_scopes_say_where():
    def step(a):
        with jax.named_scope("decode_step"), jax.named_scope("layer_0"), jax.named_scope("mlp"):
            return jax.lax.fori_loop(0, 2, lambda _, b: reduced(jnp.sin(b), "x"), a)

    (found,) = census(compiled(step, jax.P(None, None)).as_text(), jax.sharding.get_mesh())
    assert (found.where, found.count) == ("layer_0/mlp", 2)
    assert scopes("jit(f)/layer_1/jit(silu)/mlp/while/body/closed_call/psum") == "layer_1/mlp"
    assert scopes("") == scopes("psum") == ""


# What XLA:CPU makes in place of what was asked for.


def scattered(axes) -> Callable:
    """A matmul of partial sums over x, the result scattered over `axes`."""
    return lambda a, b: jnp.einsum("td,df->tf", a, b, out_sharding=jax.P(None, axes))


BUSY = ("z", "y", "x")  # divides the matmul's work over every mesh axis


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_matmuls_reduce_scatter_is_an_all_reduce_on_cpu_and_its_result_is_scattered(dtype):
    shape, part = (16, 16), 16 * 16 // 4 * jnp.dtype(dtype).itemsize
    program = compiled(
        scattered(BUSY), jax.P(None, "x"), jax.P("x", ("z", "y")), shape=shape, dtype=dtype
    )
    found = without_places(census(program.as_text(), jax.sharding.get_mesh()))
    asked = [Collective("reduce-scatter", ("x",), part)]
    assert found == substitute(asked, "cpu", dtype) != asked
    assert found[0].kind == "all-reduce" and substitute(asked, "tpu", dtype) == asked
    # An all-reduce alone could be that of a layout which scatters nothing.
    assert program.output_shardings.spec == jax.P(None, BUSY)
    assert program.output_shardings.shard_shape(shape) == (16, 2)
    whole = compiled(scattered(BUSY[:2]), jax.P(None, "x"), jax.P("x", BUSY[:2]), shape=shape)
    assert whole.output_shardings.spec == jax.P(None, BUSY[:2])


@pytest.mark.parametrize(
    ("before", "after", "asked"),
    [
        (("x", "y", "z"), ("x", "y"), [("all-gather", "z", 4)]),
        (("x", "y", "z"), ("x",), [("all-gather", "yz", 2)]),
        # Gathering an axis that is not the last first moves shards to where it is.
        (("x", "y", "z"), ("y", "z"), [("permute", "xyz", 8), ("all-gather", "x", 4)]),
        (("x",), ("y",), [("permute", "xy", 2)]),
        ((), ("x",), []),
    ],
)
def test_reshards_are_what_they_ask_for(before, after, asked):
    found = counted(lambda a: jax.reshard(a, jax.P(after, None)), jax.P(before or None, None))
    assert found == merge(Collective(kind, tuple(axes), WHOLE // n) for kind, axes, n in asked)


@pytest.mark.parametrize("axes", SETS)
def test_a_reshard_from_one_dimension_to_another_is_one_all_to_all(axes):
    found = counted(lambda a: jax.reshard(a, jax.P(None, axes)), jax.P(axes, None))
    part = WHOLE // 2 ** len(sorted_axes(axes))
    assert found == [Collective("all-to-all", sorted_axes(axes), part)]


MOVED = {
    "all-gather": lambda a: jax.reshard(a, jax.P()),
    "permute": by_hand(
        lambda a: jax.lax.ppermute(a, "x", [(0, 1), (1, 0)]), jax.P("x", None), jax.P("x", None)
    ),
    "all-to-all": lambda a: jax.reshard(a, jax.P(None, "x")),
}


@pytest.mark.parametrize("kind", MOVED)
@pytest.mark.parametrize(
    ("dtype", "element"),
    [("bfloat16", "bf16"), ("float8_e4m3fn", "f8e4m3fn"), ("float8_e5m2", "f8e5m2"),
     ("int4", "s4"), ("uint4", "u4"), ("float32", "f32"), ("float16", "f16"), ("int8", "s8"),
     ("bool", "pred"), ("uint32", "u32")],
)  # fmt: skip
def test_element_types_that_cpu_widens_are_those_listed(dtype, element, kind):
    dtype = jnp.dtype(dtype)
    assert element_of(dtype) == element
    bits = jnp.iinfo(dtype).bits if element in ("s4", "u4") else 8 * dtype.itemsize
    part = 1 if kind == "all-gather" else 2
    asked = [Collective(kind, ("x",), ROWS * COLUMNS // part * bits // 8)]
    found = counted(MOVED[kind], jax.P("x", None), dtype=dtype)
    (expected,) = substitute(asked, "cpu", dtype)
    assert found == [expected] and found[0].element == expected.element
    assert (element in CPU_SUBSTITUTES) == (found != asked)


def test_one_by_hand_keeps_its_kind_and_is_widened_like_any():
    scatter = by_hand(lambda a: jax.lax.psum_scatter(a, "x", tiled=True), jax.P(), jax.P("x"))
    asked = Collective("reduce-scatter", ("x",), WHOLE // 2, by_hand=True)
    found = counted(scatter, jax.P(None, None), dtype=jnp.bfloat16)
    assert found == substitute([asked], "cpu", jnp.bfloat16)
    assert found == [Collective("reduce-scatter", ("x",), WHOLE)]


def test_a_sum_of_bfloat16_is_float32_before_any_compiler_sees_it():
    found = counted(lambda a: jnp.sum(a, 1), jax.P(None, "z"), dtype=jnp.bfloat16)
    (largest,) = counted(lambda a: jnp.max(a, 1), jax.P(None, ("z", "y")), dtype=jnp.bfloat16)
    asked = [Collective("all-reduce", ("z",), 4 * ROWS, element="f32")]
    assert found == substitute(asked, "cpu", jnp.bfloat16) == asked
    assert [largest] == substitute(
        [Collective("all-reduce", ("y", "z"), 2 * ROWS)], "cpu", jnp.bfloat16
    )


SHARED = """HloModule step, num_partitions=8

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%called_computation (p: f32[16,8]) -> f32[16,8] {
  %p = f32[16,8]{1,0} parameter(0)
  ROOT %all-reduce = f32[16,8]{1,0} all-reduce(%p), channel_id=1, replica_groups={{0,1},{2,3},\
{4,5},{6,7}}, use_global_device_ids=true, to_apply=%add, metadata={op_name="jit(f)/embedding/psum"}
}

ENTRY %main (x: f32[16,8]) -> f32[16,8] {
  %x = f32[16,8]{1,0} parameter(0)
  %one = f32[16,8]{1,0} call(%x), to_apply=%called_computation, metadata={op_name="jit(f)/embeddin\
g/psum"}
  ROOT %two = f32[16,8]{1,0} call(%one), to_apply=%called_computation, metadata={op_name="jit(f)/l\
ayer_0/mlp/psum"}
}
"""


def test_a_computation_that_callers_share_is_where_each_caller_is():
    found = census(SHARED, parse_mesh("2x2x2"))
    assert {one.where: one.count for one in found} == {"embedding": 1, "layer_0/mlp": 1}
    alone = SHARED.replace("to_apply=%called_computation", "to_apply=%add", 1)
    assert [one.where for one in census(alone, parse_mesh("2x2x2"))] == ["embedding"]


def test_argmax_over_a_divided_axis_gathers_a_value_and_a_place_per_shard():
    found = counted(lambda a: jnp.argmax(a, 1), jax.P(None, ("z", "y")))
    assert found == [Collective("all-gather", ("y", "z"), 4 * ROWS * 4, count=2)]


@pytest.mark.parametrize(
    ("result", "asked"),
    [
        ("x", [("all-reduce", "yz", 4 * 4 * 4)]),
        (("x", "z", "y"), [("all-reduce", "yz", 4 * 4 * 4)]),
        # Gathered before partial rows are added: twice the bytes of the other order.
        (None, [("all-gather", "x", 4 * 4 * 8), ("all-reduce", "yz", 4 * 4 * 8)]),
    ],
)
def test_a_look_up_in_a_table_divided_over_rows_is_an_all_reduce_of_what_it_finds(result, asked):
    def look_up(table):
        return table.at[jnp.arange(4)].get(out_sharding=jax.P(None, result))

    found = counted(look_up, jax.P(("z", "y"), "x"))
    assert found == merge(Collective(kind, tuple(axes), size) for kind, axes, size in asked)


def test_scattering_over_an_axis_while_another_is_idle_moves_shards_once_more():
    """XLA's partitioner divides the matmul over an idle axis of the same size, then puts it right.

    Not a thing of CPU, so not a substitute: `scattered` over every axis has no such permute.
    """
    found = counted(scattered("x"), jax.P(None, "x"), jax.P("x", None), shape=(16, 16))
    assert {one.kind for one in found} == {"all-reduce", "permute"}
