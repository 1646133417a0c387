"""Flags of scripts that measure steps beside their floor: the peak rates of a chip."""

import _common
from absl import flags

with _common.importing():
    from sharding.error_types import UsageError

BANDWIDTH = flags.DEFINE_float("hbm_bandwidth", None, "Peak bytes/s of a chip, for the floor.")
FLOPS = flags.DEFINE_float("peak_flops", None, "Peak FLOP/s of a chip, for the floor.")

Bounds = tuple[flags.FlagHolder, tuple[float, float]]


def check(seconds: flags.FlagHolder[float], *others: Bounds) -> None:
    """Refuses numbers that no flag's own type refuses.

    Args:
      seconds: ``--seconds``, which may be NaN.
      others: flags beside the rates, each with the least and the greatest of its values.

    Raises:
      UsageError: a rate or another number out of its range.
    """
    from profiles.chips.chip import RANGE  # takes its time, which --help need not wait for

    for flag, (low, high) in ((BANDWIDTH, RANGE), (FLOPS, RANGE), *others):
        if flag.value is not None and not low <= flag.value <= high:
            remedy = f"use a positive number, {low:g} to {high:g}"
            raise UsageError(f"--{flag.name} is {flag.value}; {remedy}")
    if not seconds.value >= 0:  # false for NaN
        raise UsageError("--seconds is nan; use a number of seconds, 0 or more")
