"""The project's one kind of expected error.

A message reads ``WHAT is VALUE; REMEDY`` on one line, so that a script can print it behind
``error:`` and stop.
"""


class FloorlineError(Exception):
    """Something the caller can put right: the message names the thing, its value and a remedy."""


class UsageError(FloorlineError):
    """Wrong use: a flag, a size or a combination that can never work (exit code 2)."""


class LayoutError(UsageError):
    """A mesh or a partitioning layout that the model's sizes or the devices do not admit."""
