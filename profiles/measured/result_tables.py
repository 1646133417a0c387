"""Generates the tables of recorded runs, for this folder's README and the project's README.

`python -m profiles.measured.result_tables` writes them.
"""

import json
import statistics
from collections import defaultdict
from collections.abc import Callable

from profiles.report.document import read_document
from profiles.report.lines import fit_lines
from profiles.report.numbers import exact, number
from profiles.report.pages import ROOT, Part
from profiles.report.step_table import markdown_table
from profiles.report.table import Table

RESULTS = ROOT / "profiles/results"
MODULE = "profiles.measured.result_tables"
PROJECT_PAGE, PAGE = "README.md", "profiles/measured/README.md"
GPU, CPU, CPU_TYPES = "llama3-8b-h200", "smollm2-135m-xeon", "smollm2-135m-cpu-types"
CPU_PROMPTS = "smollm2-135m-cpu-prompts"
_TIME_COLUMNS = (
    "batch",
    "floor step ms",
    "expected step ms",
    "measured step ms",
    "floor / measured",
    "expected / measured",
)
SHORT = {
    GPU: ("weight_dtype", *_TIME_COLUMNS, "measured USD/Mtok"),
    CPU: ("devices (x,y,z)", *_TIME_COLUMNS, "measured tokens/s"),
}
"""Columns of the tables of the project's README, by the name of the run.

Former runs have no expected times.
"""
ENDS = {GPU: (1, 256)}
"""Batches of the rows that such a table has, where it has not all."""


def recorded(name: str) -> dict:
    """The document of a recorded run."""
    return read_document(RESULTS / name / "profile.json")


def table(name: str) -> str:
    """A recorded run as a table in Markdown, with all rows and columns."""
    return _markdown(recorded(name), "points", ())


def short_table(name: str) -> str:
    """The table of a recorded run in the project's README."""
    run = recorded(name)
    batches = ENDS.get(name) or {each.batch for each in run["points"]}
    points = [each for each in run["points"] if each.batch in batches]
    return _markdown(run | {"points": points}, "points", SHORT[name])


def fits(name: str) -> str:
    """A recorded run's fitted lines of step time against batch, as a block of text."""
    return "```\n" + "\n".join(fit_lines(recorded(name)["fits"])) + "\n```\n"


def prompts(name: str) -> str:
    """A recorded run's whole prompts, each the sum of its chunks, beside the floor of one pass."""
    columns = "prompt tokens", *_TIME_COLUMNS[1:], "measured tokens/s"
    return _markdown(recorded(name), "prompts", columns)


def _markdown(run: dict, records: str, only: tuple[str, ...]) -> str:
    table = markdown_table(run[records], run["bandwidth"], run.get("calibration"), only)
    return table.strip() + "\n"


def peers(name: str) -> str:
    """Prompts in rounds that alternate with transformers: medians, and the median of the ratios."""
    rounds = defaultdict(list)
    for one in json.loads((RESULTS / name / "peer-transformers.json").read_text())["runs"]:
        rounds[one["prompt_length"]].append(one)
    rows = []
    for length, runs in sorted(rounds.items()):
        own, peer = (
            statistics.median(run[side] for run in runs) for side in ("own_s", "transformers_s")
        )
        ratio = statistics.median(run["transformers_s"] / run["own_s"] for run in runs)
        rows.append([exact(length), exact(len(runs)), number(own), number(peer), f"{ratio:.2f}"])
    head = ("prompt tokens", "rounds", "measured s", "transformers s", "times as fast")
    return Table(head, rows, align="r" * len(head)).markdown() + "\n"


PARTS: dict[Part, Callable[[], str]] = {
    **{Part(PROJECT_PAGE, name, MODULE): lambda n=name: short_table(n) for name in SHORT},
    **{Part(PAGE, name, MODULE): lambda n=name: table(n) for name in (CPU, CPU_TYPES, GPU)},
    Part(PAGE, f"{CPU} lines", MODULE): lambda: fits(CPU),
    Part(PAGE, CPU_PROMPTS, MODULE): lambda: prompts(CPU_PROMPTS),
    Part(PAGE, f"{CPU_PROMPTS} peers", MODULE): lambda: peers(CPU_PROMPTS),
}
"""The function that makes each part of a README."""


if __name__ == "__main__":
    for part, make in PARTS.items():
        part.write(make())
