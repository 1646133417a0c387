"""What a run found, as data and as text: documents, tables and fits.

A *record* is one step's dictionary and a *document* one run's; both leave out what is not known.
Four times are told apart everywhere: floor, expected, compiled and measured. A percentage is only
printed below a title that names the bandwidth it refers to.
"""

import platform
import textwrap
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from typing import NamedTuple

import numpy as np

from profiles.files import check_writable as check_writable
from profiles.files import write_csv as write_csv
from profiles.files import write_json as write_json
from profiles.numbers import byte_size, exact, ms, number, several
from sharding.errors import FloorlineError

Record = dict
WIDTH = 110  # columns of a terminal that a table may fill
TIMES, TO = "\N{MULTIPLICATION SIGN}", "\N{EN DASH}"

# What makes two records points of one line, drawn or fitted against batch.
LINE_FIELDS = (
    "model", "phase", "device_kind", "devices", "mesh", "context", "tokens_per_sequence", "layout",
    "attention", "expert_parallel", "collectives", "dtype", "weight_dtype", "kv_dtype", "experts",
)  # fmt: skip
# Of those, what a title says for all rows of a table, or a column for each where they differ.
TITLE_FIELDS = (
    "model", "phase", "layout", "attention", "collectives", "dtype", "weight_dtype", "kv_dtype",
)  # fmt: skip


def document(
    command: Sequence[str],
    points: Sequence[Record],
    *,
    device_kind: str,
    started: str,
    bandwidth: dict | None,
    **more: object,
) -> dict:
    """One run's document: its records and what is needed to read or repeat them.

    Args:
      command: the command line, program first.
      points: one record per step measured or computed.
      device_kind: JAX's name of the devices.
      started: when the run began, ISO 8601.
      bandwidth: `{"bytes_per_s", "source": "measured" | "published"}`, what floors were taken at;
        None where the run has no floor.
      **more: what the script adds, such as `fits` or `calibration`.
    """
    head = {"schema": 1, "command": list(command), "versions": versions()}
    run = {"device_kind": device_kind, "started": started}
    if bandwidth is not None:
        run["bandwidth"] = dict(bandwidth)
    return {**head, **run, **more, "points": list(points)}


def versions() -> dict[str, str]:
    """Versions of Python and of the installed libraries that decide a step's time."""
    found = {"python": platform.python_version()}
    for name in ("jax", "jaxlib", "flax", "libtpu"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def summarise(samples: Sequence[float]) -> dict:
    """Median and spread of times in seconds, with the samples themselves."""
    p10, median, p90 = (float(v) for v in np.percentile(samples, (10, 50, 90)))
    return {"median": median, "p10": p10, "p90": p90, "samples": [float(s) for s in samples]}


# Titles ------------------------------------------------------------------------------------------


def subject(points: Sequence[Record]) -> str:
    """One line naming model, phase, dtypes, devices and layout of some records."""

    def said(field: str, words: str = "{}") -> str:
        values = ", ".join(_values(points, field))
        return words.format(values) if values else ""

    dtype = said("dtype")
    stored = [("weight_dtype", "weights {}"), ("kv_dtype", "KV cache {}")]
    stored = [said(field, words) for field, words in stored if said(field) not in ("", dtype)]
    parts = [
        said("model"),
        said("phase"),
        dtype + f" ({', '.join(stored)})" * bool(stored),
        said("device_kind", "on {}"),
        said("layout", "layout {}"),
        said("attention", "attention by {}"),
        said("expert_parallel", "expert-parallel"),
        said("collectives", "collectives {}"),
    ]
    return ", ".join(filter(None, parts))


def bandwidth_words(bandwidth: dict, device_kind: str = "") -> str:
    """The peaks that floors were taken at, and whether they were measured or published."""
    words = f"{number(bandwidth['bytes_per_s'] / 1e9)} GB/s"
    if "peak_flops_per_s" in bandwidth:
        words += f" and {number(bandwidth['peak_flops_per_s'] / 1e12)} TFLOP/s"
    words += f" ({bandwidth['source']})"
    return words + ", one memory shared by all CPU devices" * ("cpu" in device_kind.lower())


def _values(points: Iterable[Record], field: str) -> list[str]:
    """The distinct values of a field as text, in the order they appear."""
    return list(dict.fromkeys(field_text(point[field]) for point in points if field in point))


def field_text(value: object) -> str:
    """A record's field in a few characters: a mesh as `1x2x1`, the rest as it is."""
    return "x".join(str(size) for size in value.values()) if isinstance(value, dict) else str(value)


# Lines: records that differ only in batch --------------------------------------------------------


def lines(points: Iterable[Record]) -> list[list[Record]]:
    """Records grouped so that each group differs only in batch, and sorted by it."""
    groups: dict[tuple, list[Record]] = {}
    for point in points:
        groups.setdefault(tuple(field_text(point.get(f)) for f in LINE_FIELDS), []).append(point)
    return [sorted(group, key=lambda point: point["batch"]) for group in groups.values()]


def telling_fields(points: Sequence[Record]) -> list[str]:
    """Fields besides devices and context without which two lines would bear the same name."""
    found = []
    for field in LINE_FIELDS:
        seen: dict[tuple, set[str]] = {}
        for point in points:
            place = (point.get("devices"), point.get("context"))
            seen.setdefault(place, set()).add(field_text(point.get(field)))
        if any(len(values) > 1 for values in seen.values()):
            found.append(field)
    return found


_FITTED = ("weight_dtype", "kv_dtype")  # told of a fit since runs compare them


def fit(points: Sequence[Record]) -> dict:
    """Least-squares line of measured step time against batch, beside the floor's own line.

    Args:
      points: measured records of one mesh and context, at two batches or more.

    Returns:
      `intercept_s` and `slope_s` (measured), `weight_floor_s` and `kv_slope_floor_s` (floor, where
      the records carry them), and which line it is.
    """
    batches = [point["batch"] for point in points]
    if len(set(batches)) < 2:
        raise FloorlineError(f"batches to fit is {batches}; measure at two different ones or more")
    slope, intercept = np.polyfit(batches, [point["step_s"]["median"] for point in points], 1)
    found = {"intercept_s": float(intercept), "slope_s": float(slope)}
    if all("weight_floor_s" in point for point in points):
        # Touched experts can grow with batch; the least weights are what an intercept compares to.
        found["weight_floor_s"] = min(point["weight_floor_s"] for point in points)
    if all("kv_cache" in point.get("floor_terms_s", {}) for point in points):
        kv_cache = [point["floor_terms_s"]["kv_cache"] for point in points]
        found["kv_slope_floor_s"] = float(np.polyfit(batches, kv_cache, 1)[0])
    told = "mesh", "devices", "context", "layout", "attention", "expert_parallel", *_FITTED
    return found | {f: points[0][f] for f in told if f in points[0]}


def fits(points: Iterable[Record]) -> list[dict]:
    """A fit per mesh and context, of the records with status ok at two batches or more."""
    usable = (p for p in points if p.get("status", "ok") == "ok" and "step_s" in p)
    return [fit(line) for line in lines(usable) if len({p["batch"] for p in line}) > 1]


def fit_lines(fits: Sequence[dict]) -> list[str]:
    """Each fit as a line of text, measured first and its floor in brackets."""
    texts = []
    telling = [field for field in ("layout", *_FITTED) if len(_values(fits, field)) > 1]
    for line in fits:
        where = devices_words(line) + f", context {line.get('context')}" * ("context" in line)
        where = ", ".join([*(str(line.get(field)) for field in telling), where])
        sign = "-" if line["slope_s"] < 0 else "+"
        text = f"{where}: measured step = {ms(line['intercept_s'])} ms {sign} "
        text += f"{ms(abs(line['slope_s']))} ms {TIMES} batch"
        named = (
            ("weight_floor_s", "weight floor {} ms"),
            ("kv_slope_floor_s", f"KV floor {{}} ms {TIMES} batch"),
        )
        floor = "; ".join(words.format(ms(line[f])) for f, words in named if f in line)
        texts.append(text + f"   ({floor})" * bool(floor))
    return texts


def devices_words(point: dict) -> str:
    """Devices and mesh of a record or a fit, `2 devices (1x1x2)`."""
    mesh = f" ({field_text(point['mesh'])})" if "mesh" in point else ""
    return several(point.get("devices", 1), "device") + mesh


# Tables ------------------------------------------------------------------------------------------


class Column(NamedTuple):
    """A table's column: a heading of two rows, and a cell's text ("" where not known)."""

    heading: tuple[str, str]
    cell: Callable[[Record], str]
    key: str = ""  # the field that it shows, of those known before the step ran
    if_varied: bool = False  # shown only where records differ; the title says it otherwise
    of_floor: bool = False  # means nothing where the floor does not apply
    percentage: bool = False  # means nothing unless the bandwidth is named
    spare: bool = False  # left out when a terminal's width would not do


def _show(field: str, form: Callable = field_text) -> Callable[[Record], str]:
    return lambda point: form(point[field]) if field in point else ""


def _basis(point: Record) -> str:
    """Which of the times a record's rate and cost were taken from."""
    named = (("step_s", "measured"), ("expected_s", "expected"), ("floor_s", "floor"))
    return next((word for field, word in named if field in point), "")


def _by_basis(basis: str, field: str) -> Callable[[Record], str]:
    return lambda p: number(p[field]) if field in p and _basis(p) == basis else ""


def _devices_and_mesh(point: Record) -> str:
    mesh = f" ({field_text(point['mesh'])})" if "mesh" in point else ""
    return f"{point.get('devices', point.get('chips', ''))}{mesh}"


def _experts(point: Record) -> str:
    touched = point.get("experts_touched", {})
    return f"{touched['measured']:.1f} ({touched['expected']:.1f})" if "measured" in touched else ""


def _share(fraction: float) -> str:
    return f"{fraction:.0%}" + " (!)" * (fraction > 1)


COLUMNS = (
    *(Column(("", field), _show(field), key=field, if_varied=True) for field in TITLE_FIELDS),
    Column(("devices", "(x,y,z)"), _devices_and_mesh, key="devices"),
    Column(("", "context"), _show("context", exact), key="context"),
    Column(("", "batch"), _show("batch", exact), key="batch"),
    Column(
        ("tokens per", "sequence"),
        _show("tokens_per_sequence", exact),
        key="tokens_per_sequence",
        if_varied=True,
    ),
    Column(("experts read", "(if even)"), _experts, spare=True),
    Column(("measured", "step ms"), _show("step_s", lambda s: ms(s["median"]))),
    Column(
        ("measured", f"p10{TO}p90 ms"),
        _show("step_s", lambda s: f"{ms(s['p10'])}{TO}{ms(s['p90'])}"),
        spare=True,
    ),
    Column(("expected", "step ms"), _show("expected_s", ms)),
    Column(("floor", "step ms"), _show("floor_s", ms), of_floor=True),
    Column(("weight", "floor ms"), _show("weight_floor_s", ms), of_floor=True, spare=True),
    Column(("floor", "bound by"), _show("bound"), of_floor=True),
    Column(
        ("floor /", "measured"), _show("fraction_of_floor", _share), of_floor=True, percentage=True
    ),
    *(
        Column((basis, unit), _by_basis(basis, field))
        for field, unit in (("tokens_per_s", "tokens/s"), ("usd_per_million_tokens", "USD/Mtok"))
        for basis in ("measured", "expected", "floor")
    ),
)


def table(points: Sequence[Record], bandwidth: dict | None = None) -> str:
    """Records as an aligned table for a terminal, its title and its notes.

    Args:
      points: records, a row each; one whose step did not run shows its status and message.
      bandwidth: a document's; without it percentages are left out, for want of their peak.
    """
    columns, rows = _rows(points, bandwidth)
    while True:
        widths = [
            max(len(text) for text in (*column.heading, *(row[i] for row in rows if row[i:])))
            for i, column in enumerate(columns)
        ]
        spare = [i for i, column in enumerate(columns) if column.spare]
        if sum(widths) + 2 * len(widths) - 2 <= WIDTH or not spare:
            break
        del columns[spare[-1]]
        rows = [row[: spare[-1]] + row[spare[-1] + 1 :] for row in rows]

    def line(cells: Sequence[str]) -> str:
        return "  ".join(map(str.rjust, cells, widths))

    text = [*_title(points, bandwidth), ""]
    text += [line([column.heading[i] for column in columns]) for i in (0, 1)]
    for point, row in zip(points, rows, strict=True):
        start = line(row)
        if _ran(point):
            text.append(start.rstrip())
            continue
        indent = " " * (len(start) + 2)
        wrapped = textwrap.wrap(_status(point), max(WIDTH - len(indent), 30)) or [""]
        text += [f"{start}  {wrapped[0]}", *(indent + more for more in wrapped[1:])]
    notes = [part for note in _notes(points) for part in textwrap.wrap(note, WIDTH)]
    return "\n".join(text + [""] * bool(notes) + notes)


def markdown_table(points: Sequence[Record], bandwidth: dict | None = None) -> str:
    """The same table in Markdown, title above and notes below."""
    columns, rows = _rows(points, bandwidth)
    headings = [" ".join(column.heading).strip() for column in columns]
    for point, row in zip(points, rows, strict=True):
        if not _ran(point):
            row.append(_status(point).replace("|", "\\|"))
    headings += ["status"] * (max(map(len, rows), default=0) - len(headings))
    text = [*_title(points, bandwidth), "", "| " + " | ".join(headings) + " |"]
    text.append("|" + "---:|" * len(headings))
    for row in rows:
        text.append("| " + " | ".join(row + [""] * (len(headings) - len(row))) + " |")
    notes = [f"\n{note}" for note in _notes(points)]
    return "\n".join(text + notes)


def _title(points: Sequence[Record], bandwidth: dict | None) -> list[str]:
    kind = ", ".join(_values(points, "device_kind"))
    floor = f"Floor at {bandwidth_words(bandwidth, kind)}" if bandwidth else ""
    return [part for text in (subject(points), floor) for part in textwrap.wrap(text, WIDTH)]


def _rows(points: Sequence[Record], bandwidth: dict | None) -> tuple[list[Column], list[list[str]]]:
    """The columns worth showing and each record's cells; a row cut short holds only its keys."""

    def shown(column: Column, point: Record) -> str:
        if not (_ran(point) or column.key):
            return ""
        ok = point.get("status", "ok") == "ok"
        return column.cell(point) if ok or not column.of_floor else "-"

    columns = [
        column
        for column in COLUMNS
        if any(shown(column, point).strip("-") for point in points)
        and not (column.if_varied and len(_values(points, column.key)) < 2)
        and not (column.percentage and bandwidth is None)
    ]
    keys = [column for column in columns if column.key]

    def row(point: Record) -> list[str]:
        return [shown(column, point) for column in (columns if _ran(point) else keys)]

    return columns, [row(point) for point in points]


def _ran(point: Record) -> bool:
    """Whether its step has numbers to show; the others show their status in place of them."""
    return point.get("status", "ok") == "ok" or "step_s" in point


def _status(point: Record) -> str:
    return ": ".join(filter(None, (point.get("status", ""), point.get("message", ""))))


def _notes(points: Sequence[Record]) -> list[str]:
    """What a reader must know of steps that did run: what the floor leaves out, or got wrong."""
    odd: dict[str, list[Record]] = {}
    for point in points:
        if "step_s" in point and point.get("status", "ok") != "ok":
            odd.setdefault(point["status"], []).append(point)
    notes = [
        f"-  {_status(rows[0])}" + f" (and {several(len(rows) - 1, 'row')} more)" * (len(rows) > 1)
        for rows in odd.values()
    ]
    notes += _unpacked(points)
    if any(point.get("fraction_of_floor", 0) > 1 for point in points):
        notes.append(
            "(!)  error: a step measured below its floor; the bandwidth or the timing is wrong"
        )
    return notes


def _unpacked(points: Sequence[Record]) -> list[str]:
    """Types that the compiler holds in more bits: how much, and in which steps if not all."""
    found: dict[str, list[tuple[int, int]]] = {}
    for point in points:
        held = point.get("bytes_per_chip", {}).get("weights_unpacked", 0)
        found.setdefault(point.get("weight_dtype", ""), []).append((held, point["batch"]))
    notes = []
    for name, steps in found.items():
        if most := max(steps)[0]:
            batches = dict.fromkeys(str(batch) for held, batch in steps if held)
            which = "" if all(held for held, _ in steps) else f" of batch {', '.join(batches)}"
            what = f"unpacks {byte_size(most)} of weights as a whole in each step{which}"
            notes.append(f"-  {name}: the compiler {what}")
    return notes
