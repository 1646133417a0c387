"""What to do about a pass that does not fit: the nearest way in which they do."""

from collections.abc import Sequence

from profiles.expected.candidates import Wish, candidates, least_slice
from profiles.expected.estimate import Estimate, Estimator, best
from profiles.report.titles import field_text
from sharding.error_types import LayoutError
from sharding.layout import Layout


def remedy(step: Estimate, wanted: Sequence[Layout] | None = None) -> str:
    """Another mesh of the same slice, or another layout, or else the least slice that does.

    Args:
      step: the pass.
      wanted: layouts that may be, which are preferred to others; None for all.
    """
    setting = step.setting
    if setting.layout:
        every = Wish().layouts(setting.model)
        if found := _fitting(step, [setting.layout]):
            mesh = field_text(found.setting.mesh)
            return f"another mesh of it fits: give --mesh={mesh}, or leave it out"
        for offered in (wanted or [], every):
            if found := _fitting(step, offered):
                said, flags = found.describe(), ""
                if offered is every:
                    flags = "; use --layout=auto --attention=auto, or name it"
                return (
                    f"another layout fits: {said['layout']}, attention by {said['attention']}, on "
                    f"{field_text(said['mesh'])}{flags}"
                )
        wanted = wanted or every
    least = least_slice(setting, step.batch, step.context, wanted or [], step.tokens)
    if least and least.chips <= setting.where.chips:
        return "use a smaller batch or a larger slice"
    return f"the least slice that fits is {least}" if least else "no slice of it fits"


def _fitting(step: Estimate, layouts: Sequence[Layout]) -> Estimator | None:
    """The expected best of these layouts on the pass's slice that holds it, if one does."""
    setting, prefill = step.setting, step.phase == "prefill"
    size = (step.batch, step.tokens, step.context) if prefill else (step.batch, step.context, 0)
    batch, tokens, cached = size
    if not layouts:
        return None
    try:
        found = best(candidates(setting, layouts), [(batch, tokens)], prefill, cached)
    except LayoutError:
        return None
    same = (found.setting.layout, found.setting.mesh) == (setting.layout, setting.mesh)
    fits = found.quick(batch, tokens, prefill, cached).fits
    return found if fits and not same else None
