"""What the timed programs were compiled to, in lines under a table: one for all that are sound.

And one line for each thing that is not as the floor and the layout have it, naming its rows.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from profiles.report.lines import rows_in_words
from profiles.report.numbers import byte_size
from profiles.report.record import Record

SAME = 0.005  # part by which bytes in memory may differ from those that the floor counts
LARGE = 0.01  # part of all arguments from which arrays that a step moves are named
FEW = 3  # differing collectives and moved arrays that are named


class Fault(NamedTuple):
    """Something that a program has or does and need not.

    Attributes:
      words: what, with ``{}`` where its bytes belong.
      bytes: how many on each chip.
    """

    words: str
    bytes: float = 0.0


class Aspect(NamedTuple):
    """One thing that a line tells of programs: in words if it is sound, and what is not."""

    sound: str
    faults: Callable[[Record], Iterator[Fault]]


def compiled_lines(points: Sequence[Record]) -> list[str]:
    """What the programs of measured records were compiled to; none where that is not known.

    Args:
      points: all records of a table.
    """
    known = [point for point in points if point.ran and point.compiled]
    read = [point for point in known if "unread" not in point.compiled]
    lines, sound = [], []
    for aspect in ASPECTS:
        found: dict[str, list[tuple[Record, float]]] = {}
        for point in read:
            for fault in aspect.faults(point):
                found.setdefault(fault.words, []).append((point, fault.bytes))
        alike: dict[str, list[str]] = {}
        for words, rows in found.items():
            where = rows_in_words([point for point, _ in rows], points)
            alike.setdefault(where, []).append(words.format(_range([size for _, size in rows])))
        lines += [f"compiled, {where}: {'; '.join(said)}" for where, said in alike.items()]
        sound += [aspect.sound] * (not found)
    if read:
        resident, temporary = (
            _range([_of_chip(point, point.compiled[name]) for point in read])
            for name in ("resident_bytes", "temporary_bytes")
        )
        each = " per chip" * any((point.chips or 1) > 1 for point in read)
        head = f"compiled: weights and cache {resident}{each}", *sound
        lines.insert(0, ", ".join([*head, f"temporaries {temporary}"]))
    unread = [point for point in known if "unread" in point.compiled]
    if unread:
        where, why = rows_in_words(unread, points), unread[0].compiled["unread"]
        lines.append(f"compiled, {where}: this form of program cannot be read ({why})")
    return lines


def unpacked_lines(points: Sequence[Record]) -> list[str]:
    """Types that the compiler holds in more bits: how much, and in which steps if not all."""
    found: dict[str, list[tuple[float, int]]] = {}
    for point in points:
        size = (point.bytes_per_chip or {}).get("weights_unpacked", 0)
        found.setdefault(point.weight_dtype or "", []).append((size, point.batch))
    lines = []
    for name, steps in found.items():
        if largest := max(steps)[0]:
            batches = dict.fromkeys(str(batch) for size, batch in steps if size)
            batch_note = "" if all(size for size, _ in steps) else f" of batch {', '.join(batches)}"
            what = f"unpacks {byte_size(largest)} of weights as a whole in each step{batch_note}"
            lines.append(f"{name}: the compiler {what}")
    return lines


def _resident(point: Record) -> Iterator[Fault]:
    counted = point.bytes_per_chip["weights_resident"] + point.bytes_per_chip["kv_resident"]
    more = _of_chip(point, point.compiled["resident_bytes"]) - counted
    if abs(more) > SAME * counted:
        than = "more" if more > 0 else "less"
        yield Fault(f"weights and cache take {{}} {than} than the floor counts", abs(more))


def _in_place(point: Record) -> Iterator[Fault]:
    if not point.compiled["cache_aliased"]:
        size = _of_chip(point, point.compiled["cache_not_aliased_bytes"])
        yield Fault(
            "cache NOT in place: each step writes {} of it to other memory; donate the cache", size
        )


def _moved(point: Record) -> Iterator[Fault]:
    """Whole arrays that are moved, in as many bits or in more."""
    step = point.compiled
    unpacked = bool(point.bytes_per_chip.get("weights_unpacked"))  # told in a line of its own
    large = [
        each
        for each in step["copies"]
        if each["bytes"] * each["count"] >= LARGE * step["argument_bytes"]
        and not (unpacked and each["widened"] and not each["what"].startswith("cache/"))
        and (step["cache_aliased"] or not each["what"].startswith("cache/"))
    ]
    for each in large[:FEW]:
        held = " and held whole in more bits" * each["widened"]
        words = f"{each['what']}{held}, {{}} a step"
        yield Fault(words, _of_chip(point, each["bytes"] * each["count"]))
    if len(large) > FEW:
        rest = sum(each["bytes"] * each["count"] for each in large[FEW:])
        yield Fault("other whole arrays, {} a step", _of_chip(point, rest))


def _collectives(point: Record) -> Iterator[Fault]:
    differing = point.compiled["differing"]
    if differing:
        more = f" and {len(differing) - FEW} more" * (len(differing) > FEW)
        yield Fault(f"collectives NOT as the layout asks: {', '.join(differing[:FEW])}{more}")


ASPECTS = (
    Aspect("as the floor counts them", _resident),
    Aspect("cache in place", _in_place),
    Aspect("no whole copies", _moved),
    Aspect("collectives as the layout asks", _collectives),
)


def _of_chip(point: Record, size: float) -> float:
    """Bytes of a chip, all of its devices together."""
    return size * (point.devices or 1) / (point.chips or 1)


def _range(sizes: Sequence[float]) -> str:
    low, high = byte_size(min(sizes)), byte_size(max(sizes))
    return low if low == high else f"{low} to {high}"
