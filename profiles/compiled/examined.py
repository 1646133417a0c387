"""One pass compiled for a slice: chosen, compiled, read, and what was found in it, as a record."""

import dataclasses

from model.cache import whole_tiles
from profiles.compiled.compiler import Outcome, compile_step
from profiles.compiled.findings import Finding, findings
from profiles.compiled.inspection import Subject, differences, expected
from profiles.compiled.step import CompiledStep, read
from profiles.expected.estimate import Estimate, Estimator
from profiles.expected.record import Recorder
from profiles.expected.remedies import remedy
from profiles.floor.collective import Collective
from profiles.report.document import Record
from profiles.report.numbers import number


@dataclasses.dataclass(frozen=True)
class Examined:
    """What came of a pass.

    Attributes:
      estimator: of its layout on its slice.
      step: its floor and expected time.
      subject: as the compiler was given it.
      record: what programs read, with status and message.
      outcome: of the compiler; None where the floor's bytes do not fit already.
      compiled: the program, if there is one.
      wanted: the collectives that the layout asks for.
      findings: in the program, the costliest first.
    """

    estimator: Estimator
    step: Estimate
    subject: Subject
    record: Record
    outcome: Outcome | None = None
    compiled: CompiledStep | None = None
    wanted: tuple[Collective, ...] = ()
    findings: tuple[Finding, ...] = ()

    @property
    def differing(self) -> list[str]:
        """How the program's collectives depart from those that the layout asks for."""
        return differences(self.wanted, self.compiled.collectives, self.subject.dtypes.dtype, "tpu")

    def as_record(self) -> Record:
        """The record with what was compiled and found in it."""
        if not self.compiled:
            return self.record
        return {
            **self.record,
            "compiled": self.compiled.as_record(),
            "collectives_as_expected": not self.differing,
            "findings": [each.as_record() for each in self.findings],
        }


def examine(estimator: Estimator, batch: int, context: int, prefill: bool = False) -> Examined:
    """Compiles a pass of one layout on one slice, if its weights and cache fit.

    Args:
      estimator: of the layout.
      batch: sequences.
      context: tokens in the cache of each; of prefill, tokens of a prompt.
      prefill: a pass over prompts.
    """
    step = passed(estimator, batch, context, prefill)
    subject = subject_of(estimator, batch, context, prefill)
    record = Recorder(estimator).record(step)
    if not step.fits:
        beyond = step.resident - estimator.setting.where.chip.expected.capacity
        return Examined(estimator, step, subject, record | {"message": too_large(step, beyond)})
    outcome = compile_step(subject, estimator.setting.where)
    record |= status(outcome, step)
    if outcome.status != "ok":
        return Examined(estimator, step, subject, record, outcome)
    compiled = read(outcome, subject.placement.mesh)
    found = tuple(findings(compiled, subject, estimator, step.floor.seconds))
    wanted = tuple(expected(subject, "tpu"))
    return Examined(estimator, step, subject, record, outcome, compiled, wanted, found)


def passed(estimator: Estimator, batch: int, context: int, prefill: bool) -> Estimate:
    """The estimate of a pass, its cache as large as an engine's on TPU; arguments of `examine`."""
    if prefill:
        return estimator.prefill(batch, context)
    dtypes = estimator.setting.dtypes
    return estimator.decode(batch, context, slots=whole_tiles(context + 1, dtypes))


def subject_of(estimator: Estimator, batch: int, context: int, prefill: bool) -> Subject:
    """A pass as a compiler is given it; arguments as of `examine`."""
    return Subject(
        config=estimator.setting.model,
        placement=estimator.placement,
        dtypes=estimator.setting.dtypes,
        batch=estimator.padded(batch),
        slots=whole_tiles(context if prefill else context + 1, estimator.setting.dtypes),
        tokens=context if prefill else 1,
    )


def status(outcome: Outcome, step: Estimate) -> Record:
    """What a record says of how compiling went."""
    if outcome.status == "ok":
        return {"status": "ok", "fits": True}
    if outcome.status == "does_not_fit":
        parts = step.setting.where.chip.devices_per_chip
        message = too_large(step, (outcome.beyond or 0) * parts)
        said = f" (XLA: {outcome.message})"
        return {"status": "does_not_fit", "fits": False, "message": message + said}
    return {"status": outcome.status, "message": outcome.message}


def too_large(step: Estimate, beyond: float) -> str:
    """How much is missing, and what to do about it."""
    need = f"{number(beyond / 1e9)} GB per chip more" if beyond else "more"
    what = "weights, cache and temporaries" if step.fits else "weights, cache and activations"
    advice = "use a smaller batch or a larger slice" if step.fits else remedy(step)
    return f"{what} need {need} than {step.setting.where} has; {advice}"
