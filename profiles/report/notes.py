"""Notes under a table: what a reader must know of steps that did run, each a line."""

from collections.abc import Sequence

from profiles.report.compiled_lines import compiled_lines, unpacked_lines
from profiles.report.lines import rows_in_words
from profiles.report.numbers import exact, ms, several
from profiles.report.record import Record

ALLOCATED = 2  # from so many times the filled slots on, what reading all would cost is told
BOUND = 0.9  # part of a step from which on its call is what it waits for


def notes(points: Sequence[Record]) -> list[str]:
    """What a reader must know of steps that did run: what the floor leaves out, or got wrong."""
    odd: dict[str, list[Record]] = {}
    for point in points:
        if point.ran and not point.ok:
            odd.setdefault(point.status, []).append(point)
    found = [
        f"{status(rows[0])}" + f" (and {several(len(rows) - 1, 'row')} more)" * (len(rows) > 1)
        for rows in odd.values()
    ]
    found += [*compiled_lines(points), *unpacked_lines(points), *_allocated(points)]
    found = [f"-  {each}" for each in [*found, *_dispatched(points)]]
    if any((point.fraction_of_floor or 0) > 1 for point in points):
        found.append(
            "(!)  error: a step measured below its floor; the bandwidth or the timing is wrong"
        )
    return found


def _allocated(points: Sequence[Record]) -> list[str]:
    """How much longer decode steps would take if they read slots that no token has filled."""
    found: dict[tuple[int, int], list[tuple[float, int]]] = {}
    for point in points:
        filled, size = (point.context or 0) + 1, point.bytes_per_chip or {}
        many = (point.slots or 0) >= ALLOCATED * filled
        if point.ran and many and "kv_unfilled" in size:
            more = size["kv_unfilled"] * point.weight_floor_s / size["weights_read"]
            found.setdefault((point.slots, filled), []).append((more, point.batch))
    notes = []
    for (slots, filled), rows in found.items():
        cost = " and ".join(
            f"{ms(more)} ms at batch {exact(batch)}"
            for more, batch in dict.fromkeys((min(rows), max(rows)))
        )
        what = f"reading all {exact(slots)} allocated slots in place of {exact(filled)} filled ones"
        notes.append(f"{what} would take longer by {cost}, at the rate of the floor")
    return notes


def _dispatched(points: Sequence[Record]) -> list[str]:
    """Steps that devices could not run faster, because the call of one takes nearly as long."""
    bound = [
        point
        for point in points
        if point.ran and point.host_s and point.host_s["median"] > BOUND * point.step_s["median"]
    ]
    if not bound:
        return []
    return [
        f"bound by dispatch, {rows_in_words(bound, points)}: a call takes more than {BOUND:.0%} of "
        "a step to return, so that the host can hardly launch steps faster"
    ]


def status(point: Record) -> str:
    """A record's status with its message."""
    return ": ".join(filter(None, (point.status, point.message)))
