"""Readers of weights in the formats of other projects, and this project's own checkpoints."""

from sharding.error_types import FloorlineError


class WeightsError(FloorlineError):
    """A file of weights that is missing, damaged, or holds something not supported."""
