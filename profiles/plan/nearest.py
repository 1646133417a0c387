"""What misses which target where nothing meets all of them, and by which way it is nearest."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Sequence

from profiles.chips.slices import slices_of
from profiles.plan.cells import Cell
from profiles.plan.search import Candidate, Search, Targets
from profiles.plan.space import Space
from profiles.plan.words import gigabytes, lacking_bytes, name_of, slice_of
from profiles.report.numbers import exact, milliseconds, several


def nearest(search: Search) -> str:
    """What the targets are, and each that alone could be relaxed, to what and by which way."""
    space, targets = search.space, search.targets
    fitting = [cell for cell in space.cells if lacking_bytes(cell) <= 0]
    if not fitting:
        return (
            f"model is {space.model.name}, which fits on none of the slices looked at; "
            f"{_shortest(search)}{_holding(space)}"
        )
    found = sorted(_relaxed(search, fitting), key=lambda each: each[0])
    said = " and ".join(targets.words()) or "none"
    if not found:
        point = Search(space, Targets(prompt=targets.prompt)).cheapest(fitting)
        if not point:
            return f"targets are {said}, but no step is expected to end at a cost that has a number"
        return (
            f"targets are {said}, which nothing meets, nor if one of them is dropped; the cheapest "
            f"with none: {name_of(point)}: {milliseconds(point.step_s)} per step, "
            f"{exact(point.cell.usd_per_hour)} USD per hour"
        )
    ways = "; or ".join(f"{words} ({name_of(point)})" for _, words, point in found)
    return f"targets are {said}, which nothing meets; nearest: {ways}"


def _shortest(search: Search) -> str:
    """Where least is lacking, of slices within the targets of size and price if there are any."""
    targets = search.targets
    cells = [cell for cell in search.space.cells if targets.admits(cell)]
    short = min(cells or search.space.cells, key=lacking_bytes)
    limits = (
        Targets(chips=targets.chips, usd_per_hour=targets.usd_per_hour).words() if cells else []
    )
    within = f" within {' and '.join(limits)}" if limits else ""
    if math.isinf(lacking_bytes(short)):
        return f"no layout goes with it on any{within}"
    return (
        f"nearest{within}: {slice_of(short)}, {short.dtypes}, where "
        f"{gigabytes(lacking_bytes(short))} per chip are lacking"
    )


def _holding(space: Space) -> str:
    """The slice of least cost, of the same chips, that would hold what the plan asks for."""
    prices = {slice.chip: price for slice, price in space.slices}
    found = []
    for chip, price in prices.items():
        every = tuple((slice, price) for slice in slices_of(chip))
        cells = dataclasses.replace(space, slices=every).cells
        found += itertools.islice(
            (each for each in cells if each.may_fit and lacking_bytes(each) <= 0), 1
        )
    if not found:
        return ""
    least = min(found, key=lambda cell: cell.usd_per_hour)
    return f"; the least slice that holds it is {least.slice}, {least.dtypes}"


def _relaxed(search: Search, cells: Sequence[Cell]) -> Iterable[tuple[float, str, Candidate]]:
    """For each target: by which factor, to what it alone would have to be relaxed, and a way."""
    targets = search.targets
    admitted = [cell for cell in cells if targets.admits(cell)]
    if targets.step_s is not None and (point := search.fastest(admitted)):
        words = f"{milliseconds(point.step_s)} per step"
        yield point.step_s / targets.step_s, words, point
    sizes = (("chips", lambda cell: cell.chips, lambda count: several(count, "chip")),
             ("usd_per_hour", lambda cell: cell.usd_per_hour,
              lambda usd: f"{exact(usd)} USD per hour"))  # fmt: skip
    for name, size, words in sizes:
        limit = getattr(targets, name)
        if limit is not None and (found := _first(search.relaxed(**{name: None}), cells, size)):
            needed = size(found.cell)
            yield needed / limit, words(needed), found
    if targets.first_token_s is not None:
        loose = search.relaxed(first_token_s=None)
        points = loose.front(admitted)
        if points:
            point = min(points, key=lambda p: search.first_token(p.cell, p.number))
            first = search.first_token(point.cell, point.number)
            yield first / targets.first_token_s, f"{milliseconds(first)} to the first token", point


def _first(
    search: Search, cells: Sequence[Cell], size: Callable[[Cell], float]
) -> Candidate | None:
    """The cheapest way on the cells of the least size that have any."""
    admitted = sorted((cell for cell in cells if search.targets.admits(cell)), key=size)
    for _, here in itertools.groupby(admitted, size):
        if point := search.cheapest(list(here)):
            return point
    return None
