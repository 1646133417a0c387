"""What XLA makes in place of the collectives that a layout asks for: always on CPUs, or on TPUs.

Fake CPU devices test a layout only as far as this list is right: it has nothing that was not seen
in compiled programs, and a test compiles each entry. On a GPU nothing is substituted.
"""

import dataclasses
from collections.abc import Iterable

from numpy.typing import DTypeLike

from profiles.floor.collective import Collective, merge, without_places
from profiles.floor.element_types import element_of


@dataclasses.dataclass(frozen=True)
class Substitute:
    """One thing that a compiler replaces.

    Attributes:
      asked: a kind of collective, or an element type by HLO's name.
      made: what stands in the program instead.
      bytes: bytes of what is made for each byte of what was asked for.
      why: the reason.
    """

    asked: str
    made: str
    bytes: int
    why: str


_WIDE = "its collectives do not know the type, so both sides convert"

CPU_SUBSTITUTES = {
    substitute.asked: substitute
    for substitute in (
        Substitute(
            "reduce-scatter",
            "all-reduce",
            1,
            "it never merges a partial sum's all-reduce and the slice after it; one written in "
            "shard_map stays",
        ),
        Substitute("bf16", "f32", 2, _WIDE),
        Substitute("f8e4m3fn", "f16", 2, _WIDE),
        Substitute("f8e5m2", "f16", 2, _WIDE),
        Substitute("s4", "s8", 2, _WIDE),
        Substitute("u4", "u8", 2, _WIDE),
    )
}

TPU_SUBSTITUTES = {
    "reduce-scatter": Substitute(
        "reduce-scatter",
        "all-reduce",
        1,
        "its own wants tiles: up to v6e a device's part of bfloat16 must be a multiple of 256 "
        "numbers along what is scattered, float32 must not be one row for each sequence, and on "
        "v4 and v5p a group must lie along one axis of the torus; else it slices an all-reduce",
    )
}
"""What the TPU compiler may replace; it depends on sizes and chip (seen with libtpu 0.0.42)."""


def settle(expected: Iterable[Collective], found: Iterable[Collective]) -> list[Collective]:
    """The collectives that a layout asks for, with what a TPU program has in place of some.

    Args:
      expected: the collectives that the layout asks for.
      found: the collectives of the program.

    Returns:
      The expected ones, merged without their places; of those in `TPU_SUBSTITUTES` as many are
      replaced as the program lacks, and has of what replaces them.
    """
    expected = without_places(expected)
    counts = {_key(one): one.count for one in without_places(found)}
    asked = {_key(one): one.count for one in expected}
    settled = []
    for one in expected:
        if entry := TPU_SUBSTITUTES.get(one.kind):
            made = dataclasses.replace(one, kind=entry.made)
            lacking = one.count - counts.get(_key(one), 0)
            spare = counts.get(_key(made), 0) - asked.get(_key(made), 0)
            if (count := min(lacking, spare)) > 0:
                settled.append(dataclasses.replace(made, count=count))
                one = dataclasses.replace(one, count=one.count - count)
        settled += [one] if one.count else []
    return merge(settled)


def _key(one: Collective) -> tuple[str, tuple[str, ...], int]:
    return one.kind, one.axes, one.payload_bytes


def substitute(expected: Iterable[Collective], platform: str, dtype: DTypeLike) -> list[Collective]:
    """What a compiler will show of the collectives that a layout asks for, merged and sorted.

    Which mesh axes a scattered result lies over is not in an all-reduce: whoever compares these
    must compare the program's output shardings as well.

    Args:
      expected: the collectives asked for; one by hand keeps its kind, not its element type.
      platform: JAX's name of the platform.
      dtype: element type of collectives that do not name one.
    """
    if platform != "cpu":
        return merge(expected)
    return merge(_on_cpu(one, one.element or element_of(dtype)) for one in expected)


def _on_cpu(one: Collective, element: str) -> Collective:
    kind = None if one.by_hand else CPU_SUBSTITUTES.get(one.kind)
    width = CPU_SUBSTITUTES.get(element)
    return dataclasses.replace(
        one,
        kind=kind.made if kind else one.kind,
        element=width.made if width else element,
        payload_bytes=one.payload_bytes * (width.bytes if width else 1),
    )
