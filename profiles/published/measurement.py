"""What published measurements of steps and of services have in common."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp

from model.dtypes import Dtypes
from profiles.chips.slices import Slice
from profiles.expected.candidates import LayoutNames
from profiles.floor.deployment import Model
from profiles.published.engines import Engine
from profiles.published.fields import Stored, bits_in
from sharding.error_types import UsageError
from sharding.mesh import MeshShape


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
    """A published measurement of a model on a slice; those of each kind have `published_s` too.

    Attributes:
      source: who published it.
      locator: where it stands in the source.
      model: a configuration, or a model known by its sizes alone.
      slice: the slice.
      engine: the serving engine; None where it is not known.
      mesh: sizes of the mesh axes; None where they are not stated.
      dtype: dtype of arithmetic; None where it is not stated.
      weights: how weights are stored.
      stated_cache: how keys and values are stored; None where it is not stated.
      phase: ``decode``, ``prefill``, ``run`` or ``serving``.
      assumed: assumptions about what the source leaves open.
      fit: name of the calibration that was fitted to this case and others.
      held_out: why no calibration was fitted to it.
    """

    source: str
    locator: str
    model: Model
    slice: Slice
    engine: Engine | None = None
    mesh: MeshShape | None = dataclasses.field(default=None, hash=False)
    dtype: str | None
    weights: Stored
    stated_cache: Stored | None
    phase: str
    assumed: tuple[str, ...] = ()
    fit: str | None = None
    held_out: str | None = None

    @property
    def names(self) -> Sequence[LayoutNames]:
        """Names of all layouts that are consistent with the source."""
        raise NotImplementedError

    @property
    def cache(self) -> Stored | None:
        """How keys and values are stored, perhaps as the engine does; None as in arithmetic."""
        if self.stated_cache or not self.engine:
            return self.stated_cache
        return self.engine.cache_of(self.weights)

    @property
    def arithmetic(self) -> str:
        """JAX's name of the dtype of activations: float32 if stated, or if weights are in it."""
        stated = self.dtype or getattr(self.weights.expected, "name", "")
        return "float32" if stated == "float32" else "bfloat16"

    @property
    def multiplied(self) -> str:
        """Chips' name of the arithmetic of an expected time: as stated, or as the engine does.

        4-bit floats are converted on chips that multiply none.
        """
        if self.dtype:
            return self.dtype
        rates = self.slice.chip.flops
        habit = self.engine and self.engine.arithmetic.get(self.weights.name)
        converted = self.weights.name.endswith("fp4") and "fp4" not in rates
        return habit if habit in rates and not converted else self.arithmetic

    @property
    def fastest(self) -> str:
        """Chips' name of the arithmetic of a floor: as stated, or the fastest that may have been.

        Arithmetic on weights of 8 bits is in no fewer; of types that are as fast, the smallest.
        """
        if self.dtype or not self.weights.few_bits:
            return self.multiplied
        excluded = () if self.weights.bits < 8 else ("int4", "fp4")
        rates = {name: rate for name, rate in self.slice.chip.flops.items() if name not in excluded}
        return max(rates, key=lambda name: (rates[name], -bits_in(name)))

    def dtypes(self, for_floor: bool) -> Dtypes:
        """How numbers are stored: for a floor or for an expected time."""
        which = "floor" if for_floor else "expected"
        cache = getattr(self.cache, which) if self.cache else None
        return Dtypes(jnp.dtype(self.arithmetic), getattr(self.weights, which), cache)

    def slice_for(self, for_floor: bool) -> Slice:
        """The slice, with chips whose FLOP/s are those of the case's arithmetic.

        Arithmetic on quantized weights may be in 16 bits or in fewer: where a source does not say,
        a floor takes the fastest rate of the chip (`fastest`). It also takes the largest memory.

        Raises:
          UsageError: the chip has no rate of such arithmetic.
        """
        chip = self.slice.chip if for_floor else self.slice.chip.recommended
        if self.multiplied not in chip.flops:
            raise UsageError(
                f"dtype is {self.multiplied}, which {chip.name} has no published rate of "
                f"arithmetic for; use one of {', '.join(chip.flops)}"
            )
        rate = chip.peak(self.fastest if for_floor else self.multiplied)
        capacity = chip.capacity if for_floor else None
        chip = self.slice.chip.override(flops=rate, capacity=capacity)
        return dataclasses.replace(self.slice, chip=chip)


@dataclasses.dataclass(frozen=True)
class Unusable:
    """A case that cannot be compared with a step or a service.

    Attributes:
      source: who published it.
      locator: where it stands in the source.
      why: the reason, in one line.
    """

    source: str
    locator: str
    why: str
