"""HLO text in forms that CPU does not make: other groups, asynchronous pairs, TPU's wrappers."""

import json

import pytest

from profiles.floor.collective import Collective, merge, without_places
from profiles.hlo.census import census
from profiles.hlo.groups import axes_of, axes_of_pairs, parse_groups
from profiles.hlo.program import HloError, arrays, parse

MESH = {"x": 2, "y": 2, "z": 2}
ADD = """
%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}
"""
GLOBAL = "use_global_device_ids=true, to_apply=%add"


def program(entry: str, *computations: str, header: str = "num_partitions=8") -> str:
    """A module whose entry has these lines, after an operand %p of 512 bytes."""
    body = "\n".join(f"  {line.strip()}" for line in entry.strip().splitlines())
    return (
        f"HloModule step, is_scheduled=true, {header}\n{ADD}\n" + "\n".join(computations)
        + f"\nENTRY %main (p: f32[8,16]) -> f32[8,16] {{\n"
        f"  %p = f32[8,16]{{1,0:T(8,128)}} parameter(0)\n{body}\n}}\n"
    )  # fmt: skip


def found(entry: str, *computations: str, **options: str) -> list[Collective]:
    return census(program(entry, *computations, **options), MESH)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("f32[8,16]{1,0:T(8,128)}", [("f32", 512)]),
        ("bf16[32,4]{1,0:T(8,128)(2,1)S(1)}", [("bf16", 256)]),
        ("(s4[3,3]{1,0}, u4[2]{0})", [("s4", 5), ("u4", 1)]),
        ("(f8e4m3fn[8], pred[8], s8[8])", [("f8e4m3fn", 8), ("pred", 8), ("s8", 8)]),
        ("((f32[4]), s32[<=4], u32[])", [("f32", 16), ("s32", 16), ("u32", 4)]),
        ("(f16[4], f64[4], c64[4], f32[0,4])", [("f16", 8), ("f64", 32), ("c64", 32), ("f32", 0)]),
    ],
)
def test_bytes_of_shapes(shape, expected):
    assert arrays(shape) == expected


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        ("{{0,1},{2,3},{4,5},{6,7}}", "z"),
        ("{{0,4},{1,5},{2,6},{3,7}}", "x"),
        ("{{0,4,1,5},{2,6,3,7}}", "xz"),
        ("{}", "xyz"),
        ("[4,2]<=[8]", "z"),
        ("[2,4]<=[8]", "yz"),
        ("[1,8]<=[8]", "xyz"),
        ("[4,2]<=[2,4]T(1,0)", "x"),
        ("[4,2]<=[2,2,2]T(0,2,1)", "y"),
        ("[2,4]<=[2,2,2]T(1,2,0)", "xz"),
        ("[4,2]<=[2,2,2]T(2,1,0)", "x"),
        ("mesh['axis_0'=2,'axis_1'=1,'axis_2'=4] {'axis_0'}", "x"),
        ("mesh['axis_0'=1,'axis_1'=2,'axis_2'=4], device_ids=([2,2,2]T(1,0,2)) {'axis_1'}", "y"),
        ("mesh['axis_0'=1,'axis_1'=2,'axis_2'=4], device_ids=([4,2]T(1,0)) {'axis_1'}", "z"),
        ("mesh['x'=2,'y'=2,'z'=2] {'x','z'}", "xz"),
        ("mesh['a'=2,'b'=4], device_ids=(0,1,4,5,2,3,6,7) {'a'}", "y"),
        ("mesh['a'=8] {'a':(2)2}", "y"),
        ("mesh['a'=8] {'a':(1)2,'a':(4)2}", "xz"),
    ],
)
def test_every_form_of_groups(groups, axes):
    line = f"ROOT %r = f32[8,16] all-reduce(%p), channel_id=1, replica_groups={groups}, {GLOBAL}"
    assert found(line) == [Collective("all-reduce", tuple(axes), 512)]


def test_groups_in_the_order_of_their_rows():
    assert parse_groups("replica_groups=[4,2]<=[2,2,2]T(2,1,0)", 8) == [
        (0, 4), (2, 6), (1, 5), (3, 7),
    ]  # fmt: skip
    assert parse_groups("replica_groups=mesh['a'=8] {'a':(2)2}", 8) == [
        (0, 2), (1, 3), (4, 6), (5, 7),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "groups", ["{{0,1,2},{3,4,5,6,7}}", "{{0,7},{1,6},{2,5},{3,4}}", "{{0,1},{2,3}}", "@new<x>"]
)
def test_groups_that_follow_no_axes_are_an_error(groups):
    line = f"ROOT %r = f32[8,16] all-reduce(%p), channel_id=1, replica_groups={groups}, {GLOBAL}"
    with pytest.raises(HloError, match=r"(follow no axes of mesh x=2 y=2 z=2|its form must be)"):
        found(line)


def test_axes_of_meshes_of_other_shapes():
    assert axes_of([range(8)], {"x": 1, "y": 2, "z": 4}) == ("y", "z")
    assert axes_of([[n] for n in range(8)], MESH) == ()
    assert axes_of_pairs([(0, 1), (1, 4), (4, 5), (5, 0)], MESH) == ("x", "z")
    assert axes_of_pairs([(3, 3)], MESH) == ()
    with pytest.raises(HloError, match=r"device 9 .*mesh of 8; use"):
        axes_of_pairs([(0, 9)], MESH)


def test_a_program_for_another_number_of_devices_is_an_error():
    with pytest.raises(HloError, match="mesh has 4 devices and the program is for 8; use"):
        census(program("ROOT %r = f32[8,16] copy(%p)"), {"x": 1, "y": 2, "z": 2})


@pytest.mark.parametrize(
    ("opcode", "groups", "header", "axes"),
    [
        ("all-reduce", "channel_id=1, replica_groups={{0}}, ", "num_partitions=8", "xyz"),
        ("all-reduce", "replica_groups={{0,1},{2,3},{4,5},{6,7}}, ", "replica_count=8", "z"),
        ("all-reduce", "replica_groups={{0,1}}, ", "replica_count=2, num_partitions=4", "x"),
        ("all-to-all", "channel_id=1, dimensions={0}, replica_groups={{0,1},{2,3}}, ",
         "replica_count=2, num_partitions=4", "z"),
        ("all-reduce", "replica_groups={{0}}, ", "num_partitions=8", ""),
    ],
)  # fmt: skip
def test_ids_are_replicas_partitions_or_both(opcode, groups, header, axes):
    line = f"ROOT %r = f32[8,16] {opcode}(%p), {groups}to_apply=%add"
    assert [one.axes for one in found(line, header=header)] == ([tuple(axes)] if axes else [])


@pytest.mark.parametrize(("channel", "axis"), [("channel_id=1, ", "z"), ("", "x")])
def test_pairs_of_a_permute_are_partitions_or_replicas(channel, axis):
    line = f"ROOT %r = f32[8,16] collective-permute(%p), {channel}source_target_pairs={{{{0,1}}}}"
    made = found(line, header="replica_count=2, num_partitions=4")
    assert made == [Collective("permute", (axis,), 512)]


def test_asynchronous_forms_count_once():
    wrapped = """
%wrapped (q: f32[8,16]) -> f32[4,16] {
  %q = f32[8,16]{1,0} parameter(0)
  ROOT %s = f32[4,16]{1,0} reduce-scatter(%q), channel_id=3, replica_groups=[4,2]<=[8], dimensions={0}, use_global_device_ids=true, to_apply=%add
}"""  # noqa: E501
    made = found(
        """
        %g = (f32[8,16]{1,0}, f32[16,16]{1,0}) all-gather-start(%p), channel_id=1, replica_groups=[4,2]<=[8], dimensions={0}, use_global_device_ids=true
        %gd = f32[16,16]{1,0} all-gather-done(%g)
        %c = (f32[8,16]{1,0}, f32[8,16]{1,0}, u32[], u32[]) collective-permute-start(%p), channel_id=2, source_target_pairs={{0,1},{1,0}}
        %cd = f32[8,16]{1,0} collective-permute-done(%c)
        %a = ((f32[8,16]), f32[4,16], s32[]) async-start(%p), calls=%wrapped
        %u = ((f32[8,16]), f32[4,16], s32[]) async-update(%a), calls=%wrapped
        %ad = f32[4,16] async-done(%u), calls=%wrapped
        %t = ((f32[8,16]), f32[8,16], s32[]) all-to-all-start(%p), channel_id=4, replica_groups=[4,2]<=[8], dimensions={0}
        ROOT %td = f32[8,16] all-to-all-done(%t)
        """,  # noqa: E501
        wrapped,
    )
    assert made == [
        Collective("all-gather", ("z",), 1024),
        Collective("all-to-all", ("z",), 512),
        Collective("permute", ("z",), 512),
        Collective("reduce-scatter", ("z",), 512),
    ]
    assert all(one.asynchronous for one in made)


def test_operands_printed_with_their_shapes_and_rarer_kinds():
    made = found(
        """
        %i = s32[2]{0} constant({0, 1})
        %r = f32[8,16] ragged-all-to-all(f32[8,16]{1,0} %p, f32[8,16]{1,0} %p, s32[2] %i, s32[2] %i, s32[2] %i, s32[2] %i), channel_id=1, replica_groups=[4,2]<=[8]
        %b = f32[8,16] collective-broadcast(f32[8,16]{1,0:T(8,128)} %p), channel_id=2, replica_groups=[2,4]<=[8]
        ROOT %s = (f32[8,16], f32[8,16], /*index=2*/f32[8,16]) all-gather(f32[8,16]{1,0} %p, %p, /*index=2*/%p), channel_id=3, replica_groups=[4,2]<=[8], dimensions={0}, use_global_device_ids=true
        """  # noqa: E501
    )
    assert made == [
        Collective("all-gather", ("z",), 1024, count=3),
        Collective("all-to-all", ("z",), 512),
        Collective("broadcast", ("y", "z"), 512),
    ]


# A TPU's reduce-scatter: a fusion that keeps a slice of an all-reduce.
SCATTER = """
%all-reduce-scatter.3 (q: f32[8,16]) -> f32[4,16] {
  %q = f32[8,16]{1,0:T(8,128)} parameter(0)
  %all-reduce.1 = f32[8,16]{1,0:T(8,128)} all-reduce(%q), channel_id=7, replica_groups={{0,4},{1,5},{2,6},{3,7}}, use_global_device_ids=true, to_apply=%add
  %id = u32[] partition-id()
  %zero = s32[] constant(0)
  ROOT %slice = f32[4,16]{1,0:T(8,128)} dynamic-slice(%all-reduce.1, %id, %zero), dynamic_slice_sizes={4,16}
}"""  # noqa: E501
FUSED = (
    "%f = f32[4,16] fusion(%p), kind=kCustom, calls=%all-reduce-scatter.3, "
    'metadata={op_name="jit(step)/decode_step/layer_0/mlp/dot_general"}'
)


def test_an_all_reduce_that_keeps_a_slice_is_a_reduce_scatter():
    assert found(FUSED, SCATTER) == [Collective("reduce-scatter", ("x",), 512, 1, "layer_0/mlp")]
    kept = SCATTER.replace("dynamic-slice(", "copy(")
    assert [one.kind for one in found(FUSED, kept)] == ["all-reduce"]
    other = SCATTER.replace("all-reduce-scatter.3", "fused.3"), FUSED.replace("-scatter", "")
    assert [
        one.kind
        for one in found(other[1].replace("all-reduce.3", "fused.3"), other[0])
    ] == ["all-reduce"]  # fmt: skip


def test_what_asynchronous_wrappers_repeat_counts_once_in_each_computation():
    other = SCATTER.replace("scatter.3", "scatter.4")
    again = FUSED.replace("%f", "%g").replace("scatter.3", "scatter.4")
    assert len(found(f"{FUSED}\n{again}", SCATTER, other)) == 1
    assert found(f"{FUSED}\n{again}", SCATTER, other)[0].count == 1
    separate = other.replace("channel_id=7", "channel_id=8")
    assert found(f"{FUSED}\n{again}", SCATTER, separate)[0].count == 2


CALLED = """
%inner (q: f32[8,16]) -> f32[8,16] {
  %q = f32[8,16]{1,0} parameter(0)
  ROOT %r = f32[8,16]{1,0} all-reduce(%q), channel_id=1, replica_groups=[4,2]<=[8], use_global_device_ids=true, to_apply=%add
}"""  # noqa: E501


def test_a_computation_called_twice_counts_twice():
    twice = (
        "%a = f32[8,16] call(%p), to_apply=%inner\nROOT %b = f32[8,16] call(%a), to_apply=%inner"
    )
    assert found(twice, CALLED) == [Collective("all-reduce", ("z",), 512, count=2)]


LOOP = """
%body (s: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %s = (s32[], f32[8,16]) parameter(0)
  %n = s32[] get-tuple-element(%s), index=0
  %two = s32[] constant(2)
  %next = s32[] add(%n, %two)
  %v = f32[8,16] get-tuple-element(%s), index=1
  %r = f32[8,16] all-reduce(%v), channel_id=1, replica_groups=[4,2]<=[8], use_global_device_ids=true, to_apply=%add
  ROOT %t = (s32[], f32[8,16]) tuple(%next, %r)
}
%less (a: s32[], b: s32[]) -> pred[] {
  %a = s32[] parameter(0)
  %b = s32[] parameter(1)
  ROOT %lt = pred[] compare(%a, %b), direction=LT
}
%cond (s: (s32[], f32[8,16])) -> pred[] {
  %s = (s32[], f32[8,16]) parameter(0)
  %n = s32[] get-tuple-element(%s), index=0
  %end = s32[] constant(11)
  ROOT %go = pred[] fusion(%n, %end), kind=kLoop, calls=%less
}"""  # noqa: E501
ENTER = """
%start = s32[] constant(1)
%state = (s32[], f32[8,16]) tuple(%start, %p)
ROOT %w = (s32[], f32[8,16]) while(%state), condition=%cond, body=%body"""


def test_trip_counts_are_given_or_derived_or_an_error():
    assert found(ENTER, LOOP)[0].count == 5  # 1, 3, 5, 7, 9
    assert found(ENTER, LOOP.replace("constant(2)", "constant(1)"))[0].count == 10
    known = ', backend_config={"known_trip_count":{"n":"7"},"known_init_step":{"init":"1"}}'
    assert found(ENTER + known, LOOP)[0].count == 7
    quoted = r', backend_config="{\"known_trip_count\":{\"n\":\"3\"}}"'
    assert found(ENTER + quoted, LOOP)[0].count == 3
    for other in ("direction=GT", "direction=NE"):
        with pytest.raises(HloError, match=r"trip count of loop w is unknown .*; count with"):
            found(ENTER, LOOP.replace("direction=LT", other))
    with pytest.raises(HloError, match="trip count"):
        found(ENTER, LOOP.replace("add(%n, %two)", "multiply(%n, %two)"))
    with pytest.raises(HloError, match="trip count"):  # what is counted up is not what is asked
        found(ENTER, LOOP.replace("index=0\n  %two", "index=2\n  %two"))


def test_a_collective_in_a_condition_runs_once_more_than_the_body():
    asks = LOOP.replace(
        "%end = s32[] constant(11)",
        "%end = s32[] constant(11)\n  %u = f32[8,16] get-tuple-element(%s), index=1\n"
        f"  %r = f32[8,16] all-reduce(%u), channel_id=2, replica_groups=[2,4]<=[8], {GLOBAL}",
    )
    assert [one.count for one in found(ENTER, asks)] == [6, 5]


@pytest.mark.parametrize(
    "line",
    [
        "ROOT %r = f32[8,16] all-squash(%p), channel_id=1",
        "ROOT %r = f32[8,16] whirl(%p), channel_id=1, replica_groups=[4,2]<=[8]",
        "%k = token[] after-all()\nROOT %r = (f32[8,16], u32[], token[]) send(%p, %k)",
    ],
)
def test_a_collective_of_unknown_kind_is_an_error_never_skipped(line):
    with pytest.raises(HloError, match="a collective that the census does not know; add it"):
        found(line)


def test_text_that_is_not_a_program_is_an_error():
    with pytest.raises(HloError, match="without ENTRY; pass"):
        parse("module @jit_f { }")
    with pytest.raises(HloError, match="calls inner, which is not in it"):
        found("ROOT %a = f32[8,16] call(%p), to_apply=%inner")


def test_merging_and_the_record():
    one = Collective("all-reduce", ("x",), 8, 2, "layer_0", element="f32", asynchronous=True)
    two = Collective("all-reduce", ("x",), 8, 3, "layer_1")
    assert merge([two, one, one]) == [
        Collective("all-reduce", ("x",), 8, 3, "layer_1"),
        Collective("all-reduce", ("x",), 8, 4, "layer_0"),
    ]
    assert without_places([two, one]) == [Collective("all-reduce", ("x",), 8, 5)]
    assert json.loads(json.dumps(one.as_record())) == {
        "kind": "all-reduce", "axes": ["x"], "payload_bytes": 8, "count": 2, "where": "layer_0",
    }  # fmt: skip
