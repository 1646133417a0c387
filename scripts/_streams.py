"""The standard streams of a script, before anything else is imported."""

import os
import sys


def open_output() -> None:
    """Makes sure that standard output and error are open and can write any character.

    A closed one is opened as the null device, so that no file that is opened later gets its
    number, to which C libraries write. A character that the encoding lacks is escaped.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # the default of standard error
