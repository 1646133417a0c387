"""Times of collectives on links, against closed forms of rings, lines, switches and networks."""

import itertools
import random

import pytest

from profiles.chips.calibration import calibration_of
from profiles.chips.chip import chips
from profiles.chips.slices import parse_slice
from profiles.expected.links import embeddings, floor_bounds, mesh_items
from profiles.floor.collective import KINDS, Collective
from sharding.error_types import LayoutError


def embedding(topology: str, mesh: dict[str, int], for_floor: bool = True):
    """The first way to lay a mesh on a slice."""
    return embeddings(parse_slice(topology), mesh_items(mesh), for_floor)[0]


def seconds(topology: str, mesh: dict[str, int], kind: str, axes: str, payload: float = 1e9):
    return max(
        floor_bounds([Collective(kind, tuple(axes), payload)], embedding(topology, mesh)).values()
    )


CUBE = {"x": 4, "y": 4, "z": 4}
V4_LINK = 50e9  # the highest credible figure, one way


@pytest.mark.parametrize(
    ("kind", "axes", "expected"),
    [
        ("all-gather", "x", 3 / 4 / 2),  # both ways round a ring
        ("reduce-scatter", "x", 3 / 4 / 2),
        ("all-reduce", "x", 2 * 3 / 4 / 2),
        ("all-gather", "xyz", 63 / 64 / 6),  # over all six links
        ("all-to-all", "x", 4 / 8),  # a quarter of the all-gather of what all have, about
        ("all-to-all", "xyz", 4 / 8),  # half of each crosses the middle of each dimension
        ("permute", "x", 1 / 2),
    ],
)
def test_collectives_on_wrapped_rings_take_what_closed_forms_say(kind, axes, expected):
    assert seconds("v4:4x4x4", CUBE, kind, axes) == pytest.approx(expected * 1e9 / V4_LINK)


def test_lines_wait_for_their_ends():
    mesh = {"x": 4, "y": 1, "z": 4}
    line, ring = (seconds(t, m, "all-gather", "x") for t, m in
                  (("v5e:4x4", mesh), ("v5e:16x16", {"x": 16, "y": 1, "z": 16})))  # fmt: skip
    assert line == pytest.approx(3 / 4 * 1e9 / 50e9)  # the end has one link
    assert ring == pytest.approx(15 / 16 * 1e9 / 100e9)
    both = seconds("v5e:4x4", {"x": 1, "y": 1, "z": 16}, "all-gather", "z")
    assert both == pytest.approx(15 / 16 * 1e9 / 100e9)  # a corner has two


def test_a_sum_on_a_line_comes_back_while_it_is_still_sent():
    """Towards one end and back from it, at once, takes the payload; half as much again on two."""
    one = seconds("v5e:4x4", {"x": 4, "y": 1, "z": 4}, "all-reduce", "x")
    assert one == pytest.approx(1e9 / 50e9)
    two = seconds("v5e:4x4", {"x": 1, "y": 1, "z": 16}, "all-reduce", "z")
    assert two == pytest.approx(2 * 15 / 16 * 1e9 / (2 * 2 * 3 / 4 * 50e9))  # all links, on average


def test_what_lines_gather_and_scatter_may_pass_in_opposite_directions():
    laid = embedding("v5e:4x4", {"x": 4, "y": 1, "z": 4})
    pair = [Collective(kind, ("x",), 1e9) for kind in ("all-gather", "reduce-scatter")]
    both, one = (max(floor_bounds(some, laid).values()) for some in (pair, pair[:1]))
    assert both == pytest.approx(1e9 / 50e9) and one == pytest.approx(3 / 4 * 1e9 / 50e9)


def test_a_switch_may_add_up_on_the_way_in_a_floor_alone():
    mesh, collective = {"x": 1, "y": 1, "z": 8}, Collective("all-reduce", ("z",), 1e9)
    assert embedding("h100:8", mesh).floor_seconds(collective) == pytest.approx(1e9 / 450e9)
    calibration = calibration_of("h100")
    start, per_byte = embedding("h100:8", mesh, for_floor=False).expected_cost(
        "all-reduce", ("z",), calibration
    )
    assert per_byte == pytest.approx(2 * 7 / 8 / 450e9) and start == calibration.collective_s


def test_between_hosts_the_network_is_shared_by_the_chips_of_each():
    mesh = {"x": 2, "y": 1, "z": 8}
    within = seconds("h100:16", mesh, "all-gather", "z")
    assert within == pytest.approx(7 / 8 * 1e9 / 450e9)
    across = seconds("h100:16", mesh, "all-gather", "x")
    assert across == pytest.approx(1 / 2 * 1e9 / 50e9)  # each chip on its own
    everywhere = seconds("h100:64", {"x": 8, "y": 1, "z": 8}, "all-gather", "xz")
    assert everywhere == pytest.approx(7 / 8 * 1e9 / (8 * 50e9))
    assert seconds("h100:16", mesh, "all-to-all", "xz") == pytest.approx(1 / 2 * 1e9 / 50e9)


def test_groups_of_different_dimensions_overlap_and_those_of_one_add_up():
    laid = embedding("v4:4x4x4", CUBE)
    x, y = (Collective("all-gather", (axis,), 1e9) for axis in "xy")
    alone = max(floor_bounds([x], laid).values())
    assert max(floor_bounds([x, y], laid).values()) == pytest.approx(alone)
    assert max(floor_bounds([x, x], laid).values()) == pytest.approx(2 * alone)


def test_a_mesh_that_no_axis_fits_is_laid_over_several_dimensions():
    laid = embedding("v5e:4x4", {"x": 1, "y": 8, "z": 2})
    assert sorted(laid.extents(("y",))) == [2, 4] and sorted(laid.extents(("z",))) == [1, 2]
    with pytest.raises(LayoutError, match="mesh is 1x2x4, of 8 devices, but v5e:4x4 has 16"):
        embedding("v5e:4x4", {"x": 1, "y": 2, "z": 4})


def test_halves_of_a_chip_are_devices():
    assert embedding("tpu7x:2x2x1", {"x": 2, "y": 2, "z": 2}).extents(("x", "y", "z"))[0] == 2


def test_no_collective_is_expected_faster_than_its_floor():
    draw = random.Random(0)
    slices = ["v3:4x4", "v4:2x2x2", "v5p:4x4x8", "v5e:8x16", "v6e:16x16", "tpu7x:2x2x2",
              "tpu8i:64", "a100-80gb:8", "gb200:144", "l4:4", "mi300x:16"]  # fmt: skip
    assert {text.split(":")[0] for text in slices} <= {chip.name for chip in chips()}
    for text, kind in itertools.product(slices, KINDS[:5]):
        slice = parse_slice(text)
        x = draw.choice([n for n in range(1, slice.devices + 1) if slice.devices % n == 0])
        mesh = mesh_items({"x": x, "y": 1, "z": slice.devices // x})
        calibration = calibration_of(slice.chip.name)
        for axes in (("x",), ("z",), ("x", "z")):
            collective = Collective(kind, axes, draw.choice([1, 1e5, 1e9]))
            floor = min(
                laid.floor_seconds(collective) for laid in embeddings(slice, mesh, for_floor=True)
            )
            for laid in embeddings(slice, mesh, for_floor=False):
                start, per_byte = laid.expected_cost(kind, axes, calibration)
                assert start + per_byte * collective.payload_bytes / calibration.link >= floor


def test_slices_are_joined_by_the_network_of_their_hosts():
    mesh = {"x": 2, "y": 16, "z": 16}
    within, across = (seconds("v5e:16x16*2", mesh, "all-gather", axes) for axes in ("z", "xyz"))
    assert within == pytest.approx(15 / 16 * 1e9 / 100e9)
    ring = 255 / 256 * 1e9 / 200e9
    assert across == pytest.approx(max(ring, 1 / 2 * 1e9 / (256 * 3.125e9)))
    alone = seconds("v5e:16x16*2", mesh, "all-reduce", "x")
    assert alone == pytest.approx(1e9 / 3.125e9)  # each chip with its fellow in the other slice


def test_a_floor_knows_every_way_to_lay_a_mesh_and_an_expected_time_the_plain_ones():
    mesh = mesh_items({"x": 4, "y": 16, "z": 16})
    every, plain = (
        embeddings(parse_slice("v5p:8x8x16"), mesh, for_floor) for for_floor in (True, False)
    )
    assert len(every) > len(plain) and len(set(map(str, every))) == len(every)


def test_an_odd_line_has_no_two_halves_to_exchange():
    laid = embedding("tpu8t:3x3x3", {"x": 3, "y": 3, "z": 3})
    (dimension, *_) = laid.dimensions
    found = laid.floor_seconds(Collective("all-to-all", ("x",), 1e9))
    links = 2 if dimension.kind == "ring" else 1
    assert found == pytest.approx(2 / 3 * 1e9 / (links * dimension.rate))
