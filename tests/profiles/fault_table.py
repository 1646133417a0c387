"""What must be found in each program of `planted`, by the programs as stored and by live ones."""

from pathlib import Path

from profiles.compiled.findings import Finding, findings
from profiles.compiled.step import read
from profiles.floor.collective import ALONE
from sharding.mesh import parse_mesh
from tests.profiles.planted import BATCH, CASES, LAYERS, PROGRAMS, SLOTS, WIDTH, load

BFLOAT16 = 2
DOWN = CASES["sound"].config.d_model * CASES["sound"].config.d_ff // 4  # elements per device
CACHE = BATCH * SLOTS * 128 * BFLOAT16  # bytes per device of keys, or of values
KINDS = {
    "sound": set(),
    "undonated": {"cache_not_aliased"},
    "replicated": {"replicated"},
    "gathered": {"weight_gather"},
    "dequantized": {"dequantized"},
    "narrow_parts": {"collective"},
    "overlapped": set(),
    "prompts": {"temporary"},
}
"""Kinds of findings beside those that a sound step has too."""


def found_in(name: str, folder: Path = PROGRAMS) -> list[Finding]:
    case = CASES[name]
    step = read(load(name, folder), case.program.placement.mesh)
    return findings(step, case.program, case.estimator, case.floor_s)


def check(name: str, folder: Path = PROGRAMS) -> None:
    """The planted fault is the costliest finding but for collectives that run alone."""
    found = [each for each in found_in(name, folder) if each.kind != "not_overlapped"]
    assert {each.kind for each in found} - {"copy"} == KINDS[name]
    if KINDS[name]:
        assert found[0].kind in KINDS[name]


def check_stacked(folder: Path = PROGRAMS) -> None:
    """Each round of the scan writes its weights anew, turned, and the loop's rounds count."""
    step = read(load("stacked", folder), parse_mesh("1x1x4"))
    moves = [move for move in step.moves if move.origin == "layers/up"]
    assert sum(move.count for move in moves) >= LAYERS
    assert sum(move.total_bytes for move in moves) >= 2 * LAYERS * WIDTH * WIDTH * BFLOAT16
    (sum_over_z,) = step.collectives
    assert (sum_over_z.kind, sum_over_z.overlap) == ("all-reduce", ALONE)
