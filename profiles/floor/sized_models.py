"""Models known by their sizes alone, which the engine does not run: from `sized_models.json`.

Their weights, caches and arithmetic are taken to divide evenly over the chips, as bytes and FLOPs
in the terms of every other model.
"""

import dataclasses
import functools
import json
from importlib import resources

import jax

from model.dtypes import Dtypes, Storage
from profiles.floor.experts import touched_experts
from profiles.floor.passes import BatchLine, Counts, Pass, pairs_seen
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
    data = json.loads(resources.files("profiles.floor").joinpath("sized_models.json").read_text())
    return {row["name"]: SizedModel(**row) for row in data["models"]}


class SizedPassCounter:
    """Counts the work of a model's passes by its sizes, with the methods of `PassCounter`.

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
        self.parameters = {"total": model.total, "active": model.active}

    def count(self, pass_: Pass, experts: float | str | None = None) -> Counts:
        """The work of one pass; arguments are those of `PassCounter.count`."""
        model, batch, cached, tokens = self.model, pass_.batch, pass_.context, pass_.tokens
        seen = min(cached, model.window - 1) if model.window else cached
        kept = min(pass_.room, model.window) if model.window else pass_.room
        read = model.cached * cached + model.windowed * seen
        written = model.cached * tokens + model.windowed * min(tokens, model.window or tokens)
        share = 1.0
        if model.experts:
            share = touched_experts(model, batch * tokens, experts) / model.experts
        plain = model.total - model.in_experts - model.looked_up
        return Counts(
            weights_resident=self.resident,
            weights_read=self.weight * (plain + model.in_experts * share)
            + min(batch * tokens * model.d_model, model.looked_up) * self.weight,
            kv_resident=batch * self.value * (model.cached * pass_.room + model.windowed * kept),
            kv_read=batch * self.value * read,
            kv_written=batch * self.value * written,
            flops=batch * self._flops(cached, tokens) / self.devices,
        )

    def _flops(self, cached: int, tokens: int) -> float:
        """FLOPs of one sequence, on all devices together."""
        model = self.model
        within = model.prompt_flops if tokens > 1 and model.prompt_flops else model.attention_flops
        near = pairs_seen(cached, tokens, model.window) if model.window else 0
        before = cached * min(tokens * model.attention_flops, tokens * within + model.expand_flops)
        attention = before + within * tokens * (tokens + 1) // 2 + model.windowed_flops * near
        return 2 * (model.active * tokens - model.looked_up * (tokens - 1)) + attention

    def line(self, context: int, slots: int) -> BatchLine:
        """Decode steps of every batch; arguments are those of `PassCounter.line`."""
        model, one = self.model, self.count(Pass(1, context, slots=slots), "all")
        row = model.d_model * (self.weight if model.looked_up else 0)
        return BatchLine(
            resident=self.resident,
            plain=self.weight * (model.total - model.in_experts - model.looked_up),
            experts=self.weight * model.in_experts,
            gathered=0.0,
            moved=row + one.kv_read + one.kv_written,
            kept=one.kv_resident,
            flops=one.flops,
            replicas=1,
        )


def _bytes_each(storage: Storage, inputs: int) -> float:
    """Of one number, with its part of the scales that so many of an output share."""
    if not isinstance(storage, Quantization):
        return storage.itemsize
    arrays = jax.tree.leaves(storage.abstract((1, inputs), outputs=1))
    return sum(map(stored_bytes, arrays)) / inputs
