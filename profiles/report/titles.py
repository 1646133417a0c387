"""What records are of, in words: titles of tables and pictures, and the peaks of their floors."""

from collections.abc import Iterable, Sequence

from profiles.report.document import Record
from profiles.report.files import check_writable as check_writable
from profiles.report.files import write_csv as write_csv
from profiles.report.files import write_json as write_json
from profiles.report.numbers import number

# Of those, what a title says for all rows of a table, or a column for each where they differ.
TITLE_FIELDS = (
    "model", "phase", "layout", "attention", "collectives", "dtype", "weight_dtype", "kv_dtype",
)  # fmt: skip


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
