"""One model on the devices that are here: placed as the flags ask, and loaded if it fits."""

import dataclasses
import functools
from collections.abc import Sequence

import _dtypes
import _layouts
from _here_flags import DEVICES, MESH
from absl import flags

from decode.chunks import default_chunk
from decode.engine import Engine
from decode.load import ModelSource
from model.dtypes import Dtypes
from profiles.floor.memory_needed import Need, check_room, need_of
from profiles.floor.passes import Pass
from profiles.report.progress import byte_progress
from sharding.devices import default_platform
from sharding.layout import Layout
from sharding.mesh import MeshShape
from sharding.placement import Placement


@dataclasses.dataclass(frozen=True)
class Placed:
    """A model with its layout and mesh, whose weights are still where they come from.

    Attributes:
      source: the model.
      layout: of steps.
      shape: of the mesh.
      dtypes: of its numbers.
    """

    source: ModelSource
    layout: Layout
    shape: MeshShape
    dtypes: Dtypes

    @property
    def placement(self) -> Placement:
        """What the mesh divides."""
        return Placement.of(self.layout, self.source.config.sizes, self.shape)

    def state_choices(self, batch: int | None = None) -> None:
        """Tells the user what the layout replicates, and how it pads a batch."""
        _layouts.state_choices(self.source.config, self.placement, self.dtypes, batch)

    def need(
        self,
        batch: int,
        slots: int,
        prompt: tuple[int, int] | None = None,
        beside: float = 0.0,
        **drafts: int,
    ) -> Need:
        """The memory that steps need, see `need_of`, which takes `drafts`.

        So many bytes lie `beside` those of each sequence.
        """
        sizes = {"batch": batch, "slots": slots, "prompt": prompt, **drafts}
        need = need_of(self.source.config, self.placement, self.dtypes, **sizes)
        return need._replace(each=need.each + beside)

    def load(
        self, batch: int, slots: int, prompt: int, chunk: int, seed: int, **more: float
    ) -> Engine:
        """The engine, with prompts in chunks of `chunk`.

        Args:
          batch: sequences.
          slots: tokens that the cache of each has room for.
          prompt: tokens of the longest prompt.
          chunk: tokens of a prompt that run at once.
          seed: of random weights.
          more: what `need` takes beside these.

        Raises:
          FloorlineError: it does not fit.
        """
        need = functools.partial(self.need, batch, slots, **more)
        check_room(need(prompt=(prompt, chunk)), need)
        engine = self.source.engine(self.layout, self.shape, self.dtypes, seed, byte_progress)
        engine.chunk = chunk
        return engine


def place(
    source: ModelSource, meshes: _layouts.MeshChoices | None, steps: Sequence[Pass]
) -> Placed:
    """The model in the layout that the flags name, or that is the best for these steps.

    Raises:
      LayoutError: the layout cannot divide the model.
    """

    def dtypes() -> Dtypes:
        return dtypes_of(source)

    _layouts.check(source.config, meshes)
    layout, shape = _layouts.layout(source.config, meshes, dtypes, steps)
    return Placed(source, layout, shape, dtypes())


def meshes() -> _layouts.MeshChoices | None:
    """As `_layouts.meshes`, of this script's flags."""
    return _layouts.meshes(DEVICES.value, MESH.value)


def chunk(flag: flags.FlagHolder[int | None]) -> int:
    """Tokens of a prompt that run at once, by ``--chunk`` or by default; this starts JAX."""
    return flag.value or default_chunk(default_platform())


def dtypes_of(source: ModelSource) -> Dtypes:
    """The one set of dtypes that the flags give a model; this starts JAX."""
    return _dtypes.dtypes(source.stored_quantization())
