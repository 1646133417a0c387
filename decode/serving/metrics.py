"""What a server counts and times, in the text form that Prometheus reads.

Source: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

import bisect
import collections
import itertools
from collections.abc import Sequence

from decode.batching.events import Finished
from decode.batching.stats import StepStats
from decode.serving.call import Call

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_PARTS = ("prompt", "decode", "host", "idle")


class Histogram:
    """How often a time was how long.

    Args:
      bounds: upper bounds of its buckets, rising, in seconds.
    """

    def __init__(self, bounds: Sequence[float] = _SECONDS):
        self._bounds, self._counts = bounds, [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, seconds: float) -> None:
        """One more time."""
        self._counts[bisect.bisect_left(self._bounds, seconds)] += 1
        self._sum += seconds

    def lines(self, name: str, label: str = "") -> list[str]:
        """The samples of Prometheus' form, with one more label if there is one."""
        bounds = [*(f"{bound:g}" for bound in self._bounds), "+Inf"]
        sums = itertools.accumulate(self._counts)
        comma, alone = f"{label}," * bool(label), f"{{{label}}}" * bool(label)
        buckets = [
            f'{name}_bucket{{{comma}le="{bound}"}} {count}'
            for bound, count in zip(bounds, sums, strict=True)
        ]
        total = sum(self._counts)
        return [*buckets, f"{name}_sum{alone} {self._sum}", f"{name}_count{alone} {total}"]


class Metrics:
    """Counts and times of one server; for the thread of its event loop alone.

    Args:
      rows: requests that run at once.
    """

    def __init__(self, rows: int):
        self._rows, self._active, self._running, self._waiting = rows, 0, 0, 0
        self._answers: collections.Counter[str] = collections.Counter()
        self._responses: collections.Counter[int] = collections.Counter()
        self._tokens: collections.Counter[str] = collections.Counter()
        self._first, self._next = Histogram(), Histogram()
        self._steps = {part: Histogram() for part in _PARTS}

    def token(self, now: float, call: Call, number: int) -> None:
        """A token has come for one of a call's requests."""
        before = call.newest[number]
        if before is None:
            self._first.add(now - call.arrived)
        else:
            self._next.add(now - before)
        call.newest[number] = now
        self._tokens["generated"] += 1

    def finished(self, event: Finished) -> None:
        """An answer has ended."""
        self._answers[event.reason] += 1
        self._tokens["prompt"] += event.prompt_tokens
        self._tokens["reused"] += event.reused_tokens

    def response(self, status: int) -> None:
        """An HTTP response has begun."""
        self._responses[status] += 1

    def step(self, stats: StepStats | None, running: int, waiting: int) -> None:
        """A step has run, if there are stats, and so many requests run and wait now."""
        self._running, self._waiting = running, waiting
        self._active = stats.active if stats else 0 if not running else self._active
        if stats is None:
            return
        self._tokens["padding"] += stats.padding
        self._tokens["drafted"] += stats.drafted
        self._tokens["accepted"] += stats.accepted
        self._steps["host"].add(stats.host_seconds)
        self._steps["idle"].add(stats.idle_seconds)
        if stats.chunks:
            self._steps["prompt"].add(stats.prompt_seconds)
        if stats.active:
            self._steps["decode"].add(stats.decode_seconds)

    def text(self) -> str:
        """All of it, a page as Prometheus reads it."""
        count = self._tokens
        numbers = (
            ("requests_running", "gauge", "Requests that have a row.", self._running),
            ("requests_waiting", "gauge", "Requests that wait for a row.", self._waiting),
            ("rows", "gauge", "Sequences that a step has room for.", self._rows),
            ("rows_active", "gauge", "Rows of the newest step that decoded.", self._active),
            ("prompt_tokens_total", "counter", "Tokens of ended prompts.", count["prompt"]),
            ("reused_tokens_total", "counter", "Tokens found in rows.", count["reused"]),
            ("padding_tokens_total", "counter", "Tokens that fill chunks.", count["padding"]),
            ("generated_tokens_total", "counter", "Tokens of answers.", count["generated"]),
            ("drafted_tokens_total", "counter", "Tokens of drafts.", count["drafted"]),
            ("accepted_tokens_total", "counter", "Drafted tokens that stood.", count["accepted"]),
        )
        lines = []
        for name, kind, about, value in numbers:
            lines += [*_head(name, kind, about), f"floorline_{name} {value}"]
        for name, about, label, counts in (
            ("answers_total", "Answers by why they ended.", "reason", self._answers),
            ("responses_total", "HTTP responses by status.", "status", self._responses),
        ):
            lines += _head(name, "counter", about)
            samples = sorted(counts.items())
            lines += [f'floorline_{name}{{{label}="{key}"}} {value}' for key, value in samples]
        for name, about, histogram in (
            ("first_token_seconds", "From a request to its first token.", self._first),
            ("next_token_seconds", "From a token to the next of its answer.", self._next),
        ):
            lines += _head(name, "histogram", about) + histogram.lines(f"floorline_{name}")
        lines += _head("step_seconds", "histogram", "Parts of steps: devices' and the host's.")
        for part, histogram in self._steps.items():
            lines += histogram.lines("floorline_step_seconds", f'part="{part}"')
        return "\n".join(lines) + "\n"


def _head(name: str, kind: str, about: str) -> list[str]:
    return [f"# HELP floorline_{name} {about}", f"# TYPE floorline_{name} {kind}"]
