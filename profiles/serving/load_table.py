"""Tables of measured loads, for a terminal and for this folder's README.

`python -m profiles.serving.load_table` writes the latter.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from profiles.report.numbers import exact, ms, number
from profiles.report.pages import ROOT, Part
from profiles.report.record import Record
from profiles.report.table import Table
from profiles.report.titles import rates_words, subject
from profiles.serving.load_rows import PERCENTILES

RESULTS = ROOT / "profiles/results"
PAGE, MODULE, FILE = "profiles/serving/README.md", "profiles.serving.load_table", "serving.json"
CAUSES = {
    "empty_slots": "empty\nslots",
    "prompts": "prompts",
    "padding": "padding",
    "host": "host",
    "over_floor": "step over\nits floor",
}


def latency_table(loads: Sequence[Mapping]) -> Table:
    """What requests waited for: a row for each load."""
    head = ["load", "requests"]
    head += [f"first token\nms p{p}" for p in PERCENTILES]
    head += [f"ms per token\np{p}" for p in PERCENTILES]
    head += ["tokens/s"]
    rows = [
        [
            load_words(each),
            exact(each["requests"]),
            *_milliseconds(each["first_token_s"]),
            *_milliseconds(each["per_token_s"]),
            number(each["tokens_per_s"]),
        ]
        for each in loads
    ]
    return Table(head, rows, align="l" + "r" * (len(head) - 1))


def cost_table(loads: Sequence[Mapping]) -> Table:
    """What a token cost beside ideal and floor, and where the difference went.

    In USD per million tokens where every load has a price, else in milliseconds of wall time.
    """
    priced = all("usd_per_million_tokens" in each for each in loads)
    field, unit = ("usd_per_million_tokens", "USD/Mtok") if priced else ("s_per_token", "ms/token")
    show = number if priced else ms
    known = all("lost" in each for each in loads)
    head = ["load", f"measured\n{unit}"]
    if known:
        head += [f"ideal\n{unit}", f"floor\n{unit}", "ideal /\nmeasured", "floor /\nmeasured"]
        head += [f"{name}\n{unit}" if "\n" not in name else name for name in CAUSES.values()]
    rows = []
    for each in loads:
        row, seconds = [load_words(each), show(each[field])], each["s_per_token"]
        if known:
            row += [show(each[name][field]) for name in ("ideal", "floor")]
            row += [f"{each[name]['s_per_token'] / seconds:.0%}" for name in ("ideal", "floor")]
            scale = each[field] / seconds
            row += [show(each["lost"][name] * scale) for name in CAUSES]
        rows.append(row)
    return Table(head, rows, align="l" + "r" * (len(head) - 1))


def departure_table(departures: Sequence[Mapping]) -> Table:
    """The same arrivals by a train on schedule and joining at any step."""
    head = ["load", "departures\nms", "how", "waiting ms\nmean", "waiting ms\np99"]
    head += ["first token\nms p50", "total ms\nmean", "total ms\np99"]
    rows = [
        [
            load_words(each),
            ms(each["departure_s"]),
            words,
            ms(each[way]["waiting_s"]["mean"]),
            ms(each[way]["waiting_s"]["p99"]),
            ms(each[way]["first_token_s"]["p50"]),
            ms(each[way]["total_s"]["mean"]),
            ms(each[way]["total_s"]["p99"]),
        ]
        for each in departures
        for way, words in (("any_step", "joining at any step"), ("train", "on schedule"))
    ]
    return Table(head, rows, align="lrl" + "r" * 5)


def load_words(load: Mapping) -> str:
    """A load's name: ``16 at once``, ``2.5 per second`` or ``trace``."""
    if "concurrency" in load:
        return f"{exact(load['concurrency'])} at once"
    return f"{exact(load['rate'])} per second" if "rate" in load else "trace"


def title(document: Mapping) -> list[str]:
    """What was measured, and what the floors were taken at."""
    points = list(map(_record, document["points"]))
    if not points:
        return [document["subject"]]
    words = subject(points).replace(", decode,", ",")
    first = document["load"][0] if document["load"] else {}
    if first:
        words += f", {first['rows']} rows, token budget {first['token_budget']}"
    return [words, rates_words(document["bandwidth"], None, document["device_kind"])]


def notes(document: Mapping) -> list[str]:
    """What must be known beside the tables."""
    found = [
        f"{load_words(each)}: {each['recompilations']} programs were compiled after the warm-up, "
        "whose time is in these figures"
        for each in document["load"]
        if each.get("recompilations")
    ]
    found += [
        f"{load_words(each)}: {tally['accepted'] / tally['drafted']:.0%} of "
        f"{exact(tally['drafted'])} drafted tokens were accepted, "
        f"{number(tally['tokens'] / tally['steps'])} tokens a step of each sequence"
        for each in document["load"]
        if (tally := each.get("speculation")) and tally["drafted"]
    ]
    points = map(_record, document["points"])
    found += [
        f"batch {each.batch}, {each.status}: {each.message}" for each in points if not each.ok
    ]
    return found


def _record(point: Record | Mapping) -> Record:
    return point if isinstance(point, Record) else Record.from_json(point)


def _milliseconds(found: Mapping[str, float]) -> list[str]:
    return [ms(found[f"p{p}"]) if found else "" for p in PERCENTILES]


def recorded(path: str) -> str:
    """A recorded run in Markdown: title, both tables and notes."""
    document = json.loads((RESULTS / path).read_text(encoding="utf-8"))
    parts = ["\n".join(title(document)), cost_table(document["load"]).markdown()]
    parts += [latency_table(document["load"]).markdown()]
    if document.get("departures"):
        parts += [departure_table(document["departures"]).markdown()]
    parts += ["\n".join(f"- {note}" for note in notes(document))] if notes(document) else []
    return "\n\n".join(parts) + "\n"


def found(results: Path = RESULTS) -> list[str]:
    """Recorded runs, as paths below the folder of results."""
    return sorted(str(path.relative_to(results)) for path in results.rglob(FILE))


PARTS: dict[Part, Callable[[], str]] = {
    Part(PAGE, path.removesuffix(f"/{FILE}"), MODULE): lambda path=path: recorded(path)
    for path in found()
}
"""The function that makes each part of the page: one for each recorded run."""


if __name__ == "__main__":
    for part, make in PARTS.items():
        part.write(make())
