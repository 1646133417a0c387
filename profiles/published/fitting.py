"""Finds the constants of `calibrations.json` from published measurements.

There is one calibration for a family of chips and the software on it, fitted to the cases that name
it. Those of serving engines are found by `engine_fitting`, the others as follows. All points of a
grid of round numbers are tried, with and without overlap of collectives, so that a constant has no
more digits than the data determine. The score to minimize is the mean absolute error (the logarithm
of expected over measured) plus three tenths of its 90th percentile, plus a small penalty for each
doubling between a constant and its typical value. The penalty keeps a fit from following the noise
of a few rows, and alone decides about constants that these steps do not determine.

Each calibration is also tested on steps that it was not fitted to: on each case by a fit without
it, without all cases of its batch, of its stored type, or of its number of chips; and on the cases
of other software. `PULL` and `HIDING` were chosen by the first four errors, which are therefore too
low; nothing was chosen by the cases of other software.

  python -m profiles.published.fitting
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from profiles.chips.calibration import Calibration, calibrations
from profiles.published.cases import Case, shipped_cases
from profiles.published.comparison import passes_of, reproduce
from profiles.published.engine_fitting import EngineFit
from profiles.published.estimators import estimators
from profiles.report.table import Table

GRID = {
    "hidden": (False, True),
    "memory": (0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95),
    "compute": (0.3, 0.4, 0.5, 0.6, 0.7, 0.8),
    "link": (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
    "collective_s": (1e-6, 2e-6, 3e-6, 5e-6, 8e-6, 1.2e-5),
    "layer_s": (0.0, 2e-6, 5e-6, 1e-5, 2e-5, 3e-5, 4e-5, 5e-5, 6e-5, 8e-5),
}
"""Constants that are fitted, and the values to try for each."""
TYPICAL = {"memory": 0.85, "compute": 0.6, "link": 0.8, "collective_s": 5e-6, "layer_s": 1e-5}
"""Typical constants: published rates of copies (0.80 to 0.87 of memory bandwidth), of entire models
(0.4 to 0.76 of the arithmetic peak) and of collectives (2.3 to 10 us each); three kernels of 3 us
for a layer. Collectives are typically not overlapped."""
TAIL, PULL, HIDING = 0.3, 0.01, 2
"""Weight of the 90th percentile; penalty of a doubling; doublings that overlap counts as."""
MANY = 20
"""Errors that a table does not show one by one."""
_RESOLVED = 2e-6  # seconds per layer that a fit cannot distinguish from 0
_SHAPE = tuple(map(len, GRID.values()))


@dataclasses.dataclass(frozen=True)
class Features:
    """The terms of an expected time in one layout on one mesh, before calibration.

    Attributes:
      memory: seconds to move bytes at the full bandwidth.
      compute: seconds of arithmetic at the full rate.
      transfer: seconds to send the collectives' bytes at the full rate of links.
      hops: seconds of the collectives' hops through a torus.
      collectives: number of collectives.
      layers: number of layers of the model.
    """

    memory: float
    compute: float
    transfer: float
    hops: float
    collectives: float
    layers: int

    def seconds(self, constants: dict[str, np.ndarray]) -> np.ndarray:
        """The expected time for each set of constants, by the equation of `Expected.seconds`."""
        memory, compute = self.memory / constants["memory"], self.compute / constants["compute"]
        communication = self.hops + self.collectives * constants["collective_s"]
        communication = communication + self.transfer / constants["link"]
        seconds = np.where(
            constants["hidden"],
            np.maximum(memory, compute + communication),
            np.maximum(memory, compute) + communication,
        )
        return seconds + self.layers * constants["layer_s"]


def features(case: Case) -> Iterator[Features]:
    """The features of a case's decode step, for each mesh that it may have run on."""
    ideal = Calibration("ideal", "", (), 1, 1, 1, 0, 0, 0, 0, False)
    counting = dataclasses.replace(ideal, collective_s=1)
    ((_, pass_),) = passes_of(case)
    pairs = zip(estimators(case, False, ideal), estimators(case, False, counting), strict=True)
    for estimator, counted in pairs:
        expected = estimator.estimate(pass_).expected
        communication = estimator.communication(estimator.padded(case.batch))
        count = counted.communication(estimator.padded(case.batch)).latency - communication.latency
        layers = case.model.layers
        yield Features(
            expected.memory,
            expected.compute,
            communication.transfer,
            communication.latency,
            round(count),
            layers,
        )


class Fit:
    """The errors of all points of the grid on some cases.

    Args:
      cases: decode steps.
    """

    def __init__(self, cases: Sequence[Case]):
        self.cases = list(cases)
        axes = np.meshgrid(*map(np.array, GRID.values()), indexing="ij", sparse=True)
        constants = dict(zip(GRID, axes, strict=True))
        self.errors = np.empty((len(self.cases), *_SHAPE), np.float32)
        for errors, case in zip(self.errors, self.cases, strict=True):
            best = functools.reduce(
                np.minimum, (each.seconds(constants) for each in features(case))
            )
            errors[...] = np.log(best / case.published_s)
        self.pull = PULL * (
            HIDING * constants["hidden"]
            + sum(_doublings(name, constants[name], value) for name, value in TYPICAL.items())
        )

    def best(self, keep: Callable[[Case], bool] = lambda case: True) -> tuple[int, ...]:
        """Indices of the point of the grid with the lowest score over the cases to keep."""
        errors = np.abs(self.errors[[keep(case) for case in self.cases]])
        score = errors.mean(axis=0) + TAIL * np.percentile(errors, 90, axis=0) + self.pull
        return tuple(map(int, np.unravel_index(np.argmin(score), _SHAPE)))

    def constants(self, indices: tuple[int, ...]) -> dict[str, float | bool]:
        """The constants at a point of the grid."""
        return {name: values[i] for (name, values), i in zip(GRID.items(), indices, strict=True)}

    def held_out(self, alike: Callable[[Case], object]) -> np.ndarray | None:
        """Each case's relative error by a fit that leaves out all cases of its group.

        Args:
          alike: returns the group of a case.

        Returns:
          The errors in the order of the cases; None if there is one group, which leaves nothing to
          fit.
        """
        groups = [alike(case) for case in self.cases]
        if len(set(groups)) < 2:
            return None
        errors = np.empty(len(groups))
        for group in set(groups):
            indices = self.best(lambda case, group=group: alike(case) != group)
            for number, other in enumerate(groups):
                if other == group:
                    errors[number] = np.expm1(self.errors[(number, *indices)])
        return errors


HELD_OUT: dict[str, Callable[[Case], object]] = {
    "the row": lambda case: case,
    "its batch": lambda case: case.batch,
    "its weight type": lambda case: case.weights,
    "its number of chips": lambda case: case.slice.chips,
}


def _doublings(name: str, values: np.ndarray, typical: float) -> np.ndarray:
    """Number of doublings between values and a typical one."""
    added = _RESOLVED if name == "layer_s" else 0
    return np.abs(np.log2((values + added) / (typical + added)))


def fitted_cases(name: str) -> list[Case]:
    """The cases that the calibration of this name is fitted to."""
    return [case for case in shipped_cases()[0] if case.fit == name]


def main() -> None:
    """Prints the fitted constants, whether they are the shipped ones, and errors on all cases."""
    rows = []
    sets = calibrations()
    for shipped in (each for each in sets if not each.fitted):
        fit = Fit(fitted_cases(shipped.name))
        fitted = fit.constants(fit.best())
        same = all(getattr(shipped, name) == value for name, value in fitted.items())
        print(f"{shipped.name}: {fitted}" + ("" if same else "; SHIPPED OTHERWISE"))
        errors = np.expm1(fit.errors[(slice(None), *fit.best())])
        rows.append((shipped.name, "nothing: all fitted", *_cells(errors)))
        for words, alike in HELD_OUT.items():
            if (errors := fit.held_out(alike)) is not None:
                rows.append((shipped.name, words, *_cells(errors)))
    for shipped in (each for each in sets if each.fitted):
        rows += _of_engine(shipped)
    for source, cases in _others():
        results = [reproduce(case) for case in cases]
        lent = dict.fromkeys(each.calibration.name for each in results)
        rows.append((", ".join(lent), f"all: {source}", *_cells([each.error for each in results])))
    head = "set", "not fitted", "rows", "median |error|", "p90", "errors"
    print(Table(head, rows).terminal())


def _of_engine(shipped: Calibration) -> Iterator[tuple[str, ...]]:
    """Rows of the set of an engine, whose constants it prints."""
    fit = EngineFit(shipped, fitted_cases(shipped.name))
    same = all(getattr(shipped, name) == value for name, value in fit.constants.items())
    print(f"{shipped.name}: {fit.constants}" + ("" if same else "; SHIPPED OTHERWISE"))
    yield shipped.name, "nothing: all fitted", *_cells(fit.errors(fit.constants))
    if len(fit.cases) > 2 * len(shipped.fitted):
        for words, errors in zip(
            ("nothing: half, fitted", "the other half"), fit.halves(0), strict=True
        ):
            yield shipped.name, words, *_cells(errors)


def _others() -> Iterator[tuple[str, list[Case]]]:
    """Decode steps of sources that no calibration was fitted to, by source."""
    cases = [case for case in shipped_cases()[0] if case.held_out and case.phase == "decode"]
    for source, group in itertools.groupby(cases, lambda case: case.source):
        yield source.split(" ")[0].rstrip(","), list(group)


def _cells(errors: Iterable[float]) -> tuple[str, ...]:
    sizes = np.abs(list(errors))
    return (
        str(len(sizes)),
        f"{np.median(sizes):.1%}",
        f"{np.percentile(sizes, 90):.1%}",
        " ".join(f"{error:+.0%}" for error in errors) if len(sizes) <= MANY else "",
    )


if __name__ == "__main__":
    main()
