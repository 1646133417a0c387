"""Whether a trace is of the step that it is said to be of: by its own words, and by its operations.

`RepeatedStep` writes into a trace which model, batch, context and devices each step is of. Traces
of other programs have steps without these words. Operations have the same names in programs of
other batches, but not in those of other types, layouts or models.
"""

from collections.abc import Mapping
from pathlib import Path

from jax.profiler import ProfileData

from profiles.explained.attribution import STEP, Attribution
from profiles.explained.operations import Operations
from profiles.measured.trace import TraceError, newest
from profiles.report.record import Record

KNOWN = 0.9  # part of a trace's time, and of a program's operations, that must be in the other
FIELDS = ("model", "devices", "batch", "context", "slots")


def step_facts(directory: str | Path) -> dict[str, str]:
    """What the newest trace below a directory says of its steps; empty if nothing.

    Raises:
      TraceError: they are not all of one batch, context, and so on, or run several to a program.
    """
    path, found = newest(directory), []
    for plane in ProfileData.from_file(str(path)).planes:
        for line in plane.lines:
            for event in line.events:
                if event.name == STEP:
                    stats = {name: str(value) for name, value in event.stats}
                    if several := stats.get("tokens_per_dispatch"):
                        raise TraceError(
                            f"tokens_per_dispatch of {path} is {several}; give a trace of one"
                        )
                    facts = {name: stats[name] for name in FIELDS if name in stats}
                    found += [facts] * (facts not in found)
    if len(found) > 1:
        raise TraceError(
            f"number of different steps in {path} is {len(found)}; give a trace of one row"
        )
    return found[0] if found else {}


def check_facts(record: Record, facts: Mapping[str, str]) -> None:
    """Refuses a trace of another model, batch, context or number of devices.

    Args:
      record: the step that it is said to be of.
      facts: what it says itself.

    Raises:
      TraceError: they differ.
    """
    for name, value in facts.items():
        if value != str(getattr(record, name)):
            raise TraceError(
                f"{name} of the trace is {value}, and that of the step {getattr(record, name)}; "
                f"give --{name}={value}"
            )


def check_program(found: Attribution, known: Operations) -> None:
    """Refuses a trace whose operations are not those of a program.

    Raises:
      TraceError: the trace has others, or lacks some that always run.
    """
    total = sum(found.operations.values())
    inside = sum(seconds for name, seconds in found.operations.items() if name in known.opcodes)
    ran = len(known.always & found.operations.keys())
    if inside < KNOWN * total or ran < KNOWN * len(known.always):
        raise TraceError(
            f"trace is of another program: {inside / total:.0%} of its operations' time is of "
            f"this step's, and {ran} of the {len(known.always)} that this step always runs are in "
            "it; give the model, the devices and all flags that it was taken with, with the same "
            "JAX"
        )
