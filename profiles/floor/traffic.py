"""Traffic: the tokens per second that fill a system, and what companies publish of theirs."""

import dataclasses
import functools
import json
from importlib import resources


@dataclasses.dataclass(frozen=True)
class Service:
    """Published traffic of a company's services.

    Attributes:
      name: whose it is.
      tokens: tokens that pass, prompts included.
      seconds: the time in which they do.
      source: where that is published.
    """

    name: str
    tokens: float
    seconds: float
    source: str

    @property
    def tokens_per_s(self) -> float:
        """Tokens per second, on average."""
        return self.tokens / self.seconds


def filling(batch: float, step_s: float) -> float:
    """Tokens per second of a system whose every step has this batch: batch x steps per second."""
    return batch / step_s


@functools.cache
def services() -> tuple[Service, ...]:
    """All services of `traffic.json`."""
    data = json.loads(resources.files("profiles.floor").joinpath("traffic.json").read_text())
    return tuple(Service(**row) for row in data["services"])
