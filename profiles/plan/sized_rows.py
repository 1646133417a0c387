"""Models known by their sizes alone, as a plan compares them: a row for each number of devices."""

from collections.abc import Iterable

import numpy as np

from model.dtypes import Dtypes
from profiles.chips.calibration import Calibration
from profiles.chips.slices import Slice
from profiles.expected.sized_links import SizedLinks
from profiles.expected.time import CommunicationTime
from profiles.floor.passes import BatchLine, Pass, PromptLine
from profiles.floor.sized_models import SizedModel, SizedPassCounter
from profiles.plan.row_communication import RowTimes
from profiles.plan.rows import Row


class SizedRows:
    """Stands for `Rows`, and for what they send.

    Args:
      model: by its sizes.
      counts: numbers of devices.
    """

    def __init__(self, model: SizedModel, counts: Iterable[int]):
        self.model = model
        self.rows = [Row(devices) for devices in sorted(set(counts))]
        self.multiples = np.ones(len(self.rows), int)

    def of(self, devices: int) -> range:
        """Numbers of the rows of so many devices."""
        (number,) = (n for n, row in enumerate(self.rows) if row.devices == devices)
        return range(number, number + 1)

    def lines(self, dtypes: Dtypes, context: int, slots: int, prompt: int | None) -> BatchLine:
        """Decode steps of all rows, each field an array; activations are not known."""
        counters = (SizedPassCounter(self.model, dtypes, row.devices) for row in self.rows)
        return BatchLine(*np.array([each.line(context, slots) for each in counters]).T)

    def prompts(self, dtypes: Dtypes, tokens: int, experts: str) -> np.ndarray:
        """Bytes that one prompt's pass moves on each device, FLOPs, rows, experts' FLOPs."""
        counters = (SizedPassCounter(self.model, dtypes, row.devices) for row in self.rows)
        passes = [each.count(Pass(1, 0, tokens), experts) for each in counters]
        return np.array([(one.memory, one.flops, one.rows, one.expert_flops) for one in passes]).T

    def prompt_lines(self, dtypes: Dtypes, tokens: int) -> PromptLine:
        """What each prompt of a service adds to steps, each field an array."""
        counters = [SizedPassCounter(self.model, dtypes, row.devices) for row in self.rows]
        found = [each.prompt_line(each.count(Pass(1, 0, tokens)), 1) for each in counters]
        return PromptLine(*np.array(found).T)

    def communication(
        self, slice: Slice, dtypes: Dtypes, calibration: Calibration, tokens: int
    ) -> RowTimes:
        """Times of collectives of a slice's row in decode steps, or in one prompt's prefill."""
        line = SizedLinks(self.model, dtypes, slice, calibration).expected_line(tokens)
        fixed, growing = (CommunicationTime(*map(np.atleast_1d, each)) for each in line)
        return RowTimes(fixed, growing, {}, tokens)
