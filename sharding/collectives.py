"""Changing how arrays are divided, one collective at a time.

XLA turns a change of sharding into one collective where one will do. Asked for several at once, as
from heads over y and z to batch over all axes, it gathers the whole array on every device instead.
"""

import jax

from sharding.placement import Axes, entry, entry_axes

Division = tuple[Axes, ...]
"""The mesh axes that divide each dimension, major first."""


def reshard(array: jax.Array, spec: jax.P) -> jax.Array:
    """The array divided as `spec` says, by the moves of `moves` one after another.

    Args:
      array: with explicit sharding.
      spec: an entry for each dimension.
    """
    start = tuple(entry_axes(axes) for axes in jax.typeof(array).sharding.spec)
    start += ((),) * (array.ndim - len(start))
    for division in moves(start, tuple(entry_axes(axes) for axes in spec)):
        array = jax.reshard(array, jax.P(*map(entry, division)))
    return array


def moves(start: Division, target: Division) -> list[Division]:
    """Divisions on the way from one to another, each a single collective from the one before.

    A move takes mesh axes from the end of one dimension's and either puts them at the end of
    another's (all-to-all) or drops them (all-gather); at last, axes that are new divide what each
    device has already (no collective).

    Returns:
      The divisions after each move; the last is `target`. Empty where nothing changes.
    """
    now, path = [list(axes) for axes in start], []
    wanted = {axis: dim for dim, axes in enumerate(target) for axis in axes}
    while stray := [dim for dim, axes in enumerate(now) if tuple(axes) != target[dim][: len(axes)]]:
        _move(now, stray, target, wanted)
        path.append(tuple(map(tuple, now)))
    if path[-1:] != [target] and start != target:
        path.append(target)
    return path


def _move(now: list[list[str]], stray: list[int], target: Division, wanted: dict[str, int]) -> None:
    """Makes one move in place: an all-to-all if any is possible, else an all-gather."""
    for dim in stray:
        to = wanted.get(now[dim][-1])
        if to is None or to == dim:
            continue
        moved: list[str] = []
        while now[dim] and wanted.get(now[dim][-1]) == to and not _settled(now, dim, target):
            moved.insert(0, now[dim].pop())
        if tuple(now[to] + moved) == target[to][: len(now[to]) + len(moved)]:
            now[to] += moved
            return
        now[dim] += moved
    dim = stray[0]
    now[dim].pop()
    while not _settled(now, dim, target) and wanted.get(now[dim][-1], dim) == dim:
        now[dim].pop()


def _settled(now: list[list[str]], dim: int, target: Division) -> bool:
    return tuple(now[dim]) == target[dim][: len(now[dim])]
