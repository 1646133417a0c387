"""An estimate as the record that programs read."""

import functools

from profiles.chips.chip import Chip
from profiles.expected.balance import balanced_context, batching_gain, critical_batch
from profiles.expected.estimate import Estimate, Estimator
from profiles.expected.serving import ServiceEstimate
from profiles.expected.time import Expected
from profiles.floor.bound import Floor
from profiles.floor.deployment import Deployment
from profiles.floor.passes import Counts
from profiles.report.record import BytesPerChip, Record


class Recorder:
    """Makes records of an estimator's passes; what they share is counted once.

    Args:
      estimator: whose passes they are.
      balanced: whether records of decode steps say at which batch and context the terms of a floor
        balance, and what batching gains; to find that takes longer than all else.
    """

    def __init__(self, estimator: Estimator, balanced: bool = True):
        self.estimator, self._balanced = estimator, balanced
        self._same = functools.cache(estimator.describe)
        self._critical = None, None
        if balanced:
            self._critical = critical_batch(estimator), balanced_context(estimator)
        self._gain = functools.cache(lambda context: batching_gain(estimator, context))

    def record(self, found: Estimate) -> Record:
        """The record of a pass."""
        deployment, pass_ = found.deployment, found.pass_
        decode = self._balanced and not pass_.over_prompts
        seconds = found.expected.seconds
        padded = deployment.padded(pass_).batch
        critical = self._critical if decode else (None, None)
        return self._same(pass_.over_prompts) | Record(
            phase=pass_.phase,
            batch=pass_.batch,
            context=pass_.context,
            tokens_per_sequence=pass_.tokens,
            **_work(found.counts, found.floor, deployment.slice.chip).to_json(),
            **expected_fields(found.expected).to_json(),
            **_rates(
                deployment, pass_.batch * pass_.tokens, seconds, found.cost(seconds)
            ).to_json(),
            padded_batch=None if padded == pass_.batch else padded,
            critical_batch=critical[0],
            critical_context=critical[1],
            batching_gain=self._gain(pass_.context) if decode else None,
            fits=found.fits,
            status="ok" if found.fits else "does_not_fit",
        )

    def record_service(self, found: ServiceEstimate) -> Record:
        """The record of a service's mean step; rates are those of prompts beside steps."""
        deployment, seconds = found.deployment, found.expected_beside_s
        chip, reserved = deployment.slice.chip, found.reserved_cache
        work = _work(found.counts, found.floor, chip, kv_reserved=reserved)
        prompt, answer = found.service.prompt_length, found.service.generated_tokens
        return self._same(False) | Record(
            phase="serving",
            batch=found.concurrency,
            context=prompt + answer // 2,  # half way through the answer
            concurrency=found.concurrency,
            prompt_length=prompt,
            generated_tokens=answer,
            **work.to_json(),
            **expected_fields(found.beside).to_json(),
            expected_forms_s={"beside": seconds, "between": found.expected_between_s},
            **_rates(deployment, found.concurrency, seconds, found.cost(seconds)).to_json(),
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


def _work(counts: Counts, bound: Floor, chip: Chip, **beside: float) -> Record:
    """What a chip has to do, and its floor; `beside` are more bytes of a chip."""
    counted = counts.bytes_of(chip.devices_per_chip) | beside
    return Record(
        bytes_per_chip=BytesPerChip(**counted, capacity=chip.recommended.capacity),
        flops_per_chip=counts.flops * chip.devices_per_chip,
        flops_per_byte=counts.flops / counts.memory,
        floor_s=bound.seconds,
        floor_terms_s=bound.terms(),
        weight_floor_s=bound.weights,
        bound=bound.bound,
        no_overlap_s=bound.no_overlap,
    )


def _rates(deployment: Deployment, tokens: int, seconds: float, cost: float | None) -> Record:
    """New tokens per second of all batches in flight, and their cost where there is a price."""
    rate = tokens * deployment.stages / seconds
    return Record(
        tokens_per_s=rate,
        tokens_per_s_per_chip=rate / deployment.whole.chips,
        usd_per_million_tokens=cost,
        price=None if cost is None else deployment.price.as_record(),
    )


def expected_fields(expected: Expected) -> Record:
    """An expected time and its terms, those that are not zero."""
    return Record(expected_s=expected.seconds, expected_terms_s=expected.terms())
