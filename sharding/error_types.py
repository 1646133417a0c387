"""The base types of every error that a caller can put right.

A message reads ``WHAT is VALUE; REMEDY`` on one line, so that a script can print it behind
``error:`` and stop with the type's exit code. Each module has its own types below these.
"""


class FloorlineError(Exception):
    """Something the caller can put right: the message names the thing, its value and a remedy.

    Attributes:
      exit_code: exit code of a script that fails with it.
    """

    exit_code = 1


class UsageError(FloorlineError):
    """Wrong use: a flag, a size or a combination that can never work."""

    exit_code = 2


class LayoutError(UsageError):
    """A mesh or a partitioning layout that the model's sizes or the devices do not admit."""
