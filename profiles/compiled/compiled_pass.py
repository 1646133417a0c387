"""One pass compiled for a slice: chosen, compiled, read, and what was found in it, as a record."""

import dataclasses
from collections.abc import Mapping

from model.cache import round_up_to_tiles
from model.gpu_kernels import kernels_on
from profiles.compiled.compiler import Compilation, compile_step
from profiles.compiled.findings import Finding, findings
from profiles.compiled.gpu_findings import gpu_findings
from profiles.compiled.inspection import PassProgram, as_made, differences, expected
from profiles.compiled.step import CompiledStep, read
from profiles.compiled.toolchains import toolchain_of
from profiles.expected.estimate import Estimate, Estimator
from profiles.expected.estimate_record import Recorder
from profiles.expected.remedies import remedy
from profiles.floor.collective import Collective
from profiles.floor.deployment import Deployment
from profiles.floor.passes import Pass
from profiles.report.numbers import number
from profiles.report.record import Record


@dataclasses.dataclass(frozen=True)
class CompiledPass:
    """A pass compiled for a slice, and what was found in it.

    Attributes:
      estimator: the estimator of its layout on its slice.
      step: its floor and expected time.
      program: the pass, as it is handed to the compiler.
      record: what programs read, with status and message.
      compilation: what the compiler made of it; None if the floor's bytes alone do not fit.
      compiled: the program, if there is one.
      expected_collectives: the collectives that the layout asks for.
      findings: what was found in the program, the costliest first.
    """

    estimator: Estimator
    step: Estimate
    program: PassProgram
    record: Record
    compilation: Compilation | None = None
    compiled: CompiledStep | None = None
    expected_collectives: tuple[Collective, ...] = ()
    findings: tuple[Finding, ...] = ()

    @property
    def differing(self) -> list[str]:
        """How the program's collectives depart from those that the layout asks for."""
        arithmetic, platform = self.program.dtypes.dtype, self.platform
        return differences(
            self.expected_collectives, self.compiled.collectives, arithmetic, platform
        )

    @property
    def asked_collectives(self) -> list[Collective]:
        """Those that the layout asks for, with what the compiler makes in place of some."""
        found, arithmetic = self.compiled.collectives, self.program.dtypes.dtype
        return as_made(self.expected_collectives, found, arithmetic, self.platform)

    @property
    def platform(self) -> str:
        """JAX's name of the devices that it is compiled for."""
        return toolchain_of(self.estimator.deployment.slice).platform

    def as_record(self) -> Record:
        """The record with what was compiled and found in it."""
        if not self.compiled:
            return self.record
        return self.record | Record(
            compiled=self.compiled.as_record(),
            collectives_as_expected=not self.differing,
            findings=[each.as_record() for each in self.findings],
        )


def compile_pass(
    estimator: Estimator, pass_: Pass, options: Mapping[str, str] | None = None
) -> CompiledPass:
    """Compiles a pass of a deployment, if its weights and cache fit.

    Args:
      estimator: the estimator of the deployment.
      pass_: the pass.
      options: options of the compiler beside the engine's own, or in place of some of them.
    """
    step, program = estimate_as_run(estimator, pass_), program_of(estimator, pass_)
    platform = toolchain_of(estimator.deployment.slice).platform
    record = Recorder(estimator).record(step)
    kernels = kernels_on(platform, program.config, program.dtypes, program.placement)
    record |= Record(gpu_kernels=kernels)
    if not step.fits:
        missing_bytes = step.resident - estimator.deployment.slice.chip.recommended.capacity
        record |= Record(message=too_large(step, missing_bytes))
        return CompiledPass(estimator, step, program, record)
    compilation = compile_step(program, estimator.deployment.slice, options=options)
    record |= status(compilation, step)
    if compilation.status != "ok":
        return CompiledPass(estimator, step, program, record, compilation)
    compiled = read(compilation, program.placement.mesh, platform)
    found = findings(compiled, program, estimator, step.floor.seconds)
    if platform == "gpu":
        found += gpu_findings(compiled, program, estimator, step.floor.seconds)
    return CompiledPass(
        estimator,
        step,
        program,
        record,
        compilation,
        compiled,
        expected_collectives=tuple(expected(program, platform)),
        findings=tuple(sorted(found, key=lambda each: -each.cost_s)),
    )


def estimate_as_run(estimator: Estimator, pass_: Pass) -> Estimate:
    """The estimate of a pass, the cache of a decode step as large as an engine's."""
    if pass_.over_prompts:
        return estimator.estimate(pass_)
    slots = _slots(estimator.deployment, pass_)
    return estimator.estimate(dataclasses.replace(pass_, slots=slots))


def program_of(estimator: Estimator, pass_: Pass) -> PassProgram:
    """The program of a pass, as it is handed to a compiler."""
    deployment = estimator.deployment
    slots = _slots(deployment, pass_)
    return PassProgram(
        config=deployment.model,
        placement=deployment.placement,
        dtypes=deployment.dtypes,
        pass_=dataclasses.replace(deployment.padded(pass_), slots=slots),
    )


def _slots(deployment: Deployment, pass_: Pass) -> int:
    """Slots of the cache that an engine makes for a pass: on TPUs whole tiles."""
    on_tpu = toolchain_of(deployment.slice).platform == "tpu"
    slots = pass_.cache_slots
    return round_up_to_tiles(slots, deployment.dtypes) if on_tpu else slots


def status(compilation: Compilation, step: Estimate) -> Record:
    """What a record says of how compiling went."""
    if compilation.status == "ok":
        return Record(status="ok", fits=True)
    if compilation.status == "does_not_fit":
        parts = step.deployment.slice.chip.devices_per_chip
        message = too_large(step, (compilation.missing_bytes or 0) * parts)
        said = f" (XLA: {compilation.message})"
        return Record(status="does_not_fit", fits=False, message=message + said)
    return Record(status=compilation.status, message=compilation.message)


def too_large(step: Estimate, missing_bytes: float) -> str:
    """How much is missing, and what to do about it."""
    need = f"{number(missing_bytes / 1e9)} GB per chip more" if missing_bytes else "more"
    what = "weights, cache and temporaries" if step.fits else "weights, cache and activations"
    advice = "use a smaller batch or a larger slice" if step.fits else remedy(step)
    return f"{what} need {need} than {step.deployment.slice} has; {advice}"
