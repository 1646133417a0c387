"""Collectives apart from matmuls: changes of sharding, one at a time; look-ups in a divided table.

XLA turns a change of sharding into one collective where one will do. Asked for several at once, as
from heads over y and z to batch over all axes, it gathers the whole array on every device instead.
"""

import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sharding.layout import Axes
from sharding.placement import entry, entry_axes
from sharding.platform_workarounds import by_platform
from sharding.quantization import from_bits, to_bits

Division = tuple[Axes, ...]
"""The mesh axes that divide each dimension, major first."""


def reshard(array: jax.Array, spec: jax.P) -> jax.Array:
    """The array divided as `spec` says, by the steps of `reshard_path` one after another.

    Args:
      array: an array with explicit sharding.
      spec: an entry for each dimension.
    """
    now = tuple(entry_axes(axes) for axes in jax.typeof(array).sharding.spec)
    now += ((),) * (array.ndim - len(now))
    for division in reshard_path(now, tuple(entry_axes(axes) for axes in spec)):
        changed = sum(a != b for a, b in zip(now, division, strict=True))
        if changed > 2 and _is_all_to_all(now, division):
            array = _exchange(array, now, division)
        else:
            array = jax.reshard(array, jax.P(*map(entry, division)))
        now = division
    return array


def reshard_path(start: Division, target: Division) -> list[Division]:
    """Divisions on the way from one to another, each a single collective from the one before.

    A move takes mesh axes from the end of dimensions' and either puts them at the end of others'
    (all-to-all) or drops them (all-gather); at last, axes that are new divide what each device has
    already (no collective).

    Returns:
      The divisions after each move; the last is `target`. Empty where nothing changes.
    """
    now, path = [list(axes) for axes in start], []
    target_dims = {axis: dim for dim, axes in enumerate(target) for axis in axes}
    while stray := [dim for dim, axes in enumerate(now) if tuple(axes) != target[dim][: len(axes)]]:
        _advance(now, stray, target, target_dims)
        path.append(tuple(map(tuple, now)))
        if len(path) > 1 and _is_all_to_all(path[-3] if len(path) > 2 else start, path[-1]):
            del path[-2]  # two all-to-alls are one
    if path[-1:] != [target] and start != target:
        path.append(target)
    return path


def _advance(
    now: list[list[str]], stray: list[int], target: Division, target_dims: dict[str, int]
) -> None:
    """Makes one move in place: an all-to-all if any is possible, else an all-gather."""
    for dim in stray:
        to = target_dims.get(now[dim][-1])
        if to is None or to == dim:
            continue
        moved: list[str] = []
        while now[dim] and target_dims.get(now[dim][-1]) == to and not _is_prefix(now, dim, target):
            moved.insert(0, now[dim].pop())
        if tuple(now[to] + moved) == target[to][: len(now[to]) + len(moved)]:
            now[to] += moved
            return
        now[dim] += moved
    dim = stray[0]
    now[dim].pop()
    while not _is_prefix(now, dim, target) and target_dims.get(now[dim][-1], dim) == dim:
        now[dim].pop()


def _is_all_to_all(before: Division, after: Division) -> bool:
    """Whether all that changes is that mesh axes go from ends of dimensions to ends of others."""
    pairs = list(zip(before, after, strict=True))
    nested = all(a[: len(b)] == b or b[: len(a)] == a for b, a in pairs)
    return nested and set(sum(before, ())) == set(sum(after, ()))


def _exchange(array: jax.Array, before: Division, after: Division) -> jax.Array:
    """Mesh axes from some dimensions to others in one all-to-all, where XLA would make several."""
    pairs = list(zip(before, after, strict=True))
    lost, gained = [b[len(a) :] for b, a in pairs], [a[len(b) :] for b, a in pairs]
    moved = sum(gained, ())
    names = [name for dim, axes in enumerate(gained) for name in (*axes, dim)]
    merged = [name for dim, axes in enumerate(lost) for name in (*axes, dim)]

    def local(part: jax.Array) -> jax.Array:
        chips = {axis: jax.lax.axis_size(axis) for axis in moved}
        split_shares = [math.prod(chips[axis] for axis in axes) for axes in gained]
        sizes = chips | {
            dim: size // n
            for dim, (size, n) in enumerate(zip(part.shape, split_shares, strict=True))
        }
        part = part.reshape([sizes[name] for name in names])
        order = [*moved, *range(array.ndim)]  # a piece for each chip, then what each piece holds
        part = part.transpose([names.index(name) for name in order])
        part = part.reshape(-1, *part.shape[len(moved) :])
        part = jax.lax.all_to_all(part, moved, split_axis=0, concat_axis=0, tiled=True)
        part = part.reshape([sizes[name] for name in order])  # a piece from each chip
        part = part.transpose([order.index(name) for name in merged])
        gathered_shares = [math.prod(chips[axis] for axis in axes) for axes in lost]
        return part.reshape([sizes[dim] * n for dim, n in enumerate(gathered_shares)])

    old, new = (jax.P(*map(entry, division)) for division in (before, after))
    return jax.shard_map(local, in_specs=old, out_specs=new, check_vma=False)(array)


def _is_prefix(now: list[list[str]], dim: int, target: Division) -> bool:
    return tuple(now[dim]) == target[dim][: len(now[dim])]


def look_up(table: jax.Array, tokens: jax.Array, spec: jax.P) -> jax.Array:
    """Rows of a table whose rows and columns mesh axes may divide.

    Each device looks up what it has, zeros for what others have. So only looked-up rows move.

    Args:
      table: [V, D].
      tokens: [B, T] int32, whole on every device.
      spec: sharding of the result.

    Returns:
      [B, T, D].
    """
    rows, columns = (entry_axes(axes) for axes in jax.typeof(table).sharding.spec)
    steps = look_up_steps(rows, columns, *(entry_axes(spec[dim]) for dim in (0, 2)))

    def local(table: jax.Array, tokens: jax.Array) -> jax.Array:
        index = tokens - (jax.lax.axis_index(rows) * table.shape[0] if rows else 0)
        is_local = (index >= 0) & (index < table.shape[0])
        looked_up = _rows(table, jnp.where(is_local, index, 0))
        looked_up = jnp.where(is_local[..., None], looked_up, 0)  # {rows unsummed}
        if steps.exchanged:
            looked_up = jax.lax.all_to_all(looked_up, steps.exchanged, 0, 2, tiled=True)
        if steps.scattered:
            looked_up = jax.lax.psum_scatter(
                looked_up, steps.scattered, scatter_dimension=steps.along, tiled=True
            )
        return jax.lax.psum(looked_up, steps.summed) if steps.summed else looked_up

    tokens = jax.reshard(tokens, jax.P(entry(steps.batch), None))
    looked_up = jax.shard_map(
        local,
        in_specs=(jax.P(entry(rows), entry(columns)), jax.typeof(tokens).sharding.spec),
        out_specs=jax.P(entry(steps.result[0]), None, entry(steps.result[1])),
        check_vma=False,
    )(table, tokens)
    return reshard(looked_up, spec)


def _rows(table: jax.Array, indices: jax.Array) -> jax.Array:
    """Rows of a table of one device.

    XLA:CPU converts a whole table of 16-bit floats before it takes rows of it, but not one of
    integers; XLA:TPU copies the whole table to see integers in it.
    """
    return by_platform(
        table,
        indices,
        cpu=lambda table, indices: from_bits(to_bits(table)[indices], table),
        default=lambda table, indices: table[indices],
    )


class LookUpSteps(NamedTuple):
    """How looked-up rows [B, T, D] come to lie as wanted, from a table of divided rows and columns.

    Attributes:
      batch: mesh axes that divide the tokens looked up, taken without a collective.
      exchanged: axes that go from the columns to the batch by an all-to-all.
      scattered: axes over which zeros for other devices' rows are summed and scattered ...
      along: ... over this dimension: 0 the batch, 2 the columns.
      summed: axes over which they are summed whole.
      result: axes of batch and columns in the end; what is left is for `reshard`.
    """

    batch: Axes
    exchanged: Axes
    scattered: Axes
    along: int
    summed: Axes
    result: tuple[Axes, Axes]


def look_up_steps(rows: Axes, columns: Axes, batch: Axes, result_columns: Axes) -> LookUpSteps:
    """Plans `look_up`.

    Args:
      rows: mesh axes that divide the table's rows.
      columns: mesh axes that divide its columns.
      batch: mesh axes that shall divide the batch.
      result_columns: mesh axes that shall divide the result's columns.
    """
    free = tuple(itertools.takewhile(lambda axis: axis not in rows + columns, batch))
    exchanged = columns if columns and batch[len(free) :][: len(columns)] == columns else ()
    batch_axes, column_axes = free + exchanged, () if exchanged else columns
    scattered, along = (), 2
    if rows and result_columns == column_axes + rows:
        scattered, column_axes = rows, column_axes + rows
    elif rows and batch == batch_axes + rows:
        scattered, along, batch_axes = rows, 0, batch_axes + rows
    summed = () if scattered else rows
    return LookUpSteps(free, exchanged, scattered, along, summed, (batch_axes, column_axes))
