"""The four tables of a microbenchmark: memory, matmuls, collectives and calls."""

from collections.abc import Callable, Mapping, Sequence

from profiles.report.numbers import byte_size, exact, number, short
from profiles.report.table import Table


def tables(found: Mapping[str, dict], devices: int, kind: str) -> str:
    """All tables below their titles, for a terminal.

    Args:
      found: the parts of a document.
      devices: how many were measured.
      kind: JAX's name of them.
    """
    on = f"{exact(devices)} x {kind}"
    parts = [
        (f"Reading memory, measured on {on}, GB/s of all devices together", _memory(found)),
        (f"Matmuls, measured on {on}, TFLOP/s of all devices together", _matmul(found)),
        (f"Collectives, measured on {on}, microseconds by payload per device", _collectives(found)),
        (f"Calls of a program that hardly computes, measured on {on}", _dispatch(found)),
    ]
    return "\n\n".join(f"{title}\n\n{table.terminal()}" for title, table in parts if table.rows)


def _memory(found: Mapping[str, dict]) -> Table:
    rate = lambda row: number(row["bytes_per_s"] / 1e9)  # noqa: E731
    head, rows = _pivot(found["memory"]["samples"], "bytes", "kernel", rate, byte_size)
    return Table(head, [*rows, ["fitted", *_fitted(found["memory"], 1e9)]])


def _matmul(found: Mapping[str, dict]) -> Table:
    rate = lambda row: number(row["flops_per_s"] / 1e12)  # noqa: E731
    head, rows = _pivot(found["matmul"]["samples"], "rows", "dtype", rate, exact)
    return Table(head, [*rows, ["fitted", *_fitted(found["matmul"], 1e12)]])


def _fitted(part: dict, unit: float) -> list[str]:
    rates = [fit.get("bytes_per_s", fit.get("flops_per_s")) for fit in part["fits"]]
    return [number(rate / unit) for rate in rates]


def _pivot(
    samples: Sequence[dict],
    down: str,
    across: str,
    cell: Callable[[dict], str],
    name: Callable[[float], str],
) -> tuple[list[str], list[list[str]]]:
    """A heading and rows: one field of the samples down, another across."""
    columns = list(dict.fromkeys(row[across] for row in samples))
    by_place = {(row[down], row[across]): cell(row) for row in samples}
    sizes = dict.fromkeys(row[down] for row in samples)
    rows = [[name(size), *(by_place[size, column] for column in columns)] for size in sizes]
    return [down, *columns], rows


def _collectives(found: Mapping[str, dict]) -> Table:
    """A row for each kind and set of axes; payloads differ a little where devices do."""
    times: dict[tuple[str, str], list[dict]] = {}
    for row in found["collectives"]["samples"]:
        times.setdefault((row["kind"], "".join(row["axes"])), []).append(row)
    rows = []
    for fit in found["collectives"]["fits"]:
        key = fit["kind"], "".join(fit["axes"])
        cells = [number(row["seconds"]["median"] * 1e6) for row in times[key]]
        rate = number(fit["bytes_per_s"] / 1e9)
        rows.append([*key, exact(fit["devices"]), *cells, number(fit["fixed_s"] * 1e6), rate])
    first = next(iter(times.values()), [])
    sizes = [f"{short(row['payload_bytes'])}B" for row in first]
    return Table(
        ["collective", "axes", "devices", *sizes, "fitted\nfixed us", "fitted\nGB/s"], rows
    )


def _dispatch(found: Mapping[str, dict]) -> Table:
    rows = []
    for row in found["dispatch"]["samples"]:
        times = (number(row[name]["median"] * 1e6) for name in ("returned", "awaited"))
        rows.append([exact(row["arguments"]), *times])
    return Table(["arguments", "call returned\nafter us", "result there\nafter us"], rows)
