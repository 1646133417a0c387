"""An estimate as the record that programs read."""

import dataclasses
import functools

from profiles.chips.chip import Chip
from profiles.expected.balance import balanced_context, batching_gain, critical_batch
from profiles.expected.estimate import Estimate, Estimator
from profiles.floor.deployment import Deployment
from profiles.floor.passes import Counts
from profiles.report.record import BytesPerChip, Record


class Recorder:
    """Makes records of an estimator's passes; what they share is counted once.

    Args:
      estimator: whose passes they are.
    """

    def __init__(self, estimator: Estimator):
        self.estimator = estimator
        self._same = functools.cache(estimator.describe)
        self._critical = critical_batch(estimator), balanced_context(estimator)
        self._gain = functools.cache(lambda context: batching_gain(estimator, context))

    def record(self, found: Estimate) -> Record:
        """The record of a pass."""
        deployment, pass_, decode = found.deployment, found.pass_, not found.pass_.over_prompts
        counts, bound, seconds = found.counts, found.floor, found.expected.seconds
        tokens_per_s = pass_.batch * pass_.tokens / seconds
        cost, padded = found.cost(seconds), deployment.padded(pass_).batch
        critical = self._critical if decode else (None, None)
        return self._same(pass_.over_prompts) | Record(
            phase=pass_.phase,
            batch=pass_.batch,
            context=pass_.context,
            tokens_per_sequence=pass_.tokens,
            bytes_per_chip=_bytes(counts, deployment.slice.chip),
            flops_per_chip=counts.flops * deployment.slice.chip.devices_per_chip,
            flops_per_byte=counts.flops / counts.memory,
            floor_s=bound.seconds,
            floor_terms_s=bound.terms(),
            weight_floor_s=bound.weights,
            bound=bound.bound,
            no_overlap_s=bound.no_overlap,
            **expected_fields(found).to_json(),
            tokens_per_s=tokens_per_s,
            tokens_per_s_per_chip=tokens_per_s / deployment.slice.chips,
            usd_per_million_tokens=cost,
            price=None if cost is None else deployment.price.as_record(),
            padded_batch=None if padded == pass_.batch else padded,
            critical_batch=critical[0],
            critical_context=critical[1],
            batching_gain=self._gain(pass_.context) if decode else None,
            fits=found.fits,
            status="ok" if found.fits else "does_not_fit",
        )


def basis(deployment: Deployment) -> dict:
    """What a document says of a chip: its name, the rates of floors, the calibration."""
    chip = deployment.slice.chip
    given = chip.figures["bandwidth"].source == "given"
    return {
        "device_kind": chip.device_kinds[0],
        "bandwidth": {
            "bytes_per_s": chip.bandwidth,
            "source": "given" if given else "published",
            "peak_flops_per_s": chip.peak(deployment.arithmetic),
        },
        "calibration": deployment.calibration.as_record(),
    }


def _bytes(counts: Counts, chip: Chip) -> BytesPerChip:
    counted = counts.bytes_of(chip.devices_per_chip)
    return BytesPerChip(**counted, capacity=chip.recommended.capacity)


def expected_fields(found: Estimate) -> Record:
    """The expected time of a pass and its terms, those that are not zero."""
    terms = dataclasses.asdict(found.expected)
    del terms["hidden"]
    return Record(
        expected_s=found.expected.seconds,
        expected_terms_s={name: seconds for name, seconds in terms.items() if seconds},
    )
