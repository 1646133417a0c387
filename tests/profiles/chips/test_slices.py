"""Slices: what a topology's text stands for, and which there are."""

import pytest

from profiles.chips.chip import chips
from profiles.chips.slices import parse_slice
from sharding.error_types import UsageError


@pytest.mark.parametrize(
    ("text", "chips", "devices", "hosts", "domain"),
    [
        ("v3:4x4", 16, 32, 4, 16),
        ("v5e:1x1", 1, 1, 1, 1),
        ("v5e:4x4", 16, 16, 2, 16),
        ("v5p:2x2x4", 16, 16, 4, 16),
        ("v5p:16x16x24", 6144, 6144, 1536, 6144),
        ("tpu7x:4x4x4", 64, 128, 16, 64),
        ("tpu8i:1024", 1024, 2048, None, 1024),
        ("h100:8", 8, 8, 1, 8),
        ("h100:3", 3, 3, 1, 3),
        ("h100:32", 32, 32, 4, 8),
        ("gb200:72", 72, 72, 18, 72),
        ("gb200:144", 144, 144, 36, 72),
        ("rtx4090:2", 2, 2, None, 2),  # how many a machine holds is not known
    ],
)
def test_a_topology_says_how_many_chips_there_are_and_where(text, chips, devices, hosts, domain):
    found = parse_slice(text)
    assert str(found) == text and found.chip.name == text.split(":")[0]
    assert (found.chips, found.devices, found.hosts, found.domain) == (
        chips,
        devices,
        hosts,
        domain,
    )


@pytest.mark.parametrize(
    ("text", "wraps"),
    [
        ("v5e:8x8", (False, False)),
        ("v6e:8x16", (False, True)),
        ("v5e:16x16", (True, True)),
        ("v4:2x4x4", (False, False, False)),  # not of whole cubes: its sides of 4 do not wrap
        ("v4:4x4x4", (True, True, True)),
        ("v5p:4x4x12", (True, True, True)),
        ("tpu7x:4x8x8", (True, True, True)),
        ("v3:32x32", (None, None)),
        ("tpu8t:4x4x4", (None, None, None)),
        ("h100:8", (False,)),
    ],
)
def test_dimensions_wrap_by_the_chips_rule(text, wraps):
    """As MaxText's table of slices has them, for v4, v5e, v5p and v6e."""
    assert parse_slice(text).wraps == wraps


@pytest.mark.parametrize(
    "text",
    ["v5e", "v5e:", "v5e:4x", "v5e:0x4", "v5e:4**4", ":8", "h100:-8", "", "h100:" + "9" * 5000],
)
def test_text_of_another_form_is_refused(text):
    with pytest.raises(UsageError, match=r"topology is '.*write .* such as v5e:4x4"):
        parse_slice(text)


def test_more_slices_than_anyone_has_are_refused():
    assert parse_slice("v5e:4x4*1024").count == 1024
    with pytest.raises(UsageError, match=r"h100:8\*999999, of 999999 slices; use 1024 at most"):
        parse_slice("h100:8*999999")


def test_an_unknown_chip_is_refused():
    with pytest.raises(UsageError, match=r"is 'v9', which is not known .*v5e"):
        parse_slice("v9:2x2")


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("v5e:3x3", "v5e:2x4 or v5e:4x4"),
        ("v5e:16x32", "v5e:16x16 or v5e:8x16"),
        ("v5e:16", "v5e:4x4 or v5e:4x8"),
        ("v5e:4x3", "v5e:4x4 or v5e:2x4"),
        ("v5p:8", "v5p:2x2x2 or v5p:2x2x4"),
        ("v5p:4x4x6", "v5p:4x4x8 or v5p:4x4x4"),
        ("v4:16x16x32", "v4:8x16x32 or v4:16x16x16"),
        ("tpu8t:64", "tpu8t:1x1x64 or tpu8t:1x2x32"),
        ("h100:12", "h100:16 or h100:8"),
        ("gb200:73", "gb200:72 or gb200:71"),
    ],
)
def test_a_slice_that_there_is_not_is_refused_with_the_nearest_ones(text, nearest):
    with pytest.raises(UsageError, match=f"is {text}, a slice .* does not come in; use {nearest}$"):
        parse_slice(text)


@pytest.mark.parametrize(
    ("turned", "text"),
    [("v5e:4x2", "v5e:2x4"), ("v4:4x2x2", "v4:2x2x4"), ("v5p:8x4x4*2", "v5p:4x4x8*2"),
     ("v4:1x2x2", "v4:2x2x1"), ("tpu7x:12x4x8", "tpu7x:4x8x12")],
)  # fmt: skip
def test_a_turned_torus_is_the_same_slice(turned, text):
    assert parse_slice(turned) == parse_slice(text) and str(parse_slice(turned)) == text


def test_listed_slices_are_of_their_chips_dimensions_and_fit_their_largest():
    for chip in chips():
        for shape in chip.wiring.shapes or ():
            found = parse_slice(f"{chip.name}:{shape}")
            assert len(found.shape) == chip.wiring.dimensions
            assert found.chips <= chip.wiring.domain


def test_slices_that_a_network_joins_are_counted_together():
    two = parse_slice("v5e:16x16*2")
    assert str(two) == "v5e:16x16*2" and two.chips == two.devices == 512 and two.domain == 256
    assert two.wraps == (True, True)
    with pytest.raises(UsageError, match="write a chip and the shape"):
        parse_slice("v5e:16x16*0")
