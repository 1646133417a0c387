"""The deployments that a published case may have run as, and what their times take for granted."""

import functools
from collections.abc import Iterator

from profiles.chips.calibration import Calibration
from profiles.expected.candidates import LayoutNames, candidates
from profiles.expected.estimate import Estimator
from profiles.expected.time import CollectiveLists
from profiles.floor.bound import Floor, floor
from profiles.floor.collective import Collective
from profiles.floor.deployment import Deployment
from profiles.floor.passes import Pass
from profiles.floor.sized_models import SizedModel
from profiles.published.fields import bits_in
from profiles.published.measurement import Measurement

EVENLY = "divided evenly over chips, whatever the layout"
EXPERTS = "the floor reads one token's experts, the expected time those of evenly spread tokens"


def estimators(case: Measurement, for_floor: bool, calibration: Calibration) -> list[Estimator]:
    """Estimators of all layouts and meshes that a case may have, for its floor or expected time.

    Raises:
      LayoutError: no layout divides the model over the slice.
    """
    mesh = tuple(case.mesh.items()) if case.mesh else None
    deployment = Deployment(
        model=case.model,
        slice=case.slice_for(for_floor),
        dtypes=case.dtypes(for_floor),
        calibration=calibration,
        experts="least" if for_floor else "coverage",
    )
    most = bits_in(case.fastest) if for_floor else None
    return _estimators(deployment, tuple(case.names), mesh, most)


@functools.lru_cache(maxsize=256)
def _estimators(
    deployment: Deployment,
    names: tuple[LayoutNames, ...],
    mesh: tuple[tuple[str, int], ...] | None,
    most_bits: int | None,
) -> list[Estimator]:
    """Cases of one table share these."""
    layouts = [layout for each in names for layout in each.layouts(deployment.model)]
    found = candidates(deployment, layouts, [dict(mesh)] if mesh else None)
    for one in found:
        if most_bits and one.placement:
            one.links.listed = _Narrowed(one.links.listed, most_bits)
    return found


class _Narrowed(CollectiveLists):
    """Collectives of another engine, which may send activations in the type that it multiplies in.

    Args:
      listed: this project's own collectives, some of which add up in float32.
      most_bits: bits of that type.
    """

    def __init__(self, listed: CollectiveLists, most_bits: int):
        super().__init__(listed.config, listed.placement, listed.dtypes)
        self._most_bits = most_bits

    def collectives(self, batch: int, tokens: int, continues: bool = False) -> list[Collective]:
        """Those of a pass over a batch that the layout divides."""
        found = super().collectives(batch, tokens, continues)
        return [each.narrowed(self._most_bits) for each in found]


def unpadded_floor(estimator: Estimator, pass_: Pass, links: bool = True) -> Floor:
    """The floor of a pass; a batch is not padded, because another layout need not pad it.

    Args:
      estimator: of the deployment.
      pass_: the pass.
      links: whether to count collectives, which take longest to find; those of a padded batch are
        left out.
    """
    deployment = estimator.deployment
    if links and deployment.padded(pass_) == pass_:
        return estimator.estimate(pass_).floor
    counter = deployment.prompt_counter if pass_.over_prompts else deployment.counter
    return floor(counter.count(pass_, deployment.experts), estimator.peaks)


def assumed_types(case: Measurement) -> Iterator[str]:
    """What times assume about types that a case leaves open."""
    if case.slice.devices > 1 and not isinstance(case.model, SizedModel):
        yield (
            f"the floor sends activations over links in {bits_in(case.fastest)} bits at most, "
            "those of its arithmetic"
        )
    if case.weights.few_bits or (case.cache and case.cache.few_bits):
        yield "the floor counts values of few bits without scales, and all tables in them"
    if case.weights.few_bits and not case.dtype:
        yield f"arithmetic not stated: {case.multiplied}, the floor's as fast as the chip has"
    if case.stated_cache:
        return
    if not case.cache:
        yield f"kv_dtype not stated: {case.arithmetic}"
    elif case.engine.known:
        yield (
            f"kv_dtype not stated: {case.cache.name}, the smallest that {case.engine.name} has "
            f"beside {case.weights.name}"
        )
    else:
        yield (
            f"kv_dtype not stated: {case.cache.name}, as nothing is known here of "
            f"{case.engine.name}"
        )


def assumed_constants(case: Measurement, calibration: Calibration) -> Iterator[str]:
    """Whose constants an expected time has, if not those of the case's engine on its chip."""
    chip, engine = case.slice.chip.name, case.engine and case.engine.name
    if engine and calibration.engine not in ("", engine):
        yield (
            f"expected by constants of another engine, not of {engine}: "
            f"{calibration.describe(chip)}"
        )
    elif chip not in calibration.chips:
        yield f"expected by {calibration.describe(chip)}"
    elif calibration.engine not in ("", engine) and case.fit != calibration.name:
        yield f"no engine is named: expected by {calibration.describe(chip)}"
