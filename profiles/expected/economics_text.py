"""For people: what else a floor says of money, by questions that flags of `estimate.py` ask."""

from profiles.expected.estimate import Estimator
from profiles.expected.speculation import paying_batches, speedup, verifying_floor
from profiles.floor.speculation import tokens_per_step
from profiles.report.numbers import exact, ms, number, several


def speculation(
    estimator: Estimator, batch: int, context: int, drafted: int, acceptance: float
) -> list[str]:
    """The floor of a step that verifies drafts, and the batches at which it pays."""
    kept = tokens_per_step(drafted, acceptance)
    step = verifying_floor(estimator, batch, context, drafted + 1)
    gain = speedup(estimator, batch, context, drafted, acceptance)
    return [
        f"speculation: a step of {several(drafted + 1, 'token')} per sequence keeps {number(kept)} "
        f"of them if {several(drafted, 'drafted token')} pass{'es' * (drafted == 1)} with "
        f"probability {exact(acceptance)} each; at "
        f"batch {batch:,} its floor is {ms(step.seconds)} ms, so {ms(step.seconds / kept)} ms per "
        f"token, {number(gain)} times as fast as without (drafts themselves at no cost)",
        "speculation pays "
        + _paying(paying_batches(estimator, context, drafted, acceptance))
        + f" at context {context:,}, by floors",
    ]


def _paying(batches: tuple[int, int | None] | None) -> str:
    if batches is None:
        return "at no batch"
    first, last = batches
    if last is None:
        return "at every batch that fits" + f", from {first:,}" * (first > 1)
    return f"up to batch {last:,}" if first == 1 else f"from batch {first:,} to {last:,}"
