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
from profiles.floor.passes import Pass
from profiles.report.numbers import number
from profiles.report.record import Record


@dataclasses.dataclass(frozen=True)
class Examined:
    """What came of a pass.

    Attributes:
      estimator: the estimator of its layout on its slice.
      step: its floor and expected time.
      subject: the pass, as it is handed to the compiler.
      record: what programs read, with status and message.
      outcome: what the compiler made of it; None if the floor's bytes alone do not fit.
      compiled: the program, if there is one.
      wanted: the collectives that the layout asks for.
      findings: what was found in the program, the costliest first.
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
        return self.record | Record(
            compiled=self.compiled.as_record(),
            collectives_as_expected=not self.differing,
            findings=[each.as_record() for each in self.findings],
        )


def examine(estimator: Estimator, pass_: Pass) -> Examined:
    """Compiles a pass of a deployment, if its weights and cache fit.

    Args:
      estimator: the estimator of the deployment.
      pass_: the pass.
    """
    step, subject = estimate_on_tpu(estimator, pass_), subject_of(estimator, pass_)
    record = Recorder(estimator).record(step)
    if not step.fits:
        beyond = step.resident - estimator.deployment.slice.chip.expected.capacity
        record |= Record(message=too_large(step, beyond))
        return Examined(estimator, step, subject, record)
    outcome = compile_step(subject, estimator.deployment.slice)
    record |= status(outcome, step)
    if outcome.status != "ok":
        return Examined(estimator, step, subject, record, outcome)
    compiled = read(outcome, subject.placement.mesh)
    found = tuple(findings(compiled, subject, estimator, step.floor.seconds))
    wanted = tuple(expected(subject, "tpu"))
    return Examined(estimator, step, subject, record, outcome, compiled, wanted, found)


def estimate_on_tpu(estimator: Estimator, pass_: Pass) -> Estimate:
    """The estimate of a pass, the cache of a decode step as large as an engine's on TPU."""
    if pass_.over_prompts:
        return estimator.estimate(pass_)
    slots = whole_tiles(pass_.room, estimator.deployment.dtypes)
    return estimator.estimate(dataclasses.replace(pass_, slots=slots))


def subject_of(estimator: Estimator, pass_: Pass) -> Subject:
    """A pass as it is handed to a compiler."""
    deployment = estimator.deployment
    return Subject(
        config=deployment.model,
        placement=deployment.placement,
        dtypes=deployment.dtypes,
        batch=deployment.padded(pass_).batch,
        slots=whole_tiles(pass_.room, deployment.dtypes),
        tokens=pass_.tokens,
    )


def status(outcome: Outcome, step: Estimate) -> Record:
    """What a record says of how compiling went."""
    if outcome.status == "ok":
        return Record(status="ok", fits=True)
    if outcome.status == "does_not_fit":
        parts = step.deployment.slice.chip.devices_per_chip
        message = too_large(step, (outcome.beyond or 0) * parts)
        said = f" (XLA: {outcome.message})"
        return Record(status="does_not_fit", fits=False, message=message + said)
    return Record(status=outcome.status, message=outcome.message)


def too_large(step: Estimate, beyond: float) -> str:
    """How much is missing, and what to do about it."""
    need = f"{number(beyond / 1e9)} GB per chip more" if beyond else "more"
    what = "weights, cache and temporaries" if step.fits else "weights, cache and activations"
    advice = "use a smaller batch or a larger slice" if step.fits else remedy(step)
    return f"{what} need {need} than {step.deployment.slice} has; {advice}"
