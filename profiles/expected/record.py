"""An estimate as the record that programs read."""

import dataclasses
import functools

from profiles.expected.balance import balanced_context, batching_gain, critical_batch
from profiles.expected.estimate import Estimate, Estimator
from profiles.floor.deployment import Deployment
from profiles.report.document import Record


class Recorder:
    """Makes records of an estimator's passes; what they share is counted once.

    Args:
      estimator: whose passes they are.
    """

    def __init__(self, estimator: Estimator):
        self.estimator = estimator
        self._same = functools.cache(estimator.describe)
        self._critical = {"critical_batch": critical_batch(estimator)}
        context = balanced_context(estimator)
        if context is not None:
            self._critical["critical_context"] = context
        self._gain = functools.cache(lambda context: batching_gain(estimator, context))

    def record(self, found: Estimate) -> Record:
        """The record of a pass."""
        seconds, slice = found.expected.seconds, self.estimator.deployment.slice
        tokens_per_s = found.pass_.batch * found.pass_.tokens / seconds
        record = {
            **self._same(found.pass_.phase == "prefill"),
            "phase": found.pass_.phase,
            "batch": found.pass_.batch,
            "context": found.pass_.context,
            "tokens_per_sequence": found.pass_.tokens,
            **_costs(found, slice.chip.devices_per_chip, slice.chip.expected.capacity),
            "expected_s": seconds,
            "expected_terms_s": _terms(found),
            "tokens_per_s": tokens_per_s,
            "tokens_per_s_per_chip": tokens_per_s / slice.chips,
        }
        if (cost := found.cost(seconds)) is not None:
            record["usd_per_million_tokens"] = cost
            record["price"] = price_record(self.estimator.deployment)
        if (padded := self.estimator.padded(found.pass_.batch)) != found.pass_.batch:
            record["padded_batch"] = padded
        if found.pass_.phase == "decode":
            record |= {**self._critical, "batching_gain": self._gain(found.pass_.context)}
        return record | {"fits": found.fits, "status": "ok" if found.fits else "does_not_fit"}


def basis(deployment: Deployment) -> dict:
    """What a document says of a chip: its name, the rates of floors, the calibration."""
    chip = deployment.slice.chip
    given = chip.figures["bandwidth"].source == "given"
    return {
        "device_kind": chip.device_kinds[0],
        "bandwidth": {
            "bytes_per_s": chip.bandwidth,
            "source": "given" if given else "published",
            "peak_flops_per_s": chip.peak(deployment.dtypes.arithmetic),
        },
        "calibration": dataclasses.asdict(deployment.calibration),
    }


def price_record(deployment: Deployment) -> dict[str, float | str]:
    """The price that costs are at, and whose it is, where it is a listed one."""
    return deployment.price.as_record()


def _costs(found: Estimate, parts: int, capacity: float) -> Record:
    traffic, bound = found.counts, found.floor
    counted = {name: value * parts for name, value in dataclasses.asdict(traffic).items()}
    flops = counted.pop("flops")
    if not counted["weights_gathered"]:
        del counted["weights_gathered"]
    return {
        "bytes_per_chip": counted | {"capacity": capacity},
        "flops_per_chip": flops,
        "flops_per_byte": traffic.flops / traffic.memory,
        "floor_s": bound.seconds,
        "floor_terms_s": bound.terms(),
        "weight_floor_s": bound.weights,
        "bound": bound.bound,
        "no_overlap_s": bound.no_overlap,
    }


def _terms(found: Estimate) -> dict[str, float]:
    terms = dataclasses.asdict(found.expected)
    del terms["hidden"]
    return {name: seconds for name, seconds in terms.items() if seconds}
