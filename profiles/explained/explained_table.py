"""An explained step as a table, for a terminal and for this folder's README.

`python -m profiles.explained.explained_table` writes the tables of recorded steps to the page.
"""

import json
from collections.abc import Callable

from profiles.explained.explanation import Explanation
from profiles.explained.remedies import Evidence, remedy
from profiles.report.numbers import milliseconds, ms, number
from profiles.report.pages import ROOT, Part
from profiles.report.record import Record
from profiles.report.table import Table, wrap
from profiles.report.titles import bandwidth_words, subject

RESULTS = ROOT / "profiles/results"
PAGE, MODULE = "profiles/explained/README.md", "profiles.explained.explained_table"
FILE = "explain.json"
HEAD = ("block", "measured\nms", "of the\nstep", "floor\nms", "over\nfloor ms", "GB/s", "TFLOP/s")
LEAST = 0.005  # part of the step below which blocks share a row


def fields(explanation: Explanation) -> dict:
    """What a document says of an explained step, with what is known to help each block."""
    found = explanation.to_json()
    for told, block in zip(found["blocks"], explanation.blocks, strict=True):
        if words := remedy(Evidence(block, explanation.record, explanation.platform)):
            told["remedy"] = words
    return found


def table(document: dict) -> Table:
    """The blocks of an explained step, those that lost most first.

    Args:
      document: what `scripts/explain_step.py` writes; its points may be records or JSON.
    """
    measured = _record(document).step_s["median"]
    shown, small = [], []
    for block in document["blocks"]:
        large = max(block["measured_s"], block["floor_s"]) >= LEAST * measured
        (shown if large else small).append(block)
    rows = [_row(block, measured) for block in shown]
    if small:
        sums = {key: sum(block[key] for block in small) for key in ("measured_s", "floor_s")}
        name = small[0]["name"] if len(small) == 1 else f"{len(small)} others"
        rows.append(_row({"name": name, **sums}, measured))
    unattributed = {"name": "unattributed", "measured_s": document["unattributed_s"], "floor_s": 0}
    rows.append(_row(unattributed, measured))
    floors = sum(block["floor_s"] for block in document["blocks"])
    rows.append(_row({"name": "step", "measured_s": measured, "floor_s": floors}, measured))
    return Table(HEAD, rows, align="l" + "r" * (len(HEAD) - 1), spare=(6, 5))


def text(document: dict) -> str:
    """The whole explanation for a terminal: title, table, and what is known to help."""
    head = "\n".join(wrap(line) for line in title(document))
    return "\n\n".join([head, table(document).terminal(), "\n".join(notes(document))])


def title(document: dict) -> list[str]:
    """What was explained, and what its floors refer to."""
    record = _record(document)
    words = f"{subject([record])}, batch {record.batch}, context {record.context}"
    floor = bandwidth_words(document["bandwidth"], document["device_kind"])
    return [words, f"Floor at {floor}"]


def notes(document: dict) -> list[str]:
    """The floor of the whole step, the trace, what is said against them, and remedies of blocks."""
    record, trace = _record(document), document["trace"]
    measured, floors = record.step_s["median"], sum(b["floor_s"] for b in document["blocks"])
    lines = [
        f"The step's floor is {milliseconds(record.floor_s)}, all overlapped; those of its blocks, "
        f"one after another, are {milliseconds(floors)}. It took {milliseconds(measured)}; "
        f"{trace['steps']} steps of the trace took {milliseconds(trace['step_s'])} each, of which "
        f"{document['named']:.1%} is in blocks."
    ]
    lines += [f"{record.status}: {record.message}"] * (not record.ok)
    lines += [
        f"{', '.join(block['name'] for block in blocks)}, "
        f"{milliseconds(sum(block['measured_s'] - block['floor_s'] for block in blocks))} over "
        f"{'its floor' if len(blocks) == 1 else 'their floors'}: {words}"
        for words, blocks in remedies(document).items()
    ]
    return [wrap(line, 2) for line in lines]


def remedies(document: dict) -> dict[str, list[dict]]:
    """What is known to help, and the blocks that it helps, those first that lost most."""
    found: dict[str, list[dict]] = {}
    for block in document["blocks"]:
        if "remedy" in block:
            found.setdefault(block["remedy"], []).append(block)
    return found


def _row(block: dict, step_s: float) -> list[str]:
    measured, floor = block["measured_s"], block["floor_s"]
    bytes_, flops = (block.get(f"{what}_per_device", 0) for what in ("bytes", "flops"))
    rates = [
        number(work / scale / measured) if work and measured else ""
        for work, scale in ((bytes_, 1e9), (flops, 1e12))
    ]
    cells = [block["name"], ms(measured), f"{measured / step_s:.1%}"]
    return [*cells, ms(floor) if floor else "", ms(measured - floor), *rates]


def _record(document: dict) -> Record:
    (point,) = document["points"]
    return point if isinstance(point, Record) else Record.from_json(point)


def recorded(path: str) -> str:
    """A recorded explanation in Markdown: what it is of, the table, and what is known to help."""
    document = json.loads((RESULTS / path).read_text(encoding="utf-8"))
    head = "\n".join(title(document))
    said = "\n".join(f"- {' '.join(line.split())}" for line in notes(document))
    return f"{head}\n\n{table(document).markdown()}\n\n{said}\n"


def found() -> list[str]:
    """Recorded explanations, as paths below the folder of results."""
    return sorted(str(path.relative_to(RESULTS)) for path in RESULTS.rglob(FILE))


PARTS: dict[Part, Callable[[], str]] = {
    Part(PAGE, path.removesuffix(f"/{FILE}"), MODULE): lambda path=path: recorded(path)
    for path in found()
}
"""The function that makes each part of the page: one for each recorded step."""


if __name__ == "__main__":
    for part, make in PARTS.items():
        part.write(make())
