"""The table of compared engines."""

from collections.abc import Mapping, Sequence

from profiles.report.numbers import ms, number
from profiles.report.table import Table

_HEAD = [
    "engine", "weights", "measured\nstep ms", "p10 to p90", "tokens/s", "measured first\ntoken ms",
    "p10 to p90", "step over\nFloorline's", "first token\nover its", "text",
]  # fmt: skip


def engine_table(engines: Sequence[Mapping], ratios: Sequence[Mapping]) -> Table:
    """A row for each engine; one without times says why.

    Args:
      engines: rows as `comparison.engine_rows` gives them.
      ratios: as `comparison.ratios` gives them.
    """
    by_name = {each["name"]: each for each in ratios}
    rows, remarks = [], []
    for engine in engines:
        name, remark = engine["name"], ""
        if engine["status"] != "ok":
            remark = f"{engine['status']}: {engine.get('message', '')}"
        if "step_s" not in engine:
            rows.append([name])
        else:
            over = by_name.get(name)
            rows.append(
                [
                    name,
                    engine.get("dtype", ""),
                    *_time(engine["step_s"]),
                    number(engine["tokens_per_s"]),
                    *_time(engine["first_token_s"]),
                    f"{over['step']:.2f}" if over else "",
                    f"{over['first_token']:.2f}" if over else "",
                    text_words(engine),
                ]
            )
        remarks.append(remark)
    return Table(_HEAD, rows, align="llrrrrrrrl", remarks=remarks, spare=(6, 3))


def text_words(engine: Mapping) -> str:
    """Whether an engine's text is Floorline's, in a few words."""
    if "same_text" not in engine:
        return ""
    if engine["same_text"]:
        return "the same"
    place = engine["first_difference"]
    return f"other from token {place['token'] + 1} of sequence {place['sequence'] + 1}"


def _time(seconds: Mapping[str, float]) -> list[str]:
    return [ms(seconds["median"]), f"{ms(seconds['p10'])}-{ms(seconds['p90'])}"]
