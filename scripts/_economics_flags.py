"""Flags of `estimate.py` that ask what a decode step's floor says of money and time beyond it."""

import math

import _common
from absl import flags

with _common.importing(__name__):
    from sharding.error_types import UsageError

DRAFTED = flags.DEFINE_integer(
    "drafted", None, "Speculation: tokens drafted for each sequence and step.", 1, 64
)
ACCEPTANCE = flags.DEFINE_float(
    "acceptance", 0.8, "Speculation: probability that a drafted token is accepted.", 0, 1
)
HELD = flags.DEFINE_list(
    "held_s", None, "Memory tiers: seconds for which a cache is held before it is fetched, a list."
)
SERVED = flags.DEFINE_float(
    "served_tokens_per_s", None, "Training: tokens per second that the model serves in its life."
)
DAYS = flags.DEFINE_float("served_days", 60, "Training: days for which it is served.")
STAGES = flags.DEFINE_integer(
    "stages", None, "Pipelines: slices that layers are divided over; 4 with --economics.", 2, 1024
)
HOP_MS = flags.DEFINE_float("hop_ms", 0, "Pipelines: milliseconds that each hop takes at least.")
ANSWERED = (
    *("drafted", "acceptance", "held_s", "served_tokens_per_s", "served_days"),
    *("stages", "hop_ms"),
)
"""Names of all of them."""


def check() -> None:
    """Refuses a flag that changes nothing, and numbers that are none of what they count.

    Raises:
      UsageError: one of them is given without the flag that it belongs to, or no amount.
    """
    if DRAFTED.value is None:
        _common.refuse(["acceptance"], "nothing is drafted without --drafted")
    if SERVED.value is None:
        _common.refuse(["served_days"], "nothing is served without --served_tokens_per_s")
    for flag in (SERVED, DAYS):
        if flag.value is not None and not 0 < flag.value < 1e18:
            raise UsageError(f"--{flag.name} is {flag.value:g}; use a positive number")
    if not 0 <= HOP_MS.value < math.inf:
        raise UsageError(f"--hop_ms is {HOP_MS.value:g}; use a number, 0 or more")
    held()


def held() -> list[float]:
    """The positive numbers of ``--held_s``; none where it is not given.

    Raises:
      UsageError: one of them is no positive number.
    """
    found = []
    for text in HELD.value or ([] if HELD.value is None else [""]):
        try:
            found.append(float(text))
        except ValueError:
            found.append(math.nan)
        if not 0 < found[-1] < math.inf:
            raise UsageError(f"--held_s is {text!r}; use positive numbers joined by commas")
    return found
