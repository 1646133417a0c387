"""Bytes and FLOPs that one forward pass must cost each device.

Counted from the model's own abstract arrays and the layout's own shardings, so that they cannot
drift from what runs. Bytes follow Pope et al. 2022, section 2.1: every weight is read once per
step (of experts, those that tokens choose), and so is every cached key and value that a sequence
still sees.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from flax import nnx

from model.config import ModelConfig
from model.declarations import Matrix, Path, declarations, matrices, of_experts
from model.dtypes import Dtypes
from model.transformer import Transformer
from profiles.floor.activations import activation_bytes
from profiles.floor.alike_layers import CachedLayers, alike_layers, attention_work, cache_bytes
from profiles.floor.delta_counts import StateTraffic, delta_flops, state_bytes, state_traffic
from profiles.floor.experts import touched_experts
from profiles.floor.passes import BatchLine, Counts, Pass, PromptLine
from sharding.placement import Placement
from sharding.quantization import stored_bytes

LOOKED_UP: Path = ("embedding", "weight")
LAYER_INPUTS: Path = ("layer_inputs", "weight")
"""Of this table rows alone are read, whatever the unembedding is."""
BY_HEADS = ("KGuc", "KGvc")
"""Letters of weights that meet one head each, in latent attention: cut as the queries are."""


class Declared(NamedTuple):
    """A parameter as the model declares it.

    Attributes:
      path: its own, or that of the first layer's.
      param: shape, dtype and axes.
      stated: the matrix in few bits that it is a part of, or itself.
      times: how many the model has.
    """

    path: Path
    param: nnx.Param
    stated: nnx.Param | Matrix
    times: int


@functools.cache
def declared(config: ModelConfig, dtypes: Dtypes) -> list[Declared]:
    """Every parameter of the model; many layouts are counted for one model.

    A layer of each kind is declared for all of its kind.
    """
    model = Transformer(config.one_of_each(), dtypes)
    quantized, found = matrices(model), []
    for path, param in declarations(model).items():
        stated, times = quantized.get(path[:-1], param), 1
        if path[0] == "layers":
            first, times = config.kinds[path[1]]
            path = (path[0], first, *path[2:])
        found.append(Declared(path, param, stated, times))
    return found


class _Alike(NamedTuple):
    """Arrays of the same logical axes and use, added up."""

    size: int  # bytes
    multiplied: int  # elements that every token meets in a matmul
    in_layers: tuple[int, ...]  # bytes in one layer of each kind
    axes: str
    experts: bool
    table: bool  # the vocabulary's: the embedding or the unembedding
    looked_up: bool  # read by rows alone


@functools.cache
def _alike(
    config: ModelConfig, dtypes: Dtypes, only: Callable[[Path], bool] | None
) -> tuple[_Alike, ...]:
    """All weights, or those at some paths, those alike in one entry: layers are."""
    sums: dict[tuple, list[int]] = {}
    kinds = [first for first, _ in config.kinds]
    for path, param, _, times in declared(config, dtypes):
        if only and not only(path):
            continue
        looked_up = path == LAYER_INPUTS or (path == LOOKED_UP and not config.tied_embedding)
        key = param.axes, of_experts(param), "V" in param.axes, looked_up
        entry = sums.setdefault(key, [0, 0, *(0 for _ in kinds)])
        entry[0] += times * stored_bytes(param)
        if _multiplies(path, param) and not looked_up:
            entry[1] += times * math.prod(param.shape)
        if path[0] == "layers":
            entry[2 + kinds.index(path[1])] += stored_bytes(param)
    return tuple(
        _Alike(size, multiplied, tuple(in_layers), *key)
        for key, (size, multiplied, *in_layers) in sums.items()
    )


def _multiplies(path: Path, param: nnx.Param) -> bool:
    """Whether tokens are multiplied by this array, which is then no bias, scale or sink."""
    beside = str(path[-1]).endswith(("_bias", "scale", "sinks", "taps", "rates"))
    return len(param.shape) > 1 and not param.scale and not beside


class PassCounter:
    """Counts the work of one model's passes in one layout: weights once, then passes of any size.

    Experts in its methods are how many distinct ones a layer reads: a number of them, on average
    over layers and over devices that divide them; or ``coverage``, those that tokens choose if they
    choose evenly (also where None); ``least``, those of one token; or ``all``.

    Args:
      config: the model.
      placement: the layout on a mesh.
      dtypes: how its numbers are stored; scales count.
      only: which weights to count, by the path of the first layer's; all if None.
    """

    def __init__(
        self,
        config: ModelConfig,
        placement: Placement,
        dtypes: Dtypes,
        only: Callable[[Path], bool] | None = None,
    ):
        self.config, self.placement, self.dtypes = config, placement, dtypes
        self._layers = [
            CachedLayers.of(layers, placement, dtypes) for layers in alike_layers(config)
        ]
        self.state = state_bytes(config, placement, dtypes)
        self.resident = self._dense_weights = self._experts = self._gathered = 0.0
        self._gathered_in_layers = [0.0 for _ in config.kinds]
        self._row = self._rows = 0.0  # bytes of an embedding that is looked up: one row, all
        self._work = self._table_work = self._expert_work = 0.0
        for alike in _alike(config, dtypes, only):
            self._add(alike)
        experts = "use", "E"
        self._replicas = placement.parts(experts, ("activations", "B")) // placement.parts(experts)
        self._parts = placement.parts(("activations", "B"))
        self._of_states = placement.share(("attention", "BNM"))
        self._multiple = placement.multiple("S")
        self._kept = functools.cache(self._kept_bytes)
        self._held = functools.cache(self._held_bytes)

    @property
    def parameters(self) -> dict[str, int]:
        """How many parameters the model has, and how many of them a token meets."""
        return _parameters(self.config, self.dtypes)

    @property
    def token_bytes(self) -> float:
        """Bytes that a cached token takes on each device, in all layers that keep it."""
        return sum(each.token * each.layers.writing for each in self._layers)

    def _add(self, alike: _Alike) -> None:
        """Adds arrays to the sums that passes are counted from."""
        share = self.placement.share
        stored = share(("weights", alike.axes))
        size = alike.size * stored
        self.resident += size
        if alike.looked_up:
            self._row += size / self.config.vocabulary
            self._rows += size
            return
        if alike.experts:
            self._experts += size
        else:
            self._dense_weights += size
        if alike.axes in BY_HEADS:
            # Cut as the queries are, by as many mesh axes or more than those that divide the array.
            worked = share(("activations", "BTKG_"))
            self._dense_weights += alike.size * np.minimum(
                share(("activations", "KG")) - stored, 0.0
            )
            self._work += alike.multiplied * worked
            self._gather(alike, np.maximum(share(("activations", "KG")) - stored, 0.0))
            return
        # Each device multiplies its part of a weight in use by its part of the batch. Mesh axes
        # that divide both the experts and the batch count once: a device has so many experts fewer,
        # and answers the tokens of so many devices more.
        worked = share(("use", alike.axes), ("activations", "B"))
        used = self.config.experts_per_token / self.config.experts if alike.experts else 1
        work = alike.multiplied * used * worked
        if alike.table:  # multiplied as it is stored
            self._table_work += work
            return
        self._work += work
        self._expert_work += work * alike.experts
        in_use = share(("use", alike.axes))
        self._gather(alike, in_use * (in_use > stored))

    def _gather(self, alike: _Alike, share: float) -> None:
        """Adds arrays of which each device makes such a share whole, beside its shards."""
        self._gathered += alike.size * share
        for kind, size in enumerate(alike.in_layers):
            self._gathered_in_layers[kind] += size * share

    @property
    def _gathered_at_once(self) -> float:
        """Bytes of the gathered weights that are held at a time: those of the largest layer."""
        return functools.reduce(np.maximum, self._gathered_in_layers)

    def count(self, pass_: Pass, experts: float | str | None = None) -> Counts:
        """The work of one pass.

        Prompts' own keys and values need not leave the chip to be read.

        Args:
          pass_: the pass, its batch one that the layout divides.
          experts: distinct experts that a layer reads, see the class.
        """
        batch, tokens = pass_.batch, pass_.tokens
        read, written = self._moved(pass_.context, tokens)
        states = self.states(pass_)
        counts = Counts(
            weights_resident=self.resident,
            weights_read=self.weights_read(batch * tokens, experts),
            kv_resident=batch * (self._kept(pass_.cache_slots, pass_.spare) + self.state),
            kv_read=batch * read + states.read,
            kv_written=batch * written + states.written,
            flops=batch * (self.weight_flops(tokens) + self.attention_flops(pass_)),
            weights_gathered=self._gathered,
            activations=batch * self._held(tokens) + self._gathered_at_once,
            attention=0.0 if pass_.over_prompts else batch * self.attention_flops(pass_),
            rows=batch * tokens / self._parts,
            expert_flops=2 * batch * tokens * self._expert_work,
            sequences=batch,
        )
        return counts.as_python_numbers()

    def states(self, pass_: Pass) -> StateTraffic:
        """Bytes of the states of delta layers that a pass reads and writes."""
        return state_traffic(self.state, pass_.batch, pass_.context)

    def weights_read(self, tokens: float, experts: float | str | None = None) -> float:
        """Bytes of weights that a pass over so many tokens reads; for `experts` see the class."""
        touched = self._touched(tokens, experts) / (self.config.experts or 1)
        rows = np.minimum(tokens * self._row, self._rows)
        return self._dense_weights + self._experts * touched + rows

    def weight_flops(self, tokens: int, scored: int = 1) -> float:
        """FLOPs of one sequence's products with weights.

        Args:
          tokens: how many of it are new.
          scored: after how many of these there are logits.
        """
        return 2 * (tokens * self._work + scored * self._table_work)

    def attention_flops(self, pass_: Pass) -> float:
        """FLOPs of one sequence's scores and sums of values, and of delta rules in their place.

        Several new tokens meet each other as they are divided, and earlier ones as the cache is.
        """
        total, tokens = 0.0, pass_.tokens
        for each in self._layers:
            among = attention_work(each.layers, 0, tokens) if pass_.over_prompts else 0
            cached = attention_work(each.layers, pass_.context, tokens) - among
            total += each.of_prompts * among + each.of_cache * cached
        return total + self.delta_flops(tokens)

    def delta_flops(self, tokens: int) -> float:
        """FLOPs of one sequence's delta rules."""
        return delta_flops(self.config, tokens) * self._of_states

    def line(self, context: int, slots: int) -> BatchLine:
        """Decode steps of every batch at this context, with room for so many tokens."""
        one = self.count(Pass(1, context, slots=slots), "all")
        return BatchLine(
            resident=self.resident + self._gathered_at_once,
            dense_weights=self._dense_weights,
            experts=self._experts,
            gathered=self._gathered,
            bytes_per_sequence=self._row + one.kv_read + one.kv_written,
            memory_per_sequence=one.kv_resident + self._held(1),
            flops=one.flops,
            replicas=self._replicas,
            attention=one.attention,
            parts=self._parts,
            expert_flops=one.expert_flops,
            stored=self.resident,
        )

    def prompt_line(self, counts: Counts, prompts: int) -> PromptLine:
        """What each prompt adds to steps.

        Args:
          counts: of a pass over prompts, in their own layout.
          prompts: how many.
        """
        each = (field / prompts for field in (counts.kv_written, counts.flops, counts.rows))
        experts = counts.expert_flops / prompts
        return PromptLine(*each, counts.weights_gathered, self._row, self._rows, experts)

    def _kept_bytes(self, slots: int, spare: int = 0) -> float:
        """Bytes of one sequence's cache on each device, with `spare` slots more in each ring."""
        multiples, total = np.asarray(self._multiple), 0.0
        for each in self._layers:
            whole = functools.partial(cache_bytes, each.layers, slots, self.dtypes, spare=spare)
            found = {multiple: whole(multiple) for multiple in {*multiples.ravel().tolist()}}
            sizes = [found[multiple] for multiple in multiples.ravel().tolist()]
            total += np.reshape(sizes, multiples.shape) * each.share * each.layers.writing
        return total

    def _moved(self, cached: int, tokens: int) -> tuple[float, float]:
        """Bytes of cached tokens that one sequence's new ones read, and of new ones that are kept.

        A token sees those before it, itself included, up to the layer's window. A cache is read by
        each layer that reads it, its own or not, and written by one.
        """
        read = written = 0.0
        for each in self._layers:
            window = each.layers.window or cached + tokens
            read += each.token * each.layers.count * each.layers.seen(cached)
            written += each.token * each.layers.writing * min(tokens, window)
        return read, written

    def unfilled(self, step: Pass) -> float:
        """Bytes of the slots that no token has filled after a decode step.

        They count as often as layers would read them.
        """
        total = 0.0
        for each in self._layers:
            layers, slots = each.layers, step.cache_slots
            filled = layers.seen(step.context) + 1
            ring = min(slots, layers.window + step.spare) if layers.window else slots
            total += each.token * layers.count * (ring - filled)
        return step.batch * total

    def _held_bytes(self, tokens: int) -> float:
        """Bytes of one sequence's activations on each device."""
        return activation_bytes(self.config, self.placement, self.dtypes, tokens=tokens)

    def _touched(self, tokens: float, experts: float | str | None) -> float:
        """Distinct experts that the busiest replica reads at least.

        Replicas are over mesh axes that divide the batch but not the experts: each has tokens of
        its own, and the step waits for the one that reads most.
        """
        if isinstance(experts, int | float):
            return max(experts / self._replicas, self.config.experts_per_token)
        return touched_experts(self.config, np.maximum(tokens / self._replicas, 1), experts)


@functools.cache
def _parameters(config: ModelConfig, dtypes: Dtypes) -> dict[str, int]:
    total = active = 0
    for _, param, _, times in declared(config, dtypes):
        size = 0 if param.scale else times * math.prod(param.shape)
        total += size
        active += size * config.experts_per_token // config.experts if of_experts(param) else size
    return {"total": total, "active": active}
