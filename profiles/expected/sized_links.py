"""Expected times of collectives of models that are known by their sizes alone.

A layer of experts, which are divided over all chips, has an all-to-all to them and one back. First
layers of a mixture that have no experts are taken to run each chip's own tokens, as attention is. A
layer of a dense model has two all-reduces.
"""

import dataclasses

from model.dtypes import Dtypes
from profiles.chips.calibration import Calibration
from profiles.chips.slices import Slice
from profiles.expected.links import embeddings
from profiles.expected.time import NO_COMMUNICATION, CommunicationTime
from profiles.floor.collective import Collective
from profiles.floor.sized_models import SizedModel


class SizedLinks:
    """Times of the collectives of passes, with the methods of `LinkTimes`.

    Args:
      model: the model.
      dtypes: how its numbers are stored.
      slice: the slice.
      calibration: gives the fixed time of a collective.
    """

    def __init__(self, model: SizedModel, dtypes: Dtypes, slice: Slice, calibration: Calibration):
        self.model, self.dtypes, self.slice, self.calibration = model, dtypes, slice, calibration
        mesh = (("z", slice.devices),)
        recommended = dataclasses.replace(slice, chip=slice.chip.recommended)
        (self._embedding,) = embeddings(recommended, mesh, for_floor=False)

    def communication(
        self, batch: float, tokens: int = 1, continues: bool = False
    ) -> CommunicationTime:
        """Times of a pass's collectives. The floor has none, because some layout may need none.

        Args:
          batch: number of sequences.
          tokens: new tokens of each sequence.
          continues: changes nothing here: a cache lies as attention wants it.
        """
        if self.slice.devices == 1:
            return NO_COMMUNICATION
        size = batch * tokens * self.model.d_model * self.dtypes.dtype.itemsize
        if self.model.experts:  # each chip has a part of the tokens, and sends k copies of each
            size *= self.model.experts_per_token / self.slice.devices
            layers = self.model.layers - self.model.dense_layers
            both = Collective("all-to-all", ("z",), size, 2 * layers)
        else:
            both = Collective("all-reduce", ("z",), size, 2 * self.model.layers)
        start, per_byte = self._embedding.expected_cost(both.kind, both.axes, self.calibration)
        return CommunicationTime(
            0.0, both.count * start, both.count * both.payload_bytes * per_byte, 0.0
        )

    def beside(self, batch: int, prompts: float, tokens: int) -> CommunicationTime:
        """Times of a decode step that prompts' chunks ride along with; see `LinkTimes.beside`."""
        return self.communication(batch + prompts * tokens)

    expected = communication  # the method of `LinkTimes` without a floor, which is the same here

    def expected_line(self, tokens: int = 1) -> tuple[CommunicationTime, CommunicationTime]:
        """Times that do not depend on batch, and those that each sequence adds."""
        one, two = self.communication(1, tokens), self.communication(2, tokens)
        slope = two.transfer - one.transfer
        return one._replace(transfer=one.transfer - slope), CommunicationTime(0.0, 0.0, slope, 0.0)
