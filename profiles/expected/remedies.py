"""Advice about a pass that does not fit: the most similar deployment in which it does."""

from collections.abc import Sequence

from profiles.expected.candidates import LayoutNames, candidates, smallest_slice
from profiles.expected.estimate import Estimate, Estimator, best
from profiles.report.titles import field_text
from sharding.error_types import LayoutError
from sharding.layout import Layout


def remedy(step: Estimate, preferred: Sequence[Layout | None] = ()) -> str:
    """Names another mesh of the slice, or another layout, or else the smallest slice that fits.

    Args:
      step: the pass that does not fit.
      preferred: layouts to prefer to others.
    """
    deployment = step.deployment
    if deployment.layout:
        every = LayoutNames().layouts(deployment.model)
        if found := _fitting(step, [deployment.layout]):
            mesh = field_text(found.deployment.mesh)
            return f"another mesh of it fits: give --mesh={mesh}, or leave it out"
        for offered in (preferred, every):
            if found := _fitting(step, offered):
                said, flags = found.describe(), ""
                if offered is every:
                    flags = "; use --layout=auto --attention=auto, or name it"
                return (
                    f"another layout fits: {said.layout}, attention by {said.attention}, on "
                    f"{field_text(said.mesh)}{flags}"
                )
        preferred = preferred or every
    smallest = smallest_slice(deployment, step.pass_, preferred or [None])
    if smallest and smallest.chips <= deployment.slice.chips:
        return "use a smaller batch or a larger slice"
    return f"the least slice that fits is {smallest}" if smallest else "no slice of it fits"


def _fitting(step: Estimate, layouts: Sequence[Layout]) -> Estimator | None:
    """The layout expected to be fastest on the pass's slice, if the pass fits and it is another."""
    deployment = step.deployment
    if not layouts:
        return None
    try:
        fastest = best(candidates(deployment, layouts), [step.pass_])
    except LayoutError:
        return None
    other = fastest.deployment
    same = (other.layout, other.mesh) == (deployment.layout, deployment.mesh)
    return fastest if fastest.quick(step.pass_).fits and not same else None
