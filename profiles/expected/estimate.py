"""A forward pass on chips that need not be there: its floor, its expected time, and their terms.

An `Estimator` stands for a model in one layout on one slice. It counts what does not change once,
and then answers for any batch and context in microseconds. `profiles.expected.record` makes of an
answer the record that programs read.
"""

import dataclasses
import functools
from collections.abc import Iterable, Sequence

from model.config import ModelConfig
from model.declarations import count, count_active
from model.dtypes import Dtypes
from model.layout_check import settle
from model.transformer import Transformer
from profiles.chips.calibration import Calibration
from profiles.chips.chip import Peaks, Price
from profiles.chips.slices import Slice
from profiles.expected.links import check_size
from profiles.expected.sized import EVENLY, SizedCosts, SizedLinks, SizedModel
from profiles.expected.time import Expected, LinkCosts, Listed, Sent, expect
from profiles.floor.bound import Floor, floor
from profiles.floor.counts import StepCosts, Traffic
from profiles.report.document import Record
from profiles.report.partitioning import partitioning
from sharding.layout import Layout
from sharding.mesh import MeshShape
from sharding.placement import Placement

Model = ModelConfig | SizedModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """What an estimate is of, but for batch and context.

    Attributes:
      model: by its arrays, or by its sizes.
      where: the slice.
      dtypes: how numbers are stored.
      rates: what is achieved of the chip's figures.
      layout: partitioning; None for a model by its sizes, which divides evenly.
      mesh: sizes of the mesh axes; None likewise.
      experts: which experts a step is taken to read: ``coverage``, ``least`` or ``all``.
      price: USD per chip-hour; None leaves costs out.
      quote: the listed price that this is; None for any other.
    """

    model: Model
    where: Slice
    dtypes: Dtypes
    rates: Calibration
    layout: Layout | None = None
    mesh: MeshShape | None = None
    experts: str = "coverage"
    price: float | None = None
    quote: Price | None = None


@dataclasses.dataclass(frozen=True)
class Estimate:
    """One forward pass.

    Attributes:
      setting: what it is of.
      batch: sequences.
      context: tokens in the cache of each before it.
      tokens: new tokens of each.
      traffic: its work per device.
      floor: its lower bound, by term.
      expected: its expected time, by term.
      fits: whether weights, cache and activations fit in the memory of a chip.
    """

    setting: Setting
    batch: int
    context: int
    tokens: int
    traffic: Traffic
    floor: Floor
    expected: Expected
    fits: bool

    @property
    def phase(self) -> str:
        """``decode`` or ``prefill``."""
        return "decode" if self.tokens == 1 else "prefill"

    @property
    def resident(self) -> float:
        """Bytes per chip of weights, cache and activations."""
        return self.traffic.held * self.setting.where.chip.devices_per_chip

    def cost(self, seconds: float) -> float | None:
        """USD per million tokens at so many seconds per pass; None without a price."""
        setting = self.setting
        if setting.price is None:
            return None
        hours = setting.where.chips * seconds / 3600
        return setting.price * hours / (self.batch * self.tokens) * 1e6


class Estimator:
    """A model in one layout on one slice.

    Args:
      setting: which.

    Raises:
      LayoutError: the layout does not go with the model and the mesh, or the mesh with the slice.
      UsageError: the chip has no figure for the arithmetic.
    """

    def __init__(self, setting: Setting):
        self.setting = setting
        where, dtypes = setting.where, setting.dtypes
        self.chip, self.usual = where.chip, where.chip.expected
        parts = self.chip.devices_per_chip
        self.peaks = Peaks(
            bandwidth=self.chip.bandwidth / parts,
            flops=self.chip.peak(dtypes.arithmetic) / parts,
            source="published",
            on_chip=self.chip.on_chip / parts,
            capacity=self.usual.capacity / parts,
            devices_per_chip=parts,
        )
        self._flops = self.usual.peak(dtypes.arithmetic)
        if isinstance(setting.model, SizedModel):
            self.placement: Placement | None = None
            self.costs = SizedCosts(setting.model, dtypes, where.devices)
            self._links = SizedLinks(setting.model, dtypes, where, setting.rates)
        else:
            check_size(where, setting.mesh)
            self.placement = settle(setting.model, dtypes, setting.layout, setting.mesh)
            self.costs = StepCosts(setting.model, self.placement, dtypes)
            self._links = LinkCosts(
                Listed(setting.model, self.placement, dtypes), where, setting.rates
            )
        self._multiple = self.placement.multiple("B") if self.placement else 1
        self.prompts = self.costs
        if self.placement and self.placement.prefill is not self.placement:
            self.prompts = StepCosts(setting.model, self.placement.prefill, dtypes)
        self.sent = functools.cache(self._links.sent)

    def decode(self, batch: int, context: int, slots: int | None = None) -> Estimate:
        """A decode step.

        Args:
          batch: sequences; padded where the layout divides no such number.
          context: tokens in the cache of each.
          slots: tokens that the cache has room for; with the new token no more if None.
        """
        padded, experts = self.padded(batch), self.setting.experts
        traffic = self.costs.decode(batch=padded, context=context, slots=slots, experts=experts)
        return self._estimate(batch, context, 1, traffic, self.sent(padded, 1))

    def quick(
        self,
        batch: int,
        context: int,
        prefill: bool = False,
        cached: int = 0,
        links: bool = False,
    ) -> Estimate:
        """A pass whose floor leaves collectives out: theirs takes longest to find.

        Args:
          batch: sequences, padded likewise.
          context: tokens in the cache; of a prompt, its tokens.
          prefill: the pass is over prompts.
          cached: tokens before those.
          links: collectives take time in the expected time.
        """
        padded, experts = self.padded(batch), self.setting.experts
        tokens = context if prefill else 1
        sent = self._links.usual(padded, tokens) if links else Sent(0.0, 0.0, 0.0, 0.0)
        if prefill:
            sizes = {"batch": padded, "tokens": context, "cached": cached}
            traffic = self.prompts.prefill(**sizes, experts=experts)
            return self._estimate(batch, cached, context, traffic, sent)
        traffic = self.costs.decode(batch=padded, context=context, experts=experts)
        return self._estimate(batch, context, 1, traffic, sent)

    def prefill(self, batch: int, tokens: int, cached: int = 0) -> Estimate:
        """A pass over prompts.

        Args:
          batch: of them; padded likewise.
          tokens: of each, at least 2.
          cached: tokens before them that the cache has already.
        """
        padded, experts = self.padded(batch), self.setting.experts
        sizes = {"batch": padded, "tokens": tokens, "cached": cached}
        traffic = self.prompts.prefill(**sizes, experts=experts)
        return self._estimate(batch, cached, tokens, traffic, self.sent(padded, tokens))

    def padded(self, batch: int) -> int:
        """The batch that a step really has."""
        return -(-batch // self._multiple) * self._multiple

    def _estimate(
        self, batch: int, context: int, tokens: int, traffic: Traffic, sent: Sent
    ) -> Estimate:
        setting = self.setting
        layers = setting.model.layers
        expected = expect(traffic, sent, self.usual, self._flops, layers, setting.rates)
        bound = floor(traffic, self.peaks, sent.least)
        fits = traffic.held <= self.peaks.capacity
        return Estimate(setting, batch, context, tokens, traffic, bound, expected, fits)

    def describe(self, prompts: bool = False) -> Record:
        """The part of a record that is the same for every decode step, or every pass of prompts."""
        setting, where = self.setting, self.setting.where
        divided = {"layout": EVENLY}
        if self.placement:
            divided = partitioning(setting.model, self.placement, prompts)
        experts = {"experts": setting.experts} if setting.model.experts else {}
        return {
            "model": setting.model.name,
            "parameters": parameters(setting.model, setting.dtypes),
            "device_kind": where.chip.device_kinds[0],
            "topology": str(where),
            "chips": where.chips,
            "devices": where.devices,
            **divided,
            **setting.dtypes.names(),
            **experts,
        }


@functools.cache
def parameters(model: Model, dtypes: Dtypes) -> dict[str, int]:
    """How many a model has, and how many of them a token meets."""
    if isinstance(model, SizedModel):
        return {"total": model.total, "active": model.active}
    whole = Transformer(model, dtypes)
    return {"total": count(whole), "active": count_active(whole)}


def best(
    estimators: Iterable[Estimator],
    work: Sequence[tuple[int, int]],
    prefill: bool = False,
    cached: int = 0,
) -> Estimator:
    """The first of `ranked`; arguments are its."""
    return ranked(estimators, work, prefill, cached)[0]


def ranked(
    estimators: Iterable[Estimator],
    work: Sequence[tuple[int, int]],
    prefill: bool = False,
    cached: int = 0,
    count: int = 1,
) -> list[Estimator]:
    """Those whose passes are expected to be fastest, the best first; those that fit before others.

    Listing an estimator's collectives is most of the work, so those come first that would be
    fastest without any, and those are left out that even so are slower than as many found.

    Args:
      estimators: to choose among, at least one.
      work: batches and contexts, whose expected times are added up.
      prefill: passes are over prompts as long as the contexts; else decode steps.
      cached: of prompts: tokens before them, in the cache.
      count: how many, of equals those that come first.
    """

    def rank(estimator: Estimator, links: bool) -> tuple[int, float]:
        return _rank([estimator.quick(*each, prefill, cached, links) for each in work])

    found = list(estimators)
    bounds = [rank(one, links=False) for one in found]
    ranks: list[tuple[tuple[int, float], int]] = []
    for place in sorted(range(len(found)), key=bounds.__getitem__):
        if len(ranks) == count and bounds[place] > ranks[-1][0]:
            break
        ranks = sorted([*ranks, (rank(found[place], links=True), place)])[:count]
    return [found[place] for _, place in ranks]


def _rank(passes: Sequence[Estimate]) -> tuple[int, float]:
    """How many passes do not fit, and seconds that all take."""
    return sum(not each.fits for each in passes), sum(p.expected.seconds for p in passes)
