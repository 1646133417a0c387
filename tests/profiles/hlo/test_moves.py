"""Whole arrays that are written to main memory again are found, and what only looks so is not."""

import pytest

from profiles.hlo.flow import argument_name, walk
from profiles.hlo.moves import grouped, moves
from profiles.hlo.overlap import overlaps
from profiles.hlo.program import parse, placed

WEIGHT = "bf16[512,1024]{1,0:T(8,128)(2,1)}"
FAST = "bf16[512,1024]{1,0:T(8,128)(2,1)S(1)}"
TURNED = "bf16[512,1024]{0,1:T(8,128)(2,1)}"
BYTES = 512 * 1024 * 2

FUSIONS = f"""
%update (p0: bf16[512,1024], p1: bf16[8,1024], p2: s32[]) -> bf16[512,1024] {{
  %p0 = {WEIGHT} parameter(0)
  %p1 = bf16[8,1024]{{1,0:T(8,128)(2,1)}} parameter(1)
  %p2 = s32[] parameter(2)
  ROOT %dus = {WEIGHT} dynamic-update-slice(%p0, %p1, %p2, %p2)
}}

%relayout (q0: bf16[512,1024], q1: bf16[8,1024], q2: s32[]) -> bf16[512,1024] {{
  %q0 = {WEIGHT} parameter(0)
  %q1 = bf16[8,1024]{{1,0:T(8,128)(2,1)}} parameter(1)
  %q2 = s32[] parameter(2)
  %turned = {TURNED} copy(%q0)
  ROOT %dus = {TURNED} dynamic-update-slice(%turned, %q1, %q2, %q2)
}}
"""


def found(
    *lines: str, root: str = "end", before: str = "", argument: str = "cache.keys[3]"
) -> list:
    """Moves of a program of these lines over one weight, with a new row and an index."""
    body = "\n".join(f"  {line}" for line in lines)
    text = f"""HloModule m, is_scheduled=true
{FUSIONS}{before}
ENTRY %main (w: bf16[512,1024], row: bf16[8,1024], i: s32[]) -> bf16[512,1024] {{
  %w = {WEIGHT} parameter(0), metadata={{op_name="{argument}"}}
  %row = bf16[8,1024]{{1,0:T(8,128)(2,1)}} parameter(1)
  %i = s32[] parameter(2)
{body}
}}
"""
    program = parse(text.replace(f"%{root} =", f"ROOT %{root} ="))
    return moves(program, walk(program))


CASES = {
    "copied": ([f"%end = {WEIGHT} copy(%w)"], 2 * BYTES),
    "laid out again": ([f"%end = {TURNED} copy(%w)"], 2 * BYTES),
    "converted from bf16 to f32": (["%end = f32[512,1024]{1,0:T(8,128)} convert(%w)"], 3 * BYTES),
    "written back from VMEM": (
        [
            f"%in = ({FAST}, {WEIGHT}, u32[]) copy-start(%w)",
            f"%there = {FAST} copy-done(%in)",
            f"%out = ({WEIGHT}, {FAST}, u32[]) copy-start(%there)",
            f"%end = {WEIGHT} copy-done(%out)",
        ],
        BYTES,
    ),
}


@pytest.mark.parametrize("how", CASES)
def test_a_whole_array_written_again_is_a_move(how):
    lines, size = CASES[how]
    (move,) = found(*lines)
    assert (move.origin, move.how, move.bytes, move.count) == ("cache/keys/3", how, size, 1)
    assert move.widened == (how == "converted from bf16 to f32")


def test_the_write_of_a_new_state_is_none_but_a_copy_of_it_is():
    state = {"argument": "cache.states[3].matrices"}
    added = f"""
%add (p0: bf16[512,1024]) -> bf16[512,1024] {{
  %p0 = {WEIGHT} parameter(0)
  ROOT %sum = {WEIGHT} add(%p0, %p0)
}}
"""
    step = f"%end = {WEIGHT} fusion(%w), kind=kLoop, calls=%add"
    assert found(step, before=added, **state) == []
    assert [move.how for move in found(step, before=added)] == ["copied"]
    assert found(*CASES["written back from VMEM"][0], **state) == []
    for how in ("copied", "laid out again", "converted from bf16 to f32"):
        (move,) = found(*CASES[how][0], **state)
        assert (move.origin, move.how) == ("cache/states/3/matrices", how)


@pytest.mark.parametrize(
    "lines",
    [
        [f"%in = ({FAST}, {WEIGHT}, u32[]) copy-start(%w)", f"%end = {FAST} copy-done(%in)"],
        [f"%end = {WEIGHT} fusion(%w, %row, %i), kind=kLoop, calls=%update"],
        [f"%end = {WEIGHT} dynamic-update-slice(%w, %row, %i, %i)"],
        ["%end = bf16[4,128,1024]{2,1,0:T(8,128)(2,1)} bitcast(%w)"],
        ["%end = f32[8,512]{1,0:T(8,128)} dot(%row, %w), lhs_contracting_dims={1}, "
         "rhs_contracting_dims={1}"],
        ["%end = bf16[64,1024]{1,0:T(8,128)(2,1)} slice(%w), slice={[0:64], [0:1024]}"],
    ],
    ids=["fetched", "updated in a fusion", "updated", "seen otherwise", "multiplied", "in part"],
)  # fmt: skip
def test_what_only_reads_or_updates_in_place_is_none(lines):
    assert found(*lines) == []


def test_an_update_after_a_change_of_layout_is_a_move():
    (move,) = found(f"%end = {TURNED} fusion(%w, %row, %i), kind=kLoop, calls=%relayout")
    assert move.how == "laid out again" and move.bytes == 2 * BYTES


def test_parts_that_make_up_a_whole_are_moves_each():
    half = "bf16[256,1024]{1,0:T(8,128)(2,1)}"
    lines = [f"%{n} = {half} slice(%w), slice={{[{a}:{a + 256}], [0:1024]}}"
             for n, a in (("a", 0), ("end", 256))]  # fmt: skip
    assert [(move.how, move.bytes) for move in found(*lines)] == [("copied by parts", BYTES)] * 2


def test_moves_in_a_loop_count_for_every_round():
    state = f"({WEIGHT}, s32[])"
    loop = f"""
%body (s: (bf16[512,1024], s32[])) -> (bf16[512,1024], s32[]) {{
  %s = {state} parameter(0)
  %x = {WEIGHT} get-tuple-element(%s), index=0
  %n = s32[] get-tuple-element(%s), index=1
  %again = {WEIGHT} copy(%x)
  ROOT %t = {state} tuple(%again, %n)
}}

%cond (c: (bf16[512,1024], s32[])) -> pred[] {{
  %c = {state} parameter(0)
  ROOT %yes = pred[] constant(true)
}}
"""
    (move,) = found(
        f"%start = {state} tuple(%w, %i)",
        f"%loop = {state} while(%start), condition=%cond, body=%body, "
        'backend_config={"known_trip_count":{"n":"5"}}',
        f"%end = {WEIGHT} get-tuple-element(%loop), index=0",
        before=loop,
    )
    assert (move.count, move.total_bytes) == (5, 10 * BYTES)


def test_layers_are_grouped_and_counts_added_up():
    lines, _ = CASES["copied"]
    (move,) = found(*lines)
    assert [(m.origin, m.count, m.bytes) for m in grouped([move, move])] == [
        ("cache/keys/*", 2, 2 * BYTES)
    ]


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("bf16[8,100]{1,0:T(8,128)(2,1)}", 8 * 128 * 2),
        ("f32[5,7,128]{2,0,1:T(8,128)}", 7 * 8 * 128 * 4),
        ("f32[4096]{0:T(1024)}", 4 * 4096),
        ("s32[]{:T(128)}", 4),
        ("f32[3,5]{1,0}", 60),
    ],
)
def test_tiles_are_filled_up(shape, size):
    (array,) = placed(shape)
    assert array.padded == size


def test_arrays_know_their_memory():
    first, second = placed(f"({FAST}, {WEIGHT}, /*index=2*/u32[]{{:S(2)}})")[:2]
    assert (first.space, second.space, first.tiles) == (1, 0, "T(8,128)(2,1)")


@pytest.mark.parametrize(
    ("written", "name"),
    [
        (r"parameters[\'layers\'][0][\'mlp\'][\'down\']", "layers/0/mlp/down"),
        ("cache.keys[1]", "cache/keys/1"),
        (r"cache.values[1][\'scales\']", "cache/values/1/scales"),
        ("tokens", "tokens"),
    ],
)
def test_arguments_have_the_names_of_arrays(written, name):
    assert argument_name(written) == name


SUM = "bf16[8]{0:T(128)S(1)} all-reduce(%a), replica_groups={{0,1}}, to_apply=%add"
WORK = "bf16[8]{0:T(128)S(1)} fusion(%a), kind=kLoop, calls=%f"
FETCH = f"({FAST}, {WEIGHT}, u32[]) copy-start(%w)"
START = f"%end = {SUM.replace('all-reduce', 'all-reduce-start')}"
DONE = "%done = bf16[8]{0:T(128)S(1)} all-reduce-done(%end)"
CALLED = """%f (p: bf16[8]) -> bf16[8] {
  %p = bf16[8]{0} parameter(0)
  ROOT %n = bf16[8]{0} negate(%p)
}

%g (p: bf16[8]) -> bf16[] {
  %p = bf16[8]{0} parameter(0)
  ROOT %d = bf16[] convolution(%p, %p), dim_labels=f_i->
}

%h (p: bf16[8]) -> bf16[] {
  %p = bf16[8]{0} parameter(0)
  ROOT %s = bf16[] reduce(%p, %p), dimensions={0}, metadata={op_name="jit(f)/mlp/dot_general"}
}
"""
SCHEDULES = {
    "alone": [f"%end = {SUM}"],
    "beside a prefetch": [f"%in = {FETCH}", f"%end = {SUM}", f"%there = {FAST} copy-done(%in)"],
    "beside other work": [START, f"%work = {WORK}", DONE],
    "beside a product": [START, f"%work = {WORK}", f"%more = {WORK.replace('%f', '%g')}", DONE],
}


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        *((lines, how) for how, lines in SCHEDULES.items()),
        ([f"%in = {FETCH}", f"%there = {FAST} copy-done(%in)", f"%end = {SUM}"], "alone"),
        ([START, f"%work = {WORK.replace('%f', '%h')}", DONE], "beside a product"),
        ([START, DONE], "alone"),
        ([f"%in = {FETCH.replace('512,1024', '512').replace('{1,0', '{0')}", f"%end = {SUM}",
          f"%there = {FAST} copy-done(%in)"], "alone"),
        ([f"%in = ({WEIGHT}, {FAST}, u32[]) copy-start(%w)", f"%end = {SUM}",
          f"%there = {WEIGHT} copy-done(%in)"], "alone"),
    ],
    ids=[*SCHEDULES, "after a fetch", "of one token", "nothing between", "a vector", "a write"],
)  # fmt: skip
def test_what_runs_beside_a_collective(lines, expected):
    body = "\n".join(
        f"  {line}" for line in ["%w = f32[] parameter(0)", "%a = f32[] parameter(1)", *lines]
    )
    program = parse(f"HloModule m\n\n{CALLED}\nENTRY %main () -> f32[] {{\n{body}\n}}\n")
    entry = program[program.entry]
    assert overlaps(program)(entry, entry.instructions["end"]) == expected
