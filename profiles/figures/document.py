"""The document of a run that draws curves: records at the batches asked for, and the curves."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from profiles.expected.estimate_record import Recorder, basis
from profiles.figures.study import Study
from profiles.report.document import document

DIGITS = 6  # significant digits of a curve's numbers


def curves_document(
    command: Sequence[str], started: str, study: Study, names: Sequence[str], found: Mapping
) -> dict:
    """One run's document.

    Args:
      command: the command line.
      started: when the run began, ISO 8601.
      study: what was drawn.
      names: names of the figures.
      found: data of the figures that are not against batch, by name; None for one left out.

    Returns:
      With `points`, the records of steps at each batch and context that figures against batch have,
      and `curves`, the numbers of each figure.
    """
    shown = {"latency": 1, "cost": 1, "contexts": len(study.options.contexts)}
    count = max((shown.get(name, 0) for name in names), default=0)
    recorder, estimator = Recorder(study.estimator), study.estimator
    points = [
        recorder.record(estimator.decode(batch, context))
        for context in study.options.contexts[:count]
        for batch in study.options.batches
    ]
    deployment = estimator.deployment
    curves = {"steps": study.steps[:count]} if count else {}
    curves |= {name: data for name, data in found.items() if data is not None}
    return document(
        command,
        points,
        started=started,
        **basis(deployment),
        price_per_chip_hour=deployment.price and deployment.price.usd,
        prices={
            each.chip.name: each.deployment.price.as_record()
            for each in study.compared()
            if each.deployment.price is not None
        },
        curves=_plain(curves),
    )


def _plain(value: object) -> object:
    """Numbers, lists and dictionaries of anything, rounded."""
    if dataclasses.is_dataclass(value):
        return {name: _plain(each) for name, each in _fields(value)}
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def _fields(value: object) -> Iterator[tuple[str, object]]:
    for field in dataclasses.fields(value):
        each = getattr(value, field.name)
        if each is not None:
            yield field.name, each
