"""Models that are known by their sizes alone: what the engine does not run yet, from `sized.json`.

Their weights, caches and arithmetic are taken to divide evenly over the chips, as bytes and FLOPs
in the terms of every other model. Collectives are those of experts divided over all chips: what a
layer sends there and back, or for a dense layer, two all-reduces.
"""

import dataclasses
import functools
import json
from importlib import resources

import jax

from model.dtypes import Dtypes, Storage
from profiles.chips.calibration import Calibration
from profiles.chips.slices import Slice
from profiles.expected.links import layings
from profiles.expected.time import Sent
from profiles.floor.collective import Collective
from profiles.floor.counts import Line, Traffic, pairs_seen
from profiles.floor.experts import touched_experts
from sharding.quantization import Quantization, stored_bytes

EVENLY = "divided_evenly"
"""Stands for a layout in records."""
HEAD = 128  # numbers of a cached token that share a scale where the cache is in few bits


@dataclasses.dataclass(frozen=True)
class SizedModel:
    """A model by its sizes.

    Attributes:
      name: as ``--model`` spells it.
      source: of the sizes.
      layers: blocks.
      d_model: width of the residual stream.
      total: parameters.
      active: parameters that one token meets in matmuls.
      looked_up: of the total, those of an embedding that is only looked up, by rows. The
        unembedding has as many, which only the last token of a prompt meets.
      in_experts: of the total, those of experts that a router chooses among.
      experts: of each layer that has them; 0 for a dense model.
      experts_per_token: that a token is sent to.
      cached: numbers that the cache holds of a token, of all layers that see every token.
      windowed: numbers of the layers that see a window alone.
      window: tokens that those see, the newest included; 0 if all see all.
      attention_flops: for each query and cached token of the layers that see all.
      windowed_flops: the same of those that see a window.
      prompt_flops: as `attention_flops`, for pairs within a prompt, where latents need not be
        absorbed; None if it is the same.
      expand_flops: to make keys and values of one cached latent, with which prompts need not absorb
        those before them either.
    """

    name: str
    source: str
    layers: int
    d_model: int
    total: int
    active: int
    cached: int
    attention_flops: int
    looked_up: int = 0
    in_experts: int = 0
    experts: int = 0
    experts_per_token: int = 0
    windowed: int = 0
    window: int = 0
    windowed_flops: int = 0
    prompt_flops: int | None = None
    expand_flops: int = 0


@functools.cache
def sized_models() -> dict[str, SizedModel]:
    """All of them by name."""
    data = json.loads(resources.files("profiles.expected").joinpath("sized.json").read_text())
    return {row["name"]: SizedModel(**row) for row in data["models"]}


class SizedCosts:
    """Costs of passes, with the methods of `StepCosts`, on so many devices.

    Args:
      model: the sizes.
      dtypes: how its numbers are stored.
      devices: over which all divides evenly.
    """

    def __init__(self, model: SizedModel, dtypes: Dtypes, devices: int):
        self.model, self.dtypes, self.devices = model, dtypes, devices
        self.value = _bytes_each(dtypes.cache, HEAD) / devices
        self.weight = _bytes_each(dtypes.weights, model.d_model) / devices
        self.resident = model.total * self.weight

    def decode(
        self,
        *,
        batch: int,
        context: int,
        slots: int | None = None,
        experts: float | str | None = None,
    ) -> Traffic:
        """One decode step; arguments as of `StepCosts.decode`."""
        return self._pass(batch, context, 1, slots or context + 1, experts)

    def prefill(
        self,
        *,
        batch: int,
        tokens: int,
        cached: int = 0,
        slots: int | None = None,
        experts: float | str | None = None,
    ) -> Traffic:
        """One pass over prompts; arguments as of `StepCosts.prefill`."""
        return self._pass(batch, cached, tokens, slots or cached + tokens, experts)

    def line(self, context: int, slots: int) -> Line:
        """Decode steps of all batches; as of `StepCosts.line`."""
        model, one = self.model, self._pass(1, context, 1, slots, "all")
        row = model.d_model * (self.weight if model.looked_up else 0)
        return Line(
            resident=self.resident,
            plain=self.weight * (model.total - model.in_experts - model.looked_up),
            experts=self.weight * model.in_experts,
            gathered=0.0,
            moved=row + one.kv_read + one.kv_written,
            kept=one.kv_resident,
            flops=one.flops,
            replicas=1,
        )

    def _pass(
        self, batch: int, cached: int, tokens: int, slots: int, experts: float | str | None
    ) -> Traffic:
        model = self.model
        seen = min(cached, model.window - 1) if model.window else cached
        kept = min(slots, model.window) if model.window else slots
        read = model.cached * cached + model.windowed * seen
        written = model.cached * tokens + model.windowed * min(tokens, model.window or tokens)
        within = model.prompt_flops if tokens > 1 and model.prompt_flops else model.attention_flops
        near = pairs_seen(cached, tokens, model.window) if model.window else 0
        before = cached * min(tokens * model.attention_flops, tokens * within + model.expand_flops)
        attention = before + within * tokens * (tokens + 1) // 2 + model.windowed_flops * near
        work = 2 * (model.active * tokens - model.looked_up * (tokens - 1))
        share = 1.0
        if model.experts:
            share = touched_experts(model, batch * tokens, experts) / model.experts
        plain = model.total - model.in_experts - model.looked_up
        return Traffic(
            weights_resident=self.resident,
            weights_read=self.weight * (plain + model.in_experts * share)
            + min(batch * tokens * model.d_model, model.looked_up) * self.weight,
            kv_resident=batch * self.value * (model.cached * slots + model.windowed * kept),
            kv_read=batch * self.value * read,
            kv_written=batch * self.value * written,
            flops=batch * (work + attention) / self.devices,
        )


def _bytes_each(storage: Storage, inputs: int) -> float:
    """Of one number, with its part of the scales that so many of an output share."""
    if not isinstance(storage, Quantization):
        return storage.itemsize
    arrays = jax.tree.leaves(storage.abstract((1, inputs), outputs=1))
    return sum(map(stored_bytes, arrays)) / inputs


class SizedLinks:
    """Collectives of passes, with the method of `LinkCosts`.

    Args:
      model: the sizes.
      dtypes: how its numbers are stored.
      where: the slice.
      rates: for the starts of collectives.
    """

    def __init__(self, model: SizedModel, dtypes: Dtypes, where: Slice, rates: Calibration):
        self.model, self.dtypes, self.where, self.rates = model, dtypes, where, rates
        mesh = (("z", where.devices),)
        (self._usual,) = layings(dataclasses.replace(where, chip=where.chip.expected), mesh, False)

    def sent(self, batch: int, tokens: int = 1) -> Sent:
        """Costs of a pass; no collective has a part in the floor, for another layout needs none.

        Args:
          batch: sequences.
          tokens: of each.
        """
        if self.where.devices == 1:
            return Sent(0.0, 0.0, 0.0, 0.0)
        size = batch * tokens * self.model.d_model * self.dtypes.dtype.itemsize
        if self.model.experts:  # each chip has its part of the tokens, and sends k copies of each
            size *= self.model.experts_per_token / self.where.devices
            pair = [Collective("all-to-all", ("z",), size, 2 * self.model.layers)]
        else:
            pair = [Collective("all-reduce", ("z",), size, 2 * self.model.layers)]
        (both,) = pair
        start, per_byte = self._usual.usual(both.kind, both.axes, self.rates)
        return Sent(0.0, both.count * start, both.count * both.payload_bytes * per_byte, 0.0)

    usual = sent  # as of `LinkCosts`: there is no floor to leave out

    def usual_line(self, tokens: int = 1) -> tuple[Sent, Sent]:
        """Costs of every batch, and what each sequence adds; as of `LinkCosts`."""
        one, two = self.sent(1, tokens), self.sent(2, tokens)
        slope = two.sending - one.sending
        return one._replace(sending=one.sending - slope), Sent(0.0, 0.0, slope, 0.0)
