"""Finds the constants of `calibrations.json` from published decode steps.

One set for a family of chips and the software on it, fitted to the cases of `published_steps.json`
that name it. All round numbers of a grid are tried, with the rule of overlap either way, so that a
constant has no more digits than the data can tell. What is least is the mean of the errors' sizes
(logarithms of expected over measured) plus three tenths of their 90th percentile, and a little for
each doubling that separates a constant from a typical one, which keeps a set from following the
noise of a few rows, and alone decides about constants that the steps at hand say nothing of.

Each set is also tried on steps that it did not see: on each by a fit without it, without all of its
batch, of its stored type, of its number of chips; and on the cases of other software. `PULL` and
`HIDING` were chosen with the first four in view, whose errors are so much too kind; no constant and
no choice was made by the cases of other software.

  python -m profiles.published.fitting
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from profiles.chips.calibration import Calibration, calibrations
from profiles.published.cases import Case, shipped_cases
from profiles.published.rows import estimators, passes_of, reproduce
from profiles.report.table import Table

GRID = {
    "hidden": (False, True),
    "memory": (0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95),
    "compute": (0.3, 0.4, 0.5, 0.6, 0.7, 0.8),
    "link": (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
    "collective_s": (1e-6, 2e-6, 3e-6, 5e-6, 8e-6, 1.2e-5),
    "layer_s": (0.0, 2e-6, 5e-6, 1e-5, 2e-5, 3e-5, 4e-5, 5e-5, 6e-5, 8e-5),
}
"""Constants that are fitted, and the values that they may take."""
TYPICAL = {"memory": 0.85, "compute": 0.6, "link": 0.8, "collective_s": 5e-6, "layer_s": 1e-5}
"""Where steps do not tell: published rates of copies (0.80 to 0.87 of a memory's), of whole models
(0.4 to 0.76 of the arithmetic peak) and of collectives (2.3 to 10 us each); three kernels of 3 us
for a layer. Nothing hides collectives."""
TAIL, PULL, HIDING = 0.3, 0.01, 2
"""Weights of the 90th percentile, of a doubling, and how many doublings the rule of overlap is."""
_RESOLVED = 2e-6  # seconds per layer that no fit tells from none
_SHAPE = tuple(map(len, GRID.values()))


@dataclasses.dataclass(frozen=True)
class Features:
    """What an expected time is made of, in seconds at rates of 1, for one layout and mesh.

    Attributes:
      memory: moving bytes.
      compute: arithmetic.
      sending: collectives' bytes.
      hops: their way through a torus.
      collectives: how many.
      layers: of the model.
    """

    memory: float
    compute: float
    sending: float
    hops: float
    collectives: float
    layers: int

    def seconds(self, constants: dict[str, np.ndarray]) -> np.ndarray:
        """The expected time for each set of constants, by the equation of `Expected.seconds`."""
        memory, compute = self.memory / constants["memory"], self.compute / constants["compute"]
        sent = self.hops + self.collectives * constants["collective_s"]
        sent = sent + self.sending / constants["link"]
        seconds = np.where(
            constants["hidden"],
            np.maximum(memory, compute + sent),
            np.maximum(memory, compute) + sent,
        )
        return seconds + self.layers * constants["layer_s"]


def features(case: Case) -> Iterator[Features]:
    """Of a case's decode step, for each mesh that it may be on."""
    ideal = Calibration("ideal", "", (), 1, 1, 1, 0, 0, 0, 0, False)
    counting = dataclasses.replace(ideal, collective_s=1)
    ((_, pass_),) = passes_of(case)
    pairs = zip(estimators(case, False, ideal), estimators(case, False, counting), strict=True)
    for estimator, counted in pairs:
        expected = estimator.estimate(pass_).expected
        sent = estimator.sent(estimator.padded(case.batch))
        count = counted.sent(estimator.padded(case.batch)).starts - sent.starts
        layers = case.model.layers
        yield Features(
            expected.memory, expected.compute, sent.sending, sent.starts, round(count), layers
        )


class Fit:
    """All sets of the grid, held against some cases.

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
        """Where on the grid the errors of the cases to keep are least."""
        errors = np.abs(self.errors[[keep(case) for case in self.cases]])
        score = errors.mean(axis=0) + TAIL * np.percentile(errors, 90, axis=0) + self.pull
        return tuple(map(int, np.unravel_index(np.argmin(score), _SHAPE)))

    def constants(self, place: tuple[int, ...]) -> dict[str, float | bool]:
        """The set at a place of the grid."""
        return {name: values[i] for (name, values), i in zip(GRID.items(), place, strict=True)}

    def held_out(self, alike: Callable[[Case], object]) -> np.ndarray | None:
        """Each case's error, as a fraction, by a fit without any that are like it.

        Args:
          alike: what cases have in common that are left out together.

        Returns:
          None if all are alike: nothing would be left to fit.
        """
        groups = [alike(case) for case in self.cases]
        if len(set(groups)) < 2:
            return None
        found = np.empty(len(groups))
        for group in set(groups):
            place = self.best(lambda case, group=group: alike(case) != group)
            for number, other in enumerate(groups):
                if other == group:
                    found[number] = np.expm1(self.errors[(number, *place)])
        return found


HELD_OUT: dict[str, Callable[[Case], object]] = {
    "the row": lambda case: case,
    "its batch": lambda case: case.batch,
    "its weight type": lambda case: case.weights,
    "its number of chips": lambda case: case.slice.chips,
}


def _doublings(name: str, values: np.ndarray, typical: float) -> np.ndarray:
    """That separate values from a typical one."""
    least = _RESOLVED if name == "layer_s" else 0
    return np.abs(np.log2((values + least) / (typical + least)))


def fitted_cases(name: str) -> list[Case]:
    """Those that a calibration of this name is fitted to."""
    return [case for case in shipped_cases()[0] if case.fit == name]


def main() -> None:
    """Prints each set as found and as shipped, and errors on what was and was not fitted."""
    rows = []
    for shipped in calibrations():
        fit = Fit(fitted_cases(shipped.name))
        found = fit.constants(fit.best())
        same = all(getattr(shipped, name) == value for name, value in found.items())
        print(f"{shipped.name}: {found}" + ("" if same else "; SHIPPED OTHERWISE"))
        errors = np.expm1(fit.errors[(slice(None), *fit.best())])
        rows.append((shipped.name, "nothing: all fitted", *_cells(errors)))
        for words, alike in HELD_OUT.items():
            if (errors := fit.held_out(alike)) is not None:
                rows.append((shipped.name, words, *_cells(errors)))
    for source, cases in _others():
        found = [reproduce(case) for case in cases]
        sets = calibrations()
        lent = {s.name for s in sets for case in cases if case.slice.chip.name in s.chips}
        rows.append((", ".join(lent), f"all: {source}", *_cells([each.error for each in found])))
    head = "set", "not fitted", "rows", "median |error|", "p90", "errors"
    print(Table(head, rows).terminal())


def _others() -> Iterator[tuple[str, list[Case]]]:
    """Decode steps of sources that nothing was fitted to."""
    cases = [case for case in shipped_cases()[0] if case.held_out and case.phase == "decode"]
    for source, group in itertools.groupby(cases, lambda case: case.source):
        yield source.split(" ")[0].rstrip(","), list(group)


def _cells(errors: Iterable[float]) -> tuple[str, ...]:
    sizes = np.abs(list(errors))
    return (
        str(len(sizes)),
        f"{np.median(sizes):.1%}",
        f"{np.percentile(sizes, 90):.1%}",
        " ".join(f"{error:+.0%}" for error in errors),
    )


if __name__ == "__main__":
    main()
