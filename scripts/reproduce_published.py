"""Hold this project's counts against published figures, a line for each.

Today these are longest contexts: how many tokens of KV cache a layout leaves room for, in the cases
of profiles/published.json. Ends with exit code 1 if one is more than 1.5% off: figures are rounded.

Examples:
  python scripts/reproduce_published.py
  python scripts/reproduce_published.py --json=-
"""

import datetime
import sys

import _common
from absl import flags

from profiles.inspection import aligned
from profiles.published import TOLERANCE, longest_contexts
from profiles.report import document, write_json
from sharding import processes
from sharding.errors import FloorlineError


def main() -> None:
    """Counts, prints, compares."""
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    _common.check_json()
    rows = list(longest_contexts())
    head = "source", "batch", "published context", "counted context", "difference"
    text = [
        (
            f"{row['source'].split(',')[0]}, {row['locator']}",
            str(row["batch"]),
            f"{row['published_context']:,}",
            f"{row['context']:,.0f}",
            f"{row['error']:+.1%}",
        )
        for row in rows
    ]
    if _common.JSON.value != "-":
        print(aligned(head, text))
    if _common.JSON.value and processes.first():
        found = document(sys.argv, [], device_kind="", started=started, bandwidth=None, rows=rows)
        write_json(_common.JSON.value, found)
    wrong = [row for row in rows if abs(row["error"]) > TOLERANCE]
    if wrong:
        row = wrong[0]
        raise FloorlineError(
            f"counted context is {row['context']:,.0f} where {row['locator']} has "
            f"{row['published_context']:,}; the count or the case's assumptions must be wrong"
        )


if __name__ == "__main__":
    flags.declare_key_flag("json")
    flags.declare_key_flag("verbose")
    _common.start(main)
