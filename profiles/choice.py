"""Choosing a layout by predicted time: what ``--layout=auto`` does.

A simple rule: a step takes the larger of its memory and compute time at the chip's published peaks,
plus, with no overlap, each expected collective's bytes over the link and a fixed start. Good for
ranking layouts of one model on one mesh, not for promising times.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Sequence

import jax

from model.config import ModelConfig
from model.form import Form
from profiles.collective import Collective
from profiles.communication import expected_collectives
from profiles.floor import Floor, floor
from profiles.hardware import Peaks, published_peaks
from profiles.traffic import decode_traffic
from sharding.errors import LayoutError, UsageError
from sharding.layout import ATTENTION, LAYOUTS, attend_by, find_layout, prefill_by
from sharding.mesh import MeshShape
from sharding.placement import Layout, shards

AUTO = "auto"
START_S = 5e-6
"""A collective's fixed cost: about that of a small `ppermute` on TPU v5p and v6e, as measured
(github.com/marin-community/marin/issues/6736)."""

ASSUMED_CPU = Peaks(bandwidth=3e10, flops=2e11, source="assumed", link=1e10)
"""Of a whole CPU: its fake devices share one memory and its cores."""
ASSUMED_LINK = 0.05  # of a chip's bandwidth, where its links are not published


@dataclasses.dataclass(frozen=True)
class Work:
    """What a layout is chosen for.

    Attributes:
      config: the model.
      mesh: sizes of the mesh axes.
      form: how its numbers are stored.
      batches: sequences per step.
      contexts: tokens in the cache.
    """

    config: ModelConfig
    mesh: MeshShape
    form: Form
    batches: Sequence[int]
    contexts: Sequence[int]


@dataclasses.dataclass(frozen=True)
class Prediction:
    """A layout's predicted seconds, summed over the work's batches and contexts.

    Attributes:
      name: of what was looked at.
      layout: that it is part of.
      seconds: of all: for each step the larger of memory and compute, and communication.
      memory: reading weights and cache.
      compute: arithmetic.
      communication: collectives, none of it hidden.
      fits: whether weights and cache fit in the chip.
    """

    name: str
    layout: Layout
    seconds: float
    memory: float
    compute: float
    communication: float
    fits: bool = True

    def __str__(self) -> str:
        terms = (("memory", self.memory), ("compute", self.compute), ("links", self.communication))
        shown = ", ".join(f"{name} {_time(seconds)}" for name, seconds in terms)
        too_large = "" if self.fits else "; does not fit"
        return f"{self.name}: {_time(self.seconds)} ({shown}{too_large})"


@dataclasses.dataclass(frozen=True)
class Wish:
    """A layout by names, any of which may be `AUTO`.

    Attributes:
      layout: of decode steps.
      attention: what divides attention.
      prefill: layout of prompts; None for that of decode steps.
      finish: makes of a layout one with whatever else is wanted of it.
    """

    layout: str
    attention: str
    prefill: str | None
    finish: Callable[[Layout], Layout]

    def build(self, layout: str, attention: str, prefill: str | None) -> Layout:
        """A layout of these names.

        Raises:
          UsageError: there is none of a name, or prompts want weights stored otherwise.
        """
        built = attend_by(find_layout(layout), attention)
        return self.finish(prefill_by(built, find_layout(prefill)) if prefill else built)


def pick(
    wish: Wish,
    config: ModelConfig,
    mesh: MeshShape,
    work: Callable[[], Work],
    report: Callable[[str], None],
) -> Layout:
    """The layout of these names, or what is predicted to be fastest where they leave it open.

    Args:
      wish: the names.
      config: the model.
      mesh: sizes of the mesh axes.
      work: gives what to choose for; asked only where there is a choice that the model and the mesh
        admit, for it may start JAX.
      report: told what was picked and why.

    Raises:
      LayoutError: none goes with the model and the mesh.
    """
    prompts = None if wish.prefill == AUTO else wish.prefill
    kinds = ATTENTION if wish.attention == AUTO else [wish.attention]
    names = _stored_alike(prompts) if wish.layout == AUTO else [wish.layout]
    candidates = [wish.build(name, kind, prompts) for name in names for kind in kinds]
    if AUTO not in (wish.layout, wish.attention, wish.prefill):
        return candidates[0]
    candidates = admitted(config, mesh, candidates)
    asked, picked = work(), candidates[0]
    peaks = peaks_for_choice(math.prod(mesh.values()))
    if AUTO in (wish.layout, wish.attention):
        ranked = choose(asked, candidates, peaks)
        report(explain(ranked, "layout" if wish.layout == AUTO else "attention", peaks))
        picked = ranked[0].layout
    if wish.prefill == AUTO:
        names = _stored_alike(picked.name)
        both = [wish.build(picked.name, picked.attends, name) for name in names]
        ranked = choose_prefill(asked, admitted(config, mesh, both), max(asked.contexts), peaks)
        report(explain(ranked, "prefill_layout", peaks))
        picked = ranked[0].layout
    return picked


def _stored_alike(name: str | None) -> list[str]:
    """Layouts whose weights are stored as this one's; all of them without one."""
    if name is None:
        return list(LAYOUTS)
    wanted = find_layout(name).weights
    return [other for other, layout in LAYOUTS.items() if layout.weights == wanted]


def admitted(config: ModelConfig, mesh: MeshShape, candidates: Iterable[Layout]) -> list[Layout]:
    """Those of the layouts that go with the model and the mesh.

    Raises:
      LayoutError: none does; the message is the first refusal's.
    """
    found, refusals = [], []
    for layout in candidates:
        try:
            layout.check(config.sizes, mesh)
            found.append(layout)
        except LayoutError as error:
            refusals.append(error)
    if not found:
        raise refusals[0]
    return found


def choose(work: Work, candidates: Iterable[Layout], peaks: Peaks) -> list[Prediction]:
    """What decode steps are predicted to take in each layout, the best first.

    Args:
      work: what to choose for.
      candidates: from `admitted`.
      peaks: of each device.
    """
    found = [predict(layout, work, peaks) for layout in candidates]
    return sorted(found, key=lambda each: (not each.fits, each.seconds))


def choose_prefill(
    work: Work, candidates: Iterable[Layout], length: int, peaks: Peaks
) -> list[Prediction]:
    """What prompts of this length are predicted to take in each layout's `prefill`, the best first.

    Arguments as of `choose`.
    """
    found = [_predict_prefill(layout, work, length, peaks) for layout in candidates]
    return sorted(found, key=lambda each: each.seconds)


def predict(layout: Layout, work: Work, peaks: Peaks) -> Prediction:
    """Predicted seconds of decode steps.

    Raises:
      LayoutError: the layout does not go with the model and the mesh.
    """
    placement = layout.check(work.config.sizes, work.mesh)
    bounds, links, fits = [], [], True
    for batch, context in itertools.product(work.batches, work.contexts):
        batch = _padded(batch, placement.multiple("B"))
        sizes = {"batch": batch, "context": context, "slots": context + 1}
        traffic = decode_traffic(work.config, placement, work.form, **sizes)
        bounds.append(floor(traffic, peaks))
        listed = expected_collectives(work.config, placement, work.form, batch=batch)
        links.append(_link_seconds(listed, work.mesh, peaks))
        resident = traffic.weights_resident + traffic.kv_resident
        fits &= not peaks.capacity or resident <= peaks.capacity
    name = f"{layout.name}, attention by {layout.attends}"
    return _sum(name, layout, bounds, links, fits)


def _predict_prefill(layout: Layout, work: Work, length: int, peaks: Peaks) -> Prediction:
    """Predicted seconds of prompts of this length."""
    whole = layout.check(work.config.sizes, work.mesh)
    placement, bounds, links = whole.prefill, [], []
    for batch in work.batches:
        batch = _padded(batch, whole.multiple("B"))
        sizes = {"batch": batch * length, "context": length // 2, "slots": 1}
        bound = floor(decode_traffic(work.config, placement, work.form, **sizes), peaks)
        # A prompt's own keys and values are read from on-chip memory.
        bounds.append(dataclasses.replace(bound, kv_cache=0))
        tokens = {"batch": batch, "tokens": max(length, 2)}
        listed = expected_collectives(work.config, placement, work.form, **tokens)
        links.append(_link_seconds(listed, work.mesh, peaks))
    return _sum(placement.layout.name, layout, bounds, links)


def _sum(
    name: str, layout: Layout, bounds: Sequence[Floor], links: Sequence[float], fits: bool = True
) -> Prediction:
    return Prediction(
        name,
        layout,
        seconds=sum(bound.seconds for bound in bounds) + sum(links),
        memory=sum(bound.weights + bound.kv_cache for bound in bounds),
        compute=sum(bound.compute for bound in bounds),
        communication=sum(links),
        fits=fits,
    )


def explain(ranked: Sequence[Prediction], what: str, peaks: Peaks) -> str:
    """Which layout was picked, and why not the next ones."""
    best, *others = ranked
    rest = "; ".join(map(str, others[:2]))
    beside = f"; next: {rest}" if rest else "; no other goes with this model and mesh"
    rates = (
        "assumed rates of a CPU: not a TPU's choice"
        if peaks.source == "assumed"
        else (f"{peaks.source} peaks")
    )
    return f"{what} auto: {best}, predicted from {rates}{beside}"


def peaks_for_choice(devices: int) -> Peaks:
    """Published peaks of JAX's devices; assumed ones of a CPU or an unknown chip."""
    if jax.default_backend() != "cpu":
        try:
            return published_peaks(jax.devices()[0])
        except UsageError:
            pass  # a ranking can do with assumed rates; a floor could not
    return dataclasses.replace(
        ASSUMED_CPU, bandwidth=ASSUMED_CPU.bandwidth / devices, flops=ASSUMED_CPU.flops / devices
    )


def _link_seconds(listed: list[Collective], mesh: MeshShape, peaks: Peaks) -> float:
    link = peaks.link or ASSUMED_LINK * peaks.bandwidth
    return sum(each.count * (START_S + _sent(each, mesh) / link) for each in listed)


def _sent(collective: Collective, mesh: MeshShape) -> float:
    """Bytes that a device sends: a ring algorithm's for each kind."""
    chips = shards(collective.axes, mesh)
    share: Callable[[int], float] = {
        "permute": lambda chips: 1,
        "all-reduce": lambda chips: 2 * (chips - 1) / chips,
    }.get(collective.kind, lambda chips: (chips - 1) / chips)
    return collective.payload_bytes * share(chips)


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _padded(batch: int, multiple: int) -> int:
    return -(-batch // multiple) * multiple
