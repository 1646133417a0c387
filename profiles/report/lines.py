"""Records that differ only in batch, as lines: what tells them apart, and a fit of each."""

from collections.abc import Iterable, Sequence

import numpy as np

from profiles.report.document import Record
from profiles.report.files import check_writable as check_writable
from profiles.report.files import write_csv as write_csv
from profiles.report.files import write_json as write_json
from profiles.report.numbers import ms, several
from profiles.report.titles import _values, field_text
from sharding.error_types import FloorlineError

TIMES = "\N{MULTIPLICATION SIGN}"
# What makes two records points of one line, drawn or fitted against batch.
LINE_FIELDS = (
    "model", "phase", "device_kind", "devices", "mesh", "context", "tokens_per_sequence", "layout",
    "attention", "expert_parallel", "collectives", "dtype", "weight_dtype", "kv_dtype", "experts",
)  # fmt: skip


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
