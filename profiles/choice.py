"""Choosing a layout by predicted time: what ``--layout=auto`` does.

The rule is that of every expected time (`profiles.expected`), for JAX's devices. Good for ranking
layouts of one model on one mesh; on a CPU and on unknown chips, at assumed rates.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Sequence

from model.config import ModelConfig
from model.form import Form
from profiles.candidates import AUTO
from profiles.estimate import Estimate, Estimator, Setting
from profiles.here import Here, here
from profiles.numbers import milliseconds, number
from sharding.errors import LayoutError
from sharding.layout import ATTENTION, LAYOUTS, attend_by, find_layout, prefill_by
from sharding.mesh import MeshShape
from sharding.placement import Layout


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
      passes: that were predicted.
    """

    name: str
    layout: Layout
    passes: Sequence[Estimate]

    @property
    def seconds(self) -> float:
        """Of all passes."""
        return sum(each.expected.seconds for each in self.passes)

    @property
    def fits(self) -> bool:
        """Whether weights and cache fit in the chip in all of them."""
        return all(each.fits for each in self.passes)

    def __str__(self) -> str:
        terms = [each.expected for each in self.passes]
        sums = (
            ("memory", sum(each.memory for each in terms)),
            ("compute", sum(each.compute for each in terms)),
            ("links", sum(each.communication + each.overlapped for each in terms)),
        )
        shown = ", ".join(f"{name} {_time(seconds)}" for name, seconds in sums)
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
    devices = here(math.prod(mesh.values()))
    if AUTO in (wish.layout, wish.attention):
        ranked = choose(asked, candidates, devices)
        report(explain(ranked, "layout" if wish.layout == AUTO else "attention", devices))
        picked = ranked[0].layout
    if wish.prefill == AUTO:
        names = _stored_alike(picked.name)
        both = [wish.build(picked.name, picked.attends, name) for name in names]
        ranked = choose_prefill(asked, admitted(config, mesh, both), devices)
        report(explain(ranked, "prefill_layout", devices))
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


def choose(work: Work, candidates: Iterable[Layout], devices: Here) -> list[Prediction]:
    """What decode steps are predicted to take in each layout, the best first.

    Args:
      work: what to choose for.
      candidates: from `admitted`.
      devices: that steps run on.
    """
    found = []
    for layout in candidates:
        estimator = _estimator(work, layout, devices)
        sizes = itertools.product(work.batches, work.contexts)
        name = f"{layout.name}, attention by {layout.attends}"
        found.append(Prediction(name, layout, [estimator.decode(*each) for each in sizes]))
    return sorted(found, key=lambda each: (not each.fits, each.seconds))


def choose_prefill(work: Work, candidates: Iterable[Layout], devices: Here) -> list[Prediction]:
    """What prompts as long as the longest context are predicted to take in each `prefill`.

    Arguments as of `choose`; the best comes first.
    """
    found, length = [], max(*work.contexts, 2)
    for layout in candidates:
        estimator = _estimator(work, layout, devices)
        passes = [estimator.prefill(batch, length) for batch in work.batches]
        found.append(Prediction((layout.prefill or layout).name, layout, passes))
    return sorted(found, key=lambda each: each.seconds)


def _estimator(work: Work, layout: Layout, devices: Here) -> Estimator:
    return Estimator(
        Setting(
            model=work.config,
            where=devices.where,
            form=work.form,
            rates=devices.rates,
            layout=layout,
            mesh=work.mesh,
        )
    )


def explain(ranked: Sequence[Prediction], what: str, devices: Here) -> str:
    """Which layout was picked, and why not the next ones."""
    best, *others = ranked
    rest = "; ".join(map(str, others[:2]))
    beside = f"; next: {rest}" if rest else "; no other goes with this model and mesh"
    return f"{what} auto: {best}, predicted from {devices.words}{beside}"


def _time(seconds: float) -> str:
    return milliseconds(seconds) if seconds < 1 else f"{number(seconds)} s"
