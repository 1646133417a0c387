"""What programs read of each load: latencies, rates and costs, beside the ideal and the floor."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

from decode.batching.stats import StepStats
from decode.speculation import Tally
from profiles.report.record import Record
from profiles.serving.lost import lost
from profiles.serving.traffic import Timeline, Traffic

PERCENTILES = 50, 90, 99


def percentiles(values: Iterable[float]) -> dict[str, float]:
    """p50, p90 and p99: of each the least value that so many of a hundred are not above.

    So each is a time that a request really had, and of few requests p99 is the longest.
    """
    ordered = sorted(values)
    ranks = {p: math.ceil(p * len(ordered) / 100) - 1 for p in PERCENTILES}
    return {f"p{p}": ordered[rank] for p, rank in ranks.items()} if ordered else {}


def load_row(
    traffic: Traffic,
    full: Record | None = None,
    rows: int | None = None,
    step_s: Mapping[int, float] | None = None,
    service_floor_s: float | None = None,
    usd_per_s: float | None = None,
    verification_floor_s: float | None = None,
) -> dict:
    """One load as an entry of the document's `load`.

    Args:
      traffic: the load, answered.
      full: the record of the fixed batch's step that the ideal is taken from; None of a service
        elsewhere, of which neither ideal nor floor is known.
      rows: of the service.
      step_s: seconds of the steps of fixed batches by their rows, that of `full` among them.
      service_floor_s: seconds of each token in the floor with prompts: `profiles.floor.serving`.
      usd_per_s: price of all chips; None leaves costs out.
      verification_floor_s: seconds of the floor of a full step that verifies drafts; None without
        drafts.
    """
    load, tokens = traffic.load, traffic.tokens
    kind = {"concurrency": load.concurrency, "rate": load.rate}
    row = {"arrivals": load.arrivals}
    row |= {name: value for name, value in kind.items() if value is not None}
    row |= {"requests": len(traffic.timelines), "rows": rows, **_times(traffic.timelines)}
    row |= {"wall_s": traffic.wall_s, "generated_tokens": tokens}
    row |= {"prompt_tokens": sum(each.prompt_tokens for each in traffic.timelines)}
    row |= cost(traffic.wall_s / tokens, usd_per_s)
    if traffic.compiled is not None:
        row["recompilations"] = traffic.compiled
    if verification_floor_s is not None:
        row["speculation"] = dataclasses.asdict(speculation(traffic.steps))
    if full is not None:
        floor_s = full.floor_s if verification_floor_s is None else verification_floor_s
        row |= _beside(traffic, full, floor_s, step_s, service_floor_s, usd_per_s)
    return {name: value for name, value in row.items() if value is not None}


def speculation(steps: Sequence[StepStats]) -> Tally:
    """What steps gave to rows whose tokens some request took, and what drafts came to in them."""
    rows = sum(step.active - step.wasted for step in steps)
    drafted, accepted = sum(s.drafted for s in steps), sum(s.accepted for s in steps)
    return Tally(rows, rows + accepted, drafted, accepted)


def cost(seconds: float, usd_per_s: float | None) -> dict[str, float]:
    """Seconds of each token as the fields of a rate and a cost."""
    found = {"s_per_token": seconds, "tokens_per_s": 1 / seconds}
    if usd_per_s is not None:
        found["usd_per_million_tokens"] = usd_per_s * seconds * 1e6
    return found


def _beside(
    traffic: Traffic,
    full: Record,
    floor_s: float,
    step_s: Mapping[int, float],
    service_floor_s: float | None,
    usd_per_s: float | None,
) -> dict:
    """Ideal, floor and what is lost."""
    batch, step = full.batch, full.step_s["median"]
    tally = speculation(traffic.steps)
    least = floor_s / (tally.tokens_per_step if tally.steps else 1)  # for a token of each sequence
    floor = {"step_s": floor_s, **cost(least / batch, usd_per_s)}
    if service_floor_s is not None:
        floor["with_prompts"] = cost(service_floor_s, usd_per_s)
    whole = lost(
        traffic.steps,
        wall_s=traffic.wall_s,
        paused_s=traffic.paused_s,
        tokens=traffic.tokens,
        batch=batch,
        step_s=step_s,
        floor_s=least,
    )
    return {
        "batch": batch,
        "context": full.context,
        "steps": len(traffic.steps),
        "ideal": {"step_s": step, **cost(step / batch, usd_per_s)},
        "floor": floor,
        "fraction_of_ideal": step / batch / (traffic.wall_s / traffic.tokens),
        "lost": whole._asdict(),
    }


def departures_row(at_any_step: Traffic, train: Traffic, departure_s: float) -> dict:
    """The same arrivals twice: joining at any step, and by a train that departs on schedule."""
    return {
        "departure_s": departure_s,
        **_name(at_any_step.load),
        "any_step": _times(at_any_step.timelines) | {"wall_s": at_any_step.wall_s},
        "train": _times(train.timelines) | {"wall_s": train.wall_s},
    }


def _name(load) -> dict:
    return {"arrivals": load.arrivals} | ({"rate": load.rate} if load.rate else {})


def _times(timelines: Sequence[Timeline]) -> dict:
    """Percentiles of what requests waited for, and the means of waiting and of the whole."""
    found = {
        "first_token_s": percentiles(each.first_token_s for each in timelines),
        "per_token_s": percentiles(
            each.per_token_s for each in timelines if each.per_token_s is not None
        ),
        "total_s": _with_mean([each.total_s for each in timelines]),
    }
    if all(each.boarded is not None for each in timelines):
        found["waiting_s"] = _with_mean([each.waiting_s for each in timelines])
    return found


def _with_mean(values: Sequence[float]) -> dict[str, float]:
    return percentiles(values) | {"mean": sum(values) / len(values)}
