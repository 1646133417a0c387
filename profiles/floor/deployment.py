"""A deployment: a model in a layout on a slice. Counts, estimates and plans are made for one."""

import dataclasses
import functools
import math
from collections.abc import Callable

from model.config import ModelConfig
from model.dtypes import Dtypes
from model.layout_check import settle
from profiles.chips.calibration import Calibration
from profiles.chips.chip import Price
from profiles.chips.slices import Slice
from profiles.floor.bound import Floor
from profiles.floor.bytes_and_flops import PassCounter
from profiles.floor.passes import Counts, Pass
from profiles.floor.pipelines import inside_over_between, sent_s, with_hops
from profiles.floor.sized_models import SizedModel, SizedPassCounter
from sharding.layout import Layout
from sharding.mesh import MeshShape
from sharding.placement import Placement

Model = ModelConfig | SizedModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class Deployment:
    """A model in a layout on a slice, and assumptions about its steps.

    Attributes:
      model: a configuration, or a model known by its sizes alone.
      slice: the chips; of a pipeline, those of one stage.
      dtypes: how numbers are stored.
      calibration: the constants of expected times.
      layout: the layout; None where it is still to be chosen, and for a model known by its sizes,
        which divides evenly.
      mesh: sizes of the mesh axes; None where the layout is None.
      experts: which experts a step is assumed to read: ``coverage``, ``least`` or ``all``.
      price: what a chip costs by the hour; None leaves costs out.
      stages: slices like `slice` that a pipeline divides the layers over, evenly; 1 for none. As
        many batches are in flight, each as large as a pass says, so that a chip has a stage's part
        of the weights and as much of the cache as without.
      hop_s: least seconds of each hop from stage to stage, whatever it sends; None where they are
        not known, so that floors have none, and expected times those of the calibration for a
        collective between slices.
    """

    model: Model
    slice: Slice
    dtypes: Dtypes
    calibration: Calibration
    layout: Layout | None = None
    mesh: MeshShape | None = None
    experts: str = "coverage"
    price: Price | None = None
    stages: int = 1
    hop_s: float | None = None

    @property
    def whole(self) -> Slice:
        """All chips: the slice, or those of all stages."""
        return dataclasses.replace(self.slice, count=self.slice.count * self.stages)

    @property
    def expected_hop_s(self) -> float:
        """Expected seconds of each hop, whatever it sends."""
        return self.calibration.network_s if self.hop_s is None else self.hop_s

    @property
    def expert_layers_per_stage(self) -> float:
        """Layers of experts in a stage, on average: the first layers of a mixture may have none."""
        return self.model.layers_of_experts / self.stages

    @property
    def inside_over_between(self) -> float | None:
        """Time that a stage's layers send to experts over that of its hop, hidden from 1 on.

        None for a dense model, and where rates of a fabric and of a network are not both known.
        """
        model, chip = self.model, self.slice.chip
        if not (model.experts and chip.network and chip.fabric):
            return None
        ratio, layers = chip.network / chip.fabric, self.expert_layers_per_stage
        return inside_over_between(ratio, model.experts_per_token, layers)

    def in_stages(self, alone: Floor, rows: float) -> Floor:
        """The floor of a batch's pass through all stages, by that on one slice with all layers.

        A batch goes on whole: a stage starts when it has all activations of the batch. So stages
        work in turn, and the batch, like each of its tokens, waits for the latency of every hop,
        whatever other batches do meanwhile. The bytes of a hop may go while the stage still works::

            max(memory, compute, communication, bytes of all hops) + stages x hop_s

        A hop that is not known to take so long, but expected to, is no part of a bound: without
        `hop_s` hops have no latency here.

        Args:
          alone: the floor without a pipeline.
          rows: tokens of the pass.
        """
        if self.stages == 1:
            return alone
        sent = self.sent_s(rows, self.slice.chip.network or math.inf)
        waits = with_hops(0.0, self.stages, self.hop_s or 0.0)
        communication = max(alone.communication or 0.0, sent)
        return dataclasses.replace(alone, communication=communication, hops=waits or None)

    def sent_s(self, rows: float, rate: float) -> float:
        """Seconds in which activations of so many tokens go through all stages of a pipeline.

        Args:
          rows: tokens of a pass.
          rate: bytes per second from a chip to one of the next stage.
        """
        size = rows * self.model.d_model * self.dtypes.dtype.itemsize
        return sent_s(self.stages, size, rate * self.slice.chips)

    @functools.cached_property
    def placement(self) -> Placement | None:
        """The layout on the mesh, which shards every array; None for a model known by its sizes.

        Raises:
          LayoutError: the layout cannot divide the model over the mesh.
        """
        if isinstance(self.model, SizedModel):
            return None
        return settle(self.model, self.dtypes, self.layout, self.mesh)

    @property
    def arithmetic(self) -> str:
        """Name of the type that matmuls multiply in on these chips, as chips' figures have it."""
        return self.dtypes.arithmetic_on(self.slice.chip.flops)

    @functools.cached_property
    def counter(self) -> PassCounter | SizedPassCounter:
        """Counts the work of decode steps."""
        if self.placement is None:
            return SizedPassCounter(self.model, self.dtypes, self.slice.devices)
        return PassCounter(self.model, self.placement, self.dtypes)

    @functools.cached_property
    def prompt_counter(self) -> PassCounter | SizedPassCounter:
        """Counts the work of prefills, which may have a layout of their own."""
        if self.placement is None or self.placement.prefill is self.placement:
            return self.counter
        return PassCounter(self.model, self.placement.prefill, self.dtypes)

    def padded(self, pass_: Pass) -> Pass:
        """The pass with its batch padded to a multiple of what the layout divides it into."""
        multiple = self.placement.multiple("B") if self.placement else 1
        return pass_.of_batch(-(-pass_.batch // multiple) * multiple)

    @functools.cached_property
    def count(self) -> Callable[[Pass], Counts]:
        """``count(pass_)``: the work of a pass on each device; services ask for the same again."""
        return functools.cache(self._count)

    def _count(self, pass_: Pass) -> Counts:
        counter = self.prompt_counter if pass_.over_prompts else self.counter
        counts = counter.count(self.padded(pass_), self.experts)
        if self.stages == 1:
            return counts
        return dataclasses.replace(counts, weights_resident=counts.weights_resident / self.stages)

    def usd_per_million_tokens(self, pass_: Pass, seconds: float) -> float | None:
        """Cost of a million new tokens if a pass takes so many seconds; None without a price.

        A pipeline has as many times the chips as it has batches in flight, so one stage's chips are
        what one batch pays for.
        """
        if self.price is None:
            return None
        chip_hours = self.slice.chips * seconds / 3600
        return self.price.usd * chip_hours / (pass_.batch * pass_.tokens) * 1e6
