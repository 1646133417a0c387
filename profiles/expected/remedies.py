"""What to do about a pass that does not fit: the nearest way in which it does."""

from collections.abc import Sequence

from profiles.expected.candidates import LayoutNames, candidates, least_slice
from profiles.expected.estimate import Estimate, Estimator, best
from profiles.report.titles import field_text
from sharding.error_types import LayoutError
from sharding.layout import Layout


def remedy(step: Estimate, wanted: Sequence[Layout | None] = ()) -> str:
    """Another mesh of the same slice, or another layout, or else the least slice that does.

    Args:
      step: the pass.
      wanted: layouts that may be, which are preferred to others.
    """
    deployment = step.deployment
    if deployment.layout:
        every = LayoutNames().layouts(deployment.model)
        if found := _fitting(step, [deployment.layout]):
            mesh = field_text(found.deployment.mesh)
            return f"another mesh of it fits: give --mesh={mesh}, or leave it out"
        for offered in (wanted, every):
            if found := _fitting(step, offered):
                said, flags = found.describe(), ""
                if offered is every:
                    flags = "; use --layout=auto --attention=auto, or name it"
                return (
                    f"another layout fits: {said.layout}, attention by {said.attention}, on "
                    f"{field_text(said.mesh)}{flags}"
                )
        wanted = wanted or every
    least = least_slice(deployment, step.pass_, wanted or [None])
    if least and least.chips <= deployment.slice.chips:
        return "use a smaller batch or a larger slice"
    return f"the least slice that fits is {least}" if least else "no slice of it fits"


def _fitting(step: Estimate, layouts: Sequence[Layout]) -> Estimator | None:
    """The expected best of these layouts on the pass's slice that holds it, if one does."""
    deployment = step.deployment
    if not layouts:
        return None
    try:
        found = best(candidates(deployment, layouts), [step.pass_])
    except LayoutError:
        return None
    same = (found.deployment.layout, found.deployment.mesh) == (deployment.layout, deployment.mesh)
    fits = found.quick(step.pass_).fits
    return found if fits and not same else None
