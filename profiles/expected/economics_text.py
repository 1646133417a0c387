"""For people: what else a floor says of money, by questions that flags of `estimate.py` ask."""

from collections.abc import Sequence

from profiles.expected.economics import recomputed_after_s
from profiles.expected.estimate import Estimator
from profiles.expected.speculation import paying_batches, speedup, verifying_floor
from profiles.floor.speculation import tokens_per_step
from profiles.floor.tiers import implied, tiers
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


def held(estimator: Estimator, context: int, seconds: Sequence[float]) -> list[str]:
    """What a cache costs that is held in each tier for so long, and which tier that implies."""
    chip = estimator.chip
    offered = tiers(chip.name, estimator.recommended_chip.capacity, chip.bandwidth)
    times = [f"{exact(each)} s" for each in seconds]
    said = []
    for tier in offered:
        rounded = " to ".join(dict.fromkeys(map(exact, tier.round_s)))
        fetches = [
            f"{time} as much as {number(tier.fetches(each))} fetches"
            for time, each in zip(times, seconds, strict=True)
        ]
        said.append(
            f"{tier.name} ({tier.device}): read once in {number(tier.drain_s)} s (round figure "
            f"{rounded}); a cache held for {', for '.join(fetches)}"
        )
    for time, each in zip(times, seconds, strict=True):
        said.append(
            f"held for {time}: {implied(offered, each).name} by these devices, "
            f"{implied(offered, each, rounded=True).name} by round figures, where holding costs "
            "most nearly what a fetch does"
        )
    prompt = max(context, 2)
    after = recomputed_after_s(estimator, prompt)
    parts = [
        f"{number(each / after)} for {time}" for time, each in zip(times, seconds, strict=True)
    ]
    return [
        *said,
        f"holding over computing again, a token of a prompt of {prompt:,} in HBM: "
        f"{', '.join(parts)} (expected)",
    ]


def _paying(batches: tuple[int, int | None] | None) -> str:
    if batches is None:
        return "at no batch"
    first, last = batches
    if last is None:
        return "at every batch that fits" + f", from {first:,}" * (first > 1)
    return f"up to batch {last:,}" if first == 1 else f"from batch {first:,} to {last:,}"
