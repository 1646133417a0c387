"""Lines through measured times: what a kernel costs however small it is, and its rate beyond that.

The points are medians of samples, so that a slow moment moves none of them. Each weighs by its
relative error: by plain least squares the longest times alone would decide, and the fixed cost,
which is a thousandth of them, would be noise.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Line(NamedTuple):
    """Seconds as a fixed cost and an amount over a rate.

    Attributes:
      fixed_s: seconds of nothing, 0 or more.
      rate: amount per second: bytes or FLOPs; infinite where times do not grow with it.
    """

    fixed_s: float
    rate: float

    def seconds(self, amount: float) -> float:
        """The time of an amount."""
        return self.fixed_s + amount / self.rate


def fit_line(amounts: Sequence[float], seconds: Sequence[float]) -> Line:
    """The line with the least squares of relative errors, without negative costs.

    Args:
      amounts: bytes or FLOPs, each above 0; of a single one the line has no fixed cost.
      seconds: the median time of each.

    Returns:
      The line. Where the best one begins below 0, it is the best of those that begin there.
    """
    sizes, times = np.asarray(amounts, float), np.asarray(seconds, float)
    ones, fixed, slope = np.ones(len(times)), 0.0, math.inf
    if len(set(amounts)) > 1:
        scale = sizes.max()  # both columns near 1
        columns = np.stack([1 / times, sizes / scale / times], axis=1)
        fixed, slope = np.linalg.lstsq(columns, ones, rcond=None)[0]
        slope /= scale
    if slope <= 0:
        weights = 1 / times
        return Line(float(weights.sum() / (weights**2).sum()), math.inf)
    if fixed <= 0:
        relative = sizes / times
        return Line(0.0, float((relative**2).sum() / relative.sum()))
    return Line(float(fixed), float(1 / slope))
