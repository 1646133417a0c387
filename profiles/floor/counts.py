"""Bytes and FLOPs that one forward pass must cost each device.

Counted from the model's own abstract arrays and the layout's own shardings, so that they cannot
drift from what runs. Bytes follow Pope et al. 2022, section 2.1: every weight is read once per
step (of experts, those that tokens choose), and so is every cached key and value that a sequence
still sees.
"""

import collections
import dataclasses
import functools
import math
from typing import NamedTuple

import jax
from flax import nnx

from model.cache import CACHE_AXES, abstract_cache
from model.config import ModelConfig
from model.declarations import Matrix, Path, declarations, matrices, of_experts
from model.dtypes import Dtypes
from model.transformer import Transformer
from profiles.floor.activations import activation_bytes, attention_share
from profiles.floor.experts import touched_experts
from sharding.placement import Placement, shards, used_axes
from sharding.quantization import stored_bytes

LOOKED_UP: Path = ("embedding", "weight")


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

    Layers differ in their windows alone, which no parameter depends on: one is declared for all.
    """
    model = Transformer(dataclasses.replace(config, layers=1, windows=None), dtypes)
    whole = matrices(model)
    return [
        Declared(
            path,
            param,
            stated=whole.get(path[:-1], param),
            times=config.layers if path[0] == "layers" else 1,
        )
        for path, param in declarations(model).items()
    ]


@dataclasses.dataclass(frozen=True)
class Traffic:
    """One forward pass's least work per device: bytes, and FLOPs with a multiply-add as 2.

    And what it holds meanwhile, which no floor counts.

    Attributes:
      weights_resident: stored weights; a replicated array counts whole on every device.
      weights_read: the same, but of an embedding that is only looked up, the rows looked up, and
        no row twice where there are more tokens than rows.
      kv_resident: the allocated cache.
      kv_read: cached tokens of all sequences.
      kv_written: the new tokens, of layers with a window those that it holds.
      flops: matrix multiplications and attention.
      weights_gathered: whole copies of weights that a weight-gathered layout makes of its shards.
        No floor counts them: they could stay on the chip. An expected time does, twice.
      activations: held beside weights and cache where that is most, as the program makes them:
        those of all sequences, and where weights are gathered one layer of them.
    """

    weights_resident: float
    weights_read: float
    kv_resident: float
    kv_read: float
    kv_written: float
    flops: float
    weights_gathered: float = 0.0
    activations: float = 0.0

    @property
    def memory(self) -> float:
        """Bytes moved per step."""
        return self.weights_read + self.kv_read + self.kv_written

    @property
    def held(self) -> float:
        """Bytes that must fit in memory."""
        return self.weights_resident + self.kv_resident + self.activations


def decode_traffic(
    config: ModelConfig,
    placement: Placement,
    dtypes: Dtypes,
    *,
    batch: int,
    context: int,
    slots: int,
    experts_touched: float | None = None,
) -> Traffic:
    """The least that one decode step costs each device; arguments as of `StepCosts`."""
    costs = StepCosts(config, placement, dtypes)
    return costs.decode(batch=batch, context=context, slots=slots, experts=experts_touched)


class _Alike(NamedTuple):
    """Arrays of the same logical axes and use, added up."""

    size: int  # bytes
    multiplied: int  # elements that every token meets in a matmul
    axes: tuple[str, ...]
    experts: bool
    table: bool  # the vocabulary's: the embedding or the unembedding
    looked_up: bool  # read by rows alone


@functools.cache
def _alike(config: ModelConfig, dtypes: Dtypes) -> tuple[_Alike, ...]:
    """All weights, those alike in one entry: layers are."""
    sums: dict[tuple, list[int]] = {}
    for path, param, _, times in declared(config, dtypes):
        looked_up = path == LOOKED_UP and not config.tied_embedding
        key = param.axes, of_experts(param), "V" in param.axes, looked_up
        entry = sums.setdefault(key, [0, 0])
        entry[0] += times * stored_bytes(param)
        if len(param.shape) > 1 and not param.scale and not looked_up:
            entry[1] += times * math.prod(param.shape)
    return tuple(_Alike(*entry, *key) for key, entry in sums.items())


class Line(NamedTuple):
    """Decode steps of any batch at one context, per device, as lines that plans are made with.

    Attributes:
      resident: bytes held whatever the batch: stored weights, and a layer of gathered ones.
      plain: bytes of weights that every step reads.
      experts: of all experts; a step reads the part that is touched.
      gathered: as of `Traffic.weights_gathered`.
      moved: bytes that each sequence adds.
      kept: bytes of each sequence's cache and activations.
      flops: of each sequence.
      replicas: into which touched experts part the batch.
    """

    resident: float
    plain: float
    experts: float
    gathered: float
    moved: float
    kept: float
    flops: float
    replicas: int


class StepCosts:
    """What forward passes of one model in one layout cost: counted once, asked for many sizes.

    Experts in its methods are how many distinct ones a layer reads: a number of them, on average
    over layers and over devices that divide them; or ``coverage``, those that tokens choose if they
    choose evenly (also where None); ``least``, those of one token; or ``all``.

    Args:
      config: the model.
      placement: the layout on a mesh.
      dtypes: how its numbers are stored; scales count.
    """

    def __init__(self, config: ModelConfig, placement: Placement, dtypes: Dtypes):
        self.config, self.placement, self.dtypes = config, placement, dtypes
        self.token = kv_token_bytes(config, placement, dtypes)
        self.resident = self._plain = self._experts = self._gathered = 0.0
        self._row = self._rows = 0.0  # of an embedding that is looked up: one, and all
        self._work = self._table_work = 0.0
        for alike in _alike(config, dtypes):
            self._add(alike)
        experts = used_axes(placement.use("E"))
        batches = used_axes(placement.activations("B"))
        self._replicas = shards(tuple({*batches} - {*experts}), placement.mesh)
        self._of_cache = attention_share(placement, of_cache=True)
        self._of_prompts = attention_share(placement, of_cache=False)
        self._multiple = placement.multiple("S")
        self._kept = functools.cache(self._kept_bytes)
        self._held = functools.cache(self._held_bytes)

    def _add(self, alike: _Alike) -> None:
        """Adds arrays to the sums that passes are counted from."""
        stored, in_use, share = _shares(self.placement, alike.axes)
        size = alike.size * stored
        self.resident += size
        if alike.looked_up:
            self._row += self.config.d_model * self.dtypes.plain.itemsize * stored
            self._rows += size
            return
        if alike.experts:
            self._experts += size
        else:
            self._plain += size
        used = self.config.experts_per_token / self.config.experts if alike.experts else 1
        work = alike.multiplied * used * share
        if alike.table:  # multiplied as it is stored
            self._table_work += work
            return
        self._work += work
        self._gathered += alike.size * in_use if in_use > stored else 0

    def decode(
        self,
        *,
        batch: int,
        context: int,
        slots: int | None = None,
        experts: float | str | None = None,
    ) -> Traffic:
        """One decode step.

        Args:
          batch: sequences.
          context: tokens already in the cache of each.
          slots: tokens the cache has room for; with the new token no more if None.
          experts: as above.
        """
        return self._pass(batch, context, 1, slots or context + 1, context, experts)

    def prefill(
        self,
        *,
        batch: int,
        tokens: int,
        cached: int = 0,
        slots: int | None = None,
        experts: float | str | None = None,
    ) -> Traffic:
        """One pass over prompts, whose own keys and values need not leave the chip to be read.

        Args:
          batch: sequences.
          tokens: of each prompt.
          cached: tokens before them, whose keys and values are in the cache.
          slots: tokens the cache has room for; no more than those if None.
          experts: as above.
        """
        return self._pass(batch, cached, tokens, slots or cached + tokens, cached, experts)

    def _pass(
        self,
        batch: int,
        cached: int,
        tokens: int,
        slots: int,
        read: int,
        experts: float | str | None,
    ) -> Traffic:
        config = self.config
        touched = self._touched(batch * tokens, experts) / (config.experts or 1)
        seen, kept, pairs = _attended(config, read, tokens)
        rows = min(batch * tokens * self._row, self._rows)
        share = self._of_cache if tokens == 1 else self._of_prompts
        attention = 4 * config.query_heads * config.head_size * pairs * share
        work = 2 * (tokens * self._work + self._table_work)
        return Traffic(
            weights_resident=self.resident,
            weights_read=self._plain + self._experts * touched + rows,
            kv_resident=batch * self._kept(slots),
            kv_read=batch * self.token * seen / config.layers,
            kv_written=batch * self.token * kept / config.layers,
            flops=batch * (work + attention),
            weights_gathered=self._gathered,
            activations=batch * self._held(tokens, slots if tokens == 1 else cached + tokens)
            + self._gathered / config.layers,
        )

    def line(self, context: int, slots: int) -> Line:
        """Decode steps of all batches; arguments as of `decode`."""
        one = self._pass(1, context, 1, slots, context, "all")
        return Line(
            resident=self.resident + self._gathered / self.config.layers,
            plain=self._plain,
            experts=self._experts,
            gathered=self._gathered,
            moved=self._row + one.kv_read + one.kv_written,
            kept=one.kv_resident + self._held(1, slots),
            flops=one.flops,
            replicas=self._replicas,
        )

    def _kept_bytes(self, slots: int) -> float:
        """Of one sequence's cache."""
        share = self.placement.copies(self.placement.cache(*CACHE_AXES)) / self.placement.devices
        return _cache_bytes(self.config, slots, self.dtypes, self._multiple) * share

    def _held_bytes(self, tokens: int, slots: int) -> float:
        """Of one sequence's activations."""
        return activation_bytes(
            self.config, self.placement, self.dtypes, tokens=tokens, slots=slots
        )

    def _touched(self, tokens: int, experts: float | str | None) -> float:
        """Distinct experts that the busiest replica reads at least.

        Replicas are over mesh axes that divide the batch but not the experts: each has tokens of
        its own, and the step waits for the one that reads most.
        """
        if isinstance(experts, int | float):
            return max(experts / self._replicas, self.config.experts_per_token)
        return touched_experts(self.config, max(tokens // self._replicas, 1), experts)


@functools.lru_cache(maxsize=4096)
def _attended(config: ModelConfig, cached: int, tokens: int) -> tuple[int, int, int]:
    """Cached tokens that new ones see, new ones that are kept, and pairs of query and key.

    Of all layers and one sequence.

    A token sees those before it, itself included, up to the layer's window.
    """
    seen = kept = pairs = 0
    for window, layers in collections.Counter(map(config.window, range(config.layers))).items():
        window = window or cached + tokens
        seen += layers * min(cached, window - 1)
        kept += layers * min(tokens, window)
        pairs += layers * pairs_seen(cached, tokens, window)
    return seen, kept, pairs


def pairs_seen(cached: int, tokens: int, window: int) -> int:
    """Pairs of query and key where new tokens see those before them, up to a window.

    Args:
      cached: tokens before the new ones.
      tokens: new ones; each sees itself too.
      window: tokens that one sees at most, itself included.
    """
    growing = max(min(tokens, window - cached), 0)  # tokens that see all before them
    return growing * cached + growing * (growing + 1) // 2 + (tokens - growing) * window


def kv_token_bytes(config: ModelConfig, placement: Placement, dtypes: Dtypes) -> float:
    """Bytes one cached token takes on each device, keys and values of all layers."""
    share = placement.copies(placement.cache(*CACHE_AXES)) / placement.devices
    return _cache_bytes(config, 1, dtypes) * share


@functools.lru_cache(maxsize=4096)
def _cache_bytes(config: ModelConfig, slots: int, dtypes: Dtypes, multiple: int = 1) -> int:
    """Of one sequence's cache, all devices together."""
    cache = abstract_cache(config, 1, slots, dtypes, multiple)
    return sum(map(stored_bytes, jax.tree.leaves(cache)))


def _shares(placement: Placement, axes: tuple[str, ...]) -> tuple[float, float, float]:
    """The part of a weight that each device stores, that in use, and its part of the matmul."""
    key = _shares, axes
    if key not in placement.memo:
        stored = placement.copies(placement.weights(*axes)) / placement.devices
        in_use = placement.copies(placement.use(*axes)) / placement.devices
        placement.memo[key] = stored, in_use, _work_share(placement, axes)
    return placement.memo[key]


def _work_share(placement: Placement, axes: tuple[str, ...]) -> float:
    """The part of a matmul that each device does: of its weight in use, and of the batch.

    Mesh axes that divide both the experts and the batch count once: a device has so many experts
    fewer, and answers the tokens of so many devices more.
    """
    divided = {*used_axes(placement.use(*axes)), *used_axes(placement.activations("B"))}
    return 1 / shards(tuple(divided), placement.mesh)
