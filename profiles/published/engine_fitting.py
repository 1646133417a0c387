"""Finds the constants of calibrations whose times add up from published runs of serving engines.

In an engine that runs one kernel after another, reading memory, arithmetic and collectives take
turns (`Calibration.adds`). An expected time is then a sum of terms, each of them a count of this
project's over one constant or times one: a linear function of the inverses of fractions and of the
fixed times. Each pair of constants is moved together over round numbers until no move helps.

The score to minimize is the mean error, the logarithm of expected over published, where errors well
below a tenth count by their squares, plus a small penalty for each doubling between a constant and
its typical value. So no set follows the noise of single rows, and constants that the rows do not
tell stay typical. Others that a set does not fit are borrowed, as its words in
`calibrations.json` say. The layout of a case is the one that the shipped constants expect to be
fastest.

`SMALL`, `PULL` and which constants each set fits were chosen by errors on halves of the rows that a
fit did not see, which are therefore too low.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence

import numpy as np

from profiles.chips.calibration import Calibration
from profiles.published.cases import Case
from profiles.published.comparison import times_where_fastest
from profiles.published.services import ServiceCase

_FRACTIONS = tuple(round(0.05 * n, 2) for n in range(1, 21))
_STARTS = tuple(float(f"{n}e-6") for n in (0, 1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200))
CHOICES = {
    "memory": _FRACTIONS,
    "compute": _FRACTIONS,
    "experts": _FRACTIONS,
    "link": _FRACTIONS,
    "layer_s": _STARTS,
    "sequence_s": _STARTS,
    "step_s": tuple(round(5e-4 * n, 4) for n in range(21)),
}
"""Constants that may be fitted, and the values to try for each."""
TYPICAL = {
    "memory": 0.85, "compute": 0.6, "experts": 0.3, "link": 0.8,
    "layer_s": 6e-5, "sequence_s": 5e-6, "step_s": 5e-4,
}  # fmt: skip
"""Typical constants: those of `fitting.TYPICAL`; half the rate of other products for experts, each
of which has a part of the tokens; starts of a layer as `gpu-2023` has them; a few microseconds for
each sequence, which software on the host schedules."""
MOST, ROUNDS = 6, 20
"""Constants that a set may fit; how often all pairs are moved at most."""
SMALL, PULL = 0.1, 0.02
"""Errors below count by their squares; the penalty of a doubling."""
_RESOLVED = {"layer_s": 2e-6, "sequence_s": 1e-6, "step_s": 1e-4}  # not told from 0
_PLAIN = Calibration("plain", "", (), 1, 1, 1, 0, 0, 0, 0, False, adds=True, experts=1)
_PROBE = dataclasses.replace(_PLAIN, experts=0.5, link=0.5, sequence_s=1.0)


def terms(case: Case | ServiceCase, calibration: Calibration) -> np.ndarray:
    """What each constant is multiplied by in a case's expected time, and what no constant changes.

    Fractions are multiplied by their inverses.

    Args:
      case: what was published.
      calibration: gives the constants that are never fitted, and the layout: the one in which it
        expects the least time.
    """
    kept = {name: getattr(calibration, name) for name in ("collective_s", "network_s")}
    times = times_where_fastest(case, calibration)
    plain, probe = (times(dataclasses.replace(each, **kept)) for each in (_PLAIN, _PROBE))
    found = np.zeros(len(CHOICES) + 1)
    for (count, one), (_, other) in zip(plain, probe, strict=True):
        experts = other.compute - one.compute
        transfer = other.communication - one.communication
        each = {
            "memory": one.memory,
            "compute": one.compute - experts,
            "experts": experts,
            "link": transfer,
            "layer_s": case.model.layers,
            "sequence_s": other.overhead,
            "step_s": 1.0,
        }
        found += count * np.array([*each.values(), one.communication - transfer])
    return found


class EngineFit:
    """The expected times of cases as functions of a set's constants.

    Args:
      calibration: the set; its constants that are not fitted are taken as they are.
      cases: what was published of its engine on its chips.
    """

    def __init__(self, calibration: Calibration, cases: Sequence[Case | ServiceCase]):
        self.calibration, self.cases = calibration, list(cases)
        self.fitted = tuple(calibration.fitted)
        self._terms = np.array([terms(case, calibration) for case in self.cases])
        self._published = np.array([case.published_s for case in self.cases])

    @functools.cached_property
    def constants(self) -> dict[str, float]:
        """The constants that the fit to all cases finds."""
        return self.best()

    def best(self, keep: Callable[[Case], bool] = lambda case: True) -> dict[str, float]:
        """The fitted constants with the lowest score over the cases to keep.

        Args:
          keep: whether a case takes part in the fit.
        """
        kept = np.array([keep(case) for case in self.cases])
        found = {name: TYPICAL[name] for name in self.fitted}
        lowest = np.inf
        for _ in range(ROUNDS):
            for pair in itertools.combinations(self.fitted, min(2, len(self.fitted))):
                values = np.meshgrid(*(CHOICES[name] for name in pair), indexing="ij")
                moved = found | {n: v.ravel() for n, v in zip(pair, values, strict=True)}
                scores = self._score(moved, kept)
                found = {
                    n: float(v if np.ndim(v) == 0 else v[scores.argmin()]) for n, v in moved.items()
                }
            if not scores.min() < lowest - 1e-9:
                break
            lowest = scores.min()
        return found

    def halves(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Errors of two fits to half of the cases each: on that half, and on the other half.

        Args:
          seed: of the order in which the cases are dealt to the halves in turns.
        """
        order = np.random.default_rng(seed).permutation(len(self.cases))
        seen, unseen = np.empty(len(order)), np.empty(len(order))
        for half, other in ((order[::2], order[1::2]), (order[1::2], order[::2])):
            kept = {id(self.cases[number]) for number in half}
            errors = self.errors(self.best(lambda case, kept=kept: id(case) in kept))
            seen[half], unseen[other] = errors[half], errors[other]
        return seen, unseen

    def errors(self, constants: dict[str, float]) -> np.ndarray:
        """Each case's error of tokens per second, as a fraction of what was published."""
        return np.exp(-self._logs(constants)[:, 0]) - 1

    def _logs(self, constants: dict[str, float | np.ndarray]) -> np.ndarray:
        """Logarithms of expected over published seconds, [cases, sets of constants]."""
        values = {name: constants.get(name, getattr(self.calibration, name)) for name in CHOICES}
        if values["experts"] is None:
            values["experts"] = values["compute"]
        inverse = {
            name: 1 / v if name in ("memory", "compute", "experts", "link") else v
            for name, v in values.items()
        }
        weights = np.array(np.broadcast_arrays(*map(np.atleast_1d, inverse.values()), np.ones(1)))
        return np.log(self._terms @ weights / self._published[:, None])

    def _score(self, constants: dict[str, float | np.ndarray], kept: np.ndarray) -> np.ndarray:
        logs = self._logs(constants)[kept]
        pull = sum(_doublings(name, constants[name]) for name in self.fitted)
        return np.sqrt(logs**2 + SMALL**2).mean(axis=0) + PULL * pull


def _doublings(name: str, values: float | np.ndarray) -> np.ndarray:
    """Number of doublings between values and the typical one."""
    added = _RESOLVED.get(name, 0.0)
    return np.abs(np.log2((np.asarray(values) + added) / (TYPICAL[name] + added)))
