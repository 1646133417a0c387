"""The table of compared engines, for a terminal and for this folder's README.

`python -m profiles.peers.comparison_table` writes the latter.
"""

import json
from collections.abc import Callable, Mapping, Sequence

from profiles.report.numbers import ms, number
from profiles.report.pages import ROOT, Part
from profiles.report.table import Table

_HEAD = [
    "engine", "weights", "measured\nstep ms", "step ms\np10 to p90", "tokens/s",
    "measured first\ntoken ms", "first token ms\np10 to p90", "step over\nFloorline's",
    "first token\nover Floorline's", "text",
]  # fmt: skip

RESULTS = ROOT / "profiles/results"
RECORDED = "smollm2-135m-cpu-engines"


def engine_table(engines: Sequence[Mapping], ratios: Sequence[Mapping]) -> Table:
    """A row for each engine; one without times says why.

    Args:
      engines: rows as `comparison.engine_rows` gives them.
      ratios: as `comparison.ratios` gives them.
    """
    by_name = {each["name"]: each for each in ratios}
    rows = []
    for engine in engines:
        if "step_s" not in engine:
            rows.append([engine["name"], f"{engine['status']}: {engine.get('message', '')}"])
            continue
        over = by_name.get(engine["name"])
        rows.append(
            [
                engine["name"],
                engine["dtype"],
                *_time(engine["step_s"]),
                number(engine["tokens_per_s"]),
                *_time(engine["first_token_s"]),
                *(f"{over[part]:.2f}" if over else "" for part in ("step", "first_token")),
                _text(engine),
            ]
        )
    remarks = [row.pop() if len(row) == 2 else "" for row in rows]
    return Table(_HEAD, rows, align="llrrrrrrrl", remarks=remarks, spare=(6, 3))


def notes(engines: Sequence[Mapping]) -> list[str]:
    """Why an engine that was measured has fewer rounds than the others, a line for each."""
    stopped = [each for each in engines if "step_s" in each and each["status"] != "ok"]
    return [
        f"{each['name']} {each['status']} in round {len(each['step_s']['samples']) + 1}: "
        f"{each['message']}"
        for each in stopped
    ]


def _text(engine: Mapping) -> str:
    """Whether an engine's text is Floorline's, in a few words."""
    if "same_text" not in engine:
        return ""
    if engine["same_text"]:
        return "the same"
    place = engine["first_difference"]
    sequence = f" of sequence {place['sequence'] + 1}" if place["sequence"] else ""
    return f"other from token {place['token'] + 1}{sequence}"


def _time(seconds: Mapping[str, float]) -> list[str]:
    return [ms(seconds["median"]), f"{ms(seconds['p10'])}-{ms(seconds['p90'])}"]


def recorded(name: str) -> str:
    """The table of a recorded comparison, in Markdown."""
    found = json.loads((RESULTS / name / "engines.json").read_text(encoding="utf-8"))
    return engine_table(found["engines"], found["ratios"]).markdown() + "\n"


_MODULE = "profiles.peers.comparison_table"
PARTS: dict[Part, Callable[[], str]] = {
    Part("profiles/peers/README.md", RECORDED, _MODULE): lambda: recorded(RECORDED)
}
"""The function that makes the part of the page."""


if __name__ == "__main__":
    for part, make in PARTS.items():
        part.write(make())
