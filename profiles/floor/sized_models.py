"""Models known by their sizes alone, which the engine cannot run: from `sized_models.json`.

Their weights, caches and arithmetic are assumed to divide evenly over the chips, and are counted in
the same terms as those of other models.
"""

import dataclasses
import functools
import json
from importlib import resources

import jax

from model.dtypes import Dtypes, Storage
from profiles.floor.experts import touched_experts
from profiles.floor.passes import BatchLine, Counts, Pass, PromptLine, attended_pairs
from sharding.quantization import Quantization, bits_of, stored_bytes

EVENLY = "divided_evenly"
"""The name in records in place of a layout."""
HEAD = 128  # numbers of a cached token that share a scale in a quantized cache


@dataclasses.dataclass(frozen=True)
class SizedModel:
    """A model that is known by its sizes alone.

    Attributes:
      name: the name for ``--model``.
      source: where the sizes are from.
      layers: number of blocks.
      dense_layers: the first blocks, so many, have no experts.
      d_model: width of the residual stream.
      total: number of parameters.
      active: parameters that each token is multiplied by.
      looked_up: parameters of an embedding that is only looked up, included in `total`. The
        unembedding has as many, which only the last token of a prompt is multiplied by.
      in_experts: parameters of the experts that a router chooses among, included in `total`.
      experts: experts of each layer that has them; 0 for a dense model.
      experts_per_token: experts that the router chooses for each token.
      cached: numbers that the cache holds per token, over all layers without a window.
      windowed: numbers that the cache holds per token, over all layers with a window.
      window: tokens that layers with a window attend to, the newest included; 0 for no windows.
      attention_flops: FLOPs per query and cached token, over all layers without a window.
      windowed_flops: FLOPs per query and cached token, over all layers with a window.
      prompt_flops: FLOPs per query and key within a prompt, over all layers without a window. Fewer
        with latent attention, because latents need not be absorbed; None for `attention_flops`.
      expand_flops: FLOPs to expand a cached latent to keys and values, after which a prompt need
        not absorb it either.
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
    dense_layers: int = 0
    windowed: int = 0
    window: int = 0
    windowed_flops: int = 0
    prompt_flops: int | None = None
    expand_flops: int = 0

    @property
    def layers_of_experts(self) -> int:
        """How many layers have experts."""
        return self.layers - self.dense_layers if self.experts else 0


@functools.cache
def sized_models() -> dict[str, SizedModel]:
    """All models of the data file, by name."""
    data = json.loads(resources.files("profiles.floor").joinpath("sized_models.json").read_text())
    return {row["name"]: SizedModel(**row) for row in data["models"]}


class SizedPassCounter:
    """Counts the work of passes from a model's sizes, with the methods of `PassCounter`.

    Args:
      model: the model.
      dtypes: how its numbers are stored.
      devices: number of devices that everything divides over evenly.
    """

    def __init__(self, model: SizedModel, dtypes: Dtypes, devices: int):
        self.model, self.dtypes, self.devices = model, dtypes, devices
        self.value = _bytes_each(dtypes.cache, HEAD) / devices
        self.weight = _bytes_each(dtypes.weights, model.d_model) / devices
        self.resident = model.total * self.weight
        used = model.experts_per_token / model.experts if model.experts else 0
        self._expert_flops = 2 * model.in_experts * used / devices
        self.parameters = {"total": model.total, "active": model.active}
        self.token_bytes = self.value * (model.cached + model.windowed)

    def count(self, pass_: Pass, experts: float | str | None = None) -> Counts:
        """The work of one pass; the arguments are those of `PassCounter.count`."""
        model, batch, cached, tokens = self.model, pass_.batch, pass_.context, pass_.tokens
        seen = min(cached, model.window - 1) if model.window else cached
        ring = model.window + pass_.spare if model.window else pass_.cache_slots
        kept = min(pass_.cache_slots, ring)
        read = model.cached * cached + model.windowed * seen
        written = model.cached * tokens + model.windowed * min(tokens, model.window or tokens)
        return Counts(
            weights_resident=self.resident,
            weights_read=self.weights_read(batch * tokens, experts),
            kv_resident=batch
            * self.value
            * (model.cached * pass_.cache_slots + model.windowed * kept),
            kv_read=batch * self.value * read,
            kv_written=batch * self.value * written,
            flops=batch * self._flops(cached, tokens) / self.devices,
            rows=batch * tokens,
            expert_flops=batch * tokens * self._expert_flops,
            sequences=batch,
        )

    def weights_read(self, tokens: float, experts: float | str | None = None) -> float:
        """Bytes of weights that a pass reads; the arguments are those of `PassCounter`'s."""
        model, share = self.model, 1.0
        if model.experts:
            share = touched_experts(model, tokens, experts) / model.experts
        plain = model.total - model.in_experts - model.looked_up
        rows = min(tokens * model.d_model, model.looked_up)
        return self.weight * (plain + model.in_experts * share + rows)

    def _flops(self, cached: int, tokens: int) -> float:
        """FLOPs of one sequence, on all devices together."""
        model = self.model
        within = model.prompt_flops if tokens > 1 and model.prompt_flops else model.attention_flops
        near = attended_pairs(cached, tokens, model.window) if model.window else 0
        before = cached * min(tokens * model.attention_flops, tokens * within + model.expand_flops)
        attention = before + within * tokens * (tokens + 1) // 2 + model.windowed_flops * near
        return 2 * (model.active * tokens - model.looked_up * (tokens - 1)) + attention

    def line(self, context: int, slots: int) -> BatchLine:
        """Decode steps of every batch; the arguments are those of `PassCounter.line`."""
        model, one = self.model, self.count(Pass(1, context, slots=slots), "all")
        row = model.d_model * (self.weight if model.looked_up else 0)
        return BatchLine(
            resident=self.resident,
            dense_weights=self.weight * (model.total - model.in_experts - model.looked_up),
            experts=self.weight * model.in_experts,
            gathered=0.0,
            bytes_per_sequence=row + one.kv_read + one.kv_written,
            memory_per_sequence=one.kv_resident,
            flops=one.flops,
            replicas=1,
            attention=0.0,
            parts=1,
            expert_flops=one.expert_flops,
            stored=self.resident,
        )

    def prompt_line(self, counts: Counts, prompts: int) -> PromptLine:
        """What each prompt adds to steps; the arguments are those of `PassCounter.prompt_line`."""
        each = (field / prompts for field in (counts.kv_written, counts.flops, counts.rows))
        table = self.model.looked_up * self.weight
        row, experts = self.model.d_model * self.weight * bool(table), counts.expert_flops / prompts
        return PromptLine(*each, 0.0, row, table, experts)


def _bytes_each(storage: Storage, inputs: int) -> float:
    """Bytes of one number, with its part of the scales of an output with so many inputs."""
    if not isinstance(storage, Quantization):
        return bits_of(storage) / 8
    arrays = jax.tree.leaves(storage.abstract((1, inputs), outputs=1))
    return sum(map(stored_bytes, arrays)) / inputs
