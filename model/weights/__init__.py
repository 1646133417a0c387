"""Weights kept in files of other projects, brought to this model's shapes."""

from sharding.error_types import FloorlineError


class WeightsError(FloorlineError):
    """A file of weights that is missing, damaged, or holds something not supported."""
