"""Flags of `estimate.py` that ask what a decode step's floor says of money and time beyond it."""

import _common
from absl import flags

DRAFTED = flags.DEFINE_integer(
    "drafted", None, "Speculation: tokens drafted for each sequence and step.", 1, 64
)
ACCEPTANCE = flags.DEFINE_float(
    "acceptance", 0.8, "Speculation: probability that a drafted token is accepted.", 0, 1
)
ANSWERED = "drafted", "acceptance"
"""Names of all of them."""


def check() -> None:
    """Refuses a flag that changes nothing.

    Raises:
      UsageError: one of them is given without the flag that it belongs to.
    """
    if DRAFTED.value is None:
        _common.refuse(["acceptance"], "nothing is drafted without --drafted")
