"""An estimate as the record that programs read."""

import dataclasses
import functools

from profiles.expected.economics import balanced_context, batching_gain, critical_batch
from profiles.expected.estimate import Estimate, Estimator, Setting
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
        seconds, where = found.expected.seconds, self.estimator.setting.where
        tokens_per_s = found.batch * found.tokens / seconds
        record = {
            **self._same(found.phase == "prefill"),
            "phase": found.phase,
            "batch": found.batch,
            "context": found.context,
            "tokens_per_sequence": found.tokens,
            **_costs(found, where.chip.devices_per_chip, where.chip.expected.capacity),
            "expected_s": seconds,
            "expected_terms_s": _terms(found),
            "tokens_per_s": tokens_per_s,
            "tokens_per_s_per_chip": tokens_per_s / where.chips,
        }
        if (cost := found.cost(seconds)) is not None:
            record["usd_per_million_tokens"] = cost
            record["price"] = price_record(self.estimator.setting)
        if (padded := self.estimator.padded(found.batch)) != found.batch:
            record["padded_batch"] = padded
        if found.phase == "decode":
            record |= {**self._critical, "batching_gain": self._gain(found.context)}
        return record | {"fits": found.fits, "status": "ok" if found.fits else "does_not_fit"}


def basis(setting: Setting) -> dict:
    """What a document says of a chip: its name, the rates of floors, the calibration."""
    chip = setting.where.chip
    given = chip.figures["bandwidth"].source == "given"
    return {
        "device_kind": chip.device_kinds[0],
        "bandwidth": {
            "bytes_per_s": chip.bandwidth,
            "source": "given" if given else "published",
            "peak_flops_per_s": chip.peak(setting.dtypes.arithmetic),
        },
        "calibration": dataclasses.asdict(setting.rates),
    }


def price_record(setting: Setting) -> dict[str, float | str]:
    """The price that costs are at; whose it is, where it is a listed one."""
    return setting.quote.as_record() if setting.quote else {"usd_per_chip_hour": setting.price}


def _costs(found: Estimate, parts: int, capacity: float) -> Record:
    traffic, bound = found.traffic, found.floor
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
