"""What must be found in each program of `planted_gpu`: by programs as stored, and by live ones."""

from pathlib import Path

from profiles.compiled.findings import Finding, findings
from profiles.compiled.gpu_findings import gpu_findings
from profiles.compiled.inspection import differences, expected
from profiles.compiled.step import CompiledStep, read
from tests.profiles.planted import load
from tests.profiles.planted_gpu import CASES, PROGRAMS

ALWAYS = {"not_overlapped", "small_kernels", "attention_kernels"}
"""Kinds that a sound step has on GPUs, too."""
KINDS = {
    "sound": set(),
    "undonated": {"cache_not_aliased"},
    "grouped": {"dequantized"},
    "converted": {"conversion"},
    "two_dimensions": set(),
}
"""Kinds of findings beside those."""


def step_of(name: str, folder: Path = PROGRAMS) -> CompiledStep:
    return read(load(name, folder), CASES[name].program.placement.mesh, "gpu")


def found_in(name: str, folder: Path = PROGRAMS) -> list[Finding]:
    case, step = CASES[name], step_of(name, folder)
    arguments = step, case.program, case.estimator, case.floor_s
    return findings(*arguments) + gpu_findings(*arguments)


def check(name: str, folder: Path = PROGRAMS) -> None:
    """Nothing but what is planted, and collectives are those that the layout asks for."""
    case, step = CASES[name], step_of(name, folder)
    assert {each.kind for each in found_in(name, folder)} - ALWAYS == KINDS[name]
    asked = expected(case.program, "gpu")
    assert asked and not differences(asked, step.collectives, case.program.dtypes.dtype, "gpu")
    assert bool(step.not_aliased) == (name == "undonated")
