"""Counts programs that are compiled: after a warm-up there must be none."""

import contextlib
import dataclasses
from collections.abc import Iterator

import jax

_COMPILED = "/jax/core/compile/backend_compile_duration"
_counters: list["Counter"] = []  # those that count now


@dataclasses.dataclass
class Counter:
    """How many programs XLA has compiled while it counted."""

    programs: int = 0


def _note(event: str, seconds: float, **_: object) -> None:
    if event == _COMPILED:
        for counter in _counters:
            counter.programs += 1


jax.monitoring.register_event_duration_secs_listener(_note)  # none can be taken away


@contextlib.contextmanager
def counting() -> Iterator[Counter]:
    """Counts the programs that are compiled in the context."""
    counter = Counter()
    _counters.append(counter)
    try:
        yield counter
    finally:
        _counters.remove(counter)
