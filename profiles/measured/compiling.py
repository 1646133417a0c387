"""Compiles several programs, some of them at the same time."""

from collections.abc import Sequence
from typing import Protocol

from decode.compiling import compiling
from profiles.report.progress import progress


class Compiles(Protocol):
    """What has programs to compile, and a name."""

    def compile(self) -> None:
        """Compiles them, so that the first run finds them there."""


def compile_together(several: Sequence[Compiles]) -> None:
    """Compiles programs, some of them at once, and shows which are done."""
    with compiling([each.compile for each in several]) as jobs:
        named = list(zip(jobs, several, strict=True))
        for job, _ in progress(named, lambda each: f"compiling {each[1]}"):
            job.result()
