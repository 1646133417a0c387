"""What records are of, in words: titles of tables and pictures, and the peaks of their floors."""

from collections.abc import Iterable, Mapping, Sequence

from profiles.report.numbers import number
from profiles.report.record import TITLES, Record

_FIRST = "model", "phase", "dtype"  # a title begins with these
_STORED = "arithmetic", "weight_dtype", "kv_dtype"  # given behind `dtype` where they are another


def subject(points: Sequence[Record]) -> str:
    """One line naming model, phase, dtypes, devices and layout of some records."""
    values = {field: ", ".join(distinct(points, field)) for field in TITLES}
    texts = {field: TITLES[field].format(text) if text else "" for field, text in values.items()}
    stored = [texts[f] for f in _STORED if values[f] not in ("", values["dtype"])]
    texts["dtype"] += f" ({', '.join(stored)})" * bool(stored)
    others = [field for field in texts if field not in (*_FIRST, *_STORED)]
    return ", ".join(filter(None, (texts[field] for field in (*_FIRST, *others))))


def bandwidth_words(bandwidth: dict, device_kind: str = "") -> str:
    """The peaks that floors were taken at, and whether they were measured or published."""
    words = f"{number(bandwidth['bytes_per_s'] / 1e9)} GB/s"
    if by_dtype := bandwidth.get("peak_flops_by_dtype"):
        rates = (f"{number(flops / 1e12)} ({name})" for name, flops in by_dtype.items())
        words += f" and {', '.join(rates)} TFLOP/s"
    elif "peak_flops_per_s" in bandwidth:
        words += f" and {number(bandwidth['peak_flops_per_s'] / 1e12)} TFLOP/s"
    words += f" ({bandwidth['source']})"
    return words + ", one memory shared by all CPU devices" * ("cpu" in device_kind.lower())


def rates_words(bandwidth: dict, calibration: dict | None, device_kind: str = "") -> str:
    """What floors and expected times were taken at, a document's `bandwidth` and `calibration`."""
    words = f"Floor at {bandwidth_words(bandwidth, device_kind)}"
    if calibration:
        words += f"; expected by calibration {calibration.get('words', calibration['name'])}"
    if bandwidth["source"] == "published" and "measured_bytes_per_s" in bandwidth:
        reads = number(bandwidth["measured_bytes_per_s"] / 1e9)
        words += f"; read kernels reached {reads} GB/s in this run"
    return words


def distinct(points: Iterable[Record], field: str) -> list[str]:
    """The distinct known values of a field as text, in the order they appear."""
    return list(dict.fromkeys(filter(None, (text_of(point, field) for point in points))))


def text_of(point: Record, field: str) -> str:
    """A field of a record as text, empty where it is not known."""
    value = getattr(point, field)
    return "" if value is None else field_text(value)


def field_text(value: object) -> str:
    """A record's field in a few characters: a mesh as `1x2x1`, the rest as it is."""
    if isinstance(value, Mapping):
        return "x".join(str(size) for size in value.values())
    return str(value)
