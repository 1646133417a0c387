"""A search over compiler options, scored by what a compiled step shows; nothing is timed.

Every set is compiled beside the options of the engine. Those that lower the score alone are joined
one after another, the best first, and each stays if the score falls further. A set that is refused,
that does not fit or of which the compiler dies is an outcome, and the search goes on.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from profiles.compiled.compiled_pass import CompiledPass
from profiles.compiled.compiler import DIED
from profiles.compiled.findings import LEAST, CollectiveTimes
from profiles.compiled.grid import summary
from profiles.compiled.option_sets import DEFAULT, OptionSet
from profiles.floor.collective import ALONE, PREFETCH
from profiles.report.files import to_json
from profiles.report.record import Record
from sharding.error_types import FloorlineError

OUTCOMES = "options.jsonl"
Compile = Callable[[OptionSet], CompiledPass]
"""Compiles the step with a set of options."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a set.

    Attributes:
      set: options beside the engine's, by name.
      status: that of the compilation, ``ok`` if there is a program.
      message: the compiler's, where there is none.
      floor_s: seconds of the step's floor.
      cost_s: the score: estimated seconds of all findings and of transfers that are not hidden.
      findings: each finding, as a record.
      unhidden_s: seconds by which transfers beside work take longer than all work of the floor.
      bytes: bytes per chip that a step reads and writes: the floor's, and what copies add; of GPUs
        those of weights and cache that kernels read.
      floor_bytes: those that the floor counts.
      temporary_bytes: bytes per device beside arguments and results.
      alone: collectives that nothing runs beside.
      collectives: all collectives.
      compile_s: seconds that XLA took.
    """

    set: Mapping[str, str]
    status: str
    message: str = ""
    floor_s: float = 0.0
    cost_s: float = 0.0
    findings: list[dict] = dataclasses.field(default_factory=list)
    unhidden_s: float = 0.0
    bytes: float = 0.0
    floor_bytes: float = 0.0
    temporary_bytes: int = 0
    alone: int = 0
    collectives: int = 0
    compile_s: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether there is a program."""
        return self.status == "ok"

    @property
    def options(self) -> OptionSet:
        """The set."""
        return OptionSet(tuple(self.set.items()))

    @property
    def rank(self) -> tuple:
        """Outcomes in order: the least score first, then the fewest bytes and temporaries."""
        return not self.ok, self.cost_s, self.bytes, self.temporary_bytes, len(self.set)

    def better_than(self, other: "Outcome") -> bool:
        """Whether its score is lower by a thousandth of the floor, the least of a finding."""
        return self.ok and other.ok and other.cost_s - self.cost_s > LEAST * self.floor_s

    def kinds(self) -> dict[str, float]:
        """Seconds of findings by kind, the costliest first."""
        found: dict[str, float] = {}
        for finding in self.findings:
            found[finding["kind"]] = found.get(finding["kind"], 0.0) + finding["cost_s"]
        return found | ({"unhidden": self.unhidden_s} if self.unhidden_s else {})

    def as_record(self) -> dict:
        """The form that programs read; of a set without a program only what it is."""
        if not self.ok:
            return {"set": dict(self.set), "status": self.status, "message": self.message}
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Search:
    """A search that came to an end.

    Attributes:
      outcomes: of the engine's own options, of each set, and of the sets that were joined.
    """

    outcomes: tuple[Outcome, ...]

    @property
    def default(self) -> Outcome:
        """The outcome of the engine's own options."""
        return self.outcomes[0]

    @property
    def ordered(self) -> list[Outcome]:
        """The best first; those without a program last."""
        return sorted(self.outcomes, key=lambda outcome: outcome.rank)

    @property
    def best(self) -> Outcome:
        """The best outcome, or that of the engine's own options where none is better."""
        best = self.ordered[0]
        return best if best.better_than(self.default) else self.default


def score(compiled_pass: CompiledPass, options: OptionSet) -> Outcome:
    """What a compiled step shows, in numbers that can be compared.

    Args:
      compiled_pass: the step as it was compiled.
      options: the set that it was compiled with.
    """
    record, compiled = compiled_pass.as_record(), compiled_pass.compiled
    if not compiled:
        message = record.message or ""
        return Outcome(set=options.as_dict(), status=record.status, message=message)
    row, counted = summary(record), record.bytes_per_chip
    floor_bytes = counted["weights_read"] + counted["kv_read"] + counted["kv_written"]
    if "read_over_floor" in row:
        floor_bytes = counted["weights_read"] + counted["kv_read"]
    unhidden = _unhidden(compiled_pass)
    return Outcome(
        set=options.as_dict(),
        status="ok",
        floor_s=record.floor_s,
        cost_s=sum(finding.cost_s for finding in compiled_pass.findings) + unhidden,
        findings=list(record.findings),
        unhidden_s=unhidden,
        bytes=floor_bytes * row.get("read_over_floor", row["bytes_over_floor"]),
        floor_bytes=floor_bytes,
        temporary_bytes=compiled.temporary_bytes,
        alone=row["collectives_alone"],
        collectives=sum(one.count for one in compiled.collectives),
        compile_s=compiled.compile_s,
    )


def _unhidden(compiled_pass: CompiledPass) -> float:
    """Seconds of transfers beside work that go beyond all work there is.

    Findings take a transfer as free where something runs beside it, however little that is. Here a
    fetch hides no more than the floor's time of memory, and all work no more than its longest term.
    """
    listed, floor = compiled_pass.compiled.collectives, compiled_pass.step.floor
    times = CollectiveTimes(compiled_pass.estimator, listed)
    seconds: dict[str, float] = {}
    for one in listed:
        seconds[one.overlap] = seconds.get(one.overlap, 0.0) + one.count * times.seconds(one)
    beside = sum(seconds.values()) - seconds.get(ALONE, 0.0)
    fetching = seconds.get(PREFETCH, 0.0) - floor.memory
    return max(0.0, fetching, beside - max(floor.memory, floor.compute))


# The search ---------------------------------------------------------------------------------------


def search(sets: Iterable[OptionSet], outcome_of: Callable[[OptionSet], Outcome]) -> Search:
    """Tries each set alone, then joins those that help.

    Args:
      sets: what to try; the engine's own options come first without being among them.
      outcome_of: compiles a set and says what came of it.

    Raises:
      FloorlineError: there is no program with the engine's own options.
    """
    tried = {DEFAULT: outcome_of(DEFAULT)}
    default = tried[DEFAULT]
    if not default.ok:
        raise FloorlineError(f"step with the engine's options is {default.status}; "
                             f"{default.message}")  # fmt: skip
    for each in sets:
        if each not in tried:
            tried[each] = outcome_of(each)
    helping = sorted((one for one in tried.values() if one.better_than(default)), key=_by_rank)
    best = helping[0] if helping else default
    for other in helping[1:]:
        joined = best.options.joined(other.options)
        if joined is None:
            continue
        if joined not in tried:
            tried[joined] = outcome_of(joined)
        if tried[joined].better_than(best):
            best = tried[joined]
    return Search(tuple(tried.values()))


def _by_rank(outcome: Outcome) -> tuple:
    return outcome.rank


def case_of(title: str, record: Record, layers: int) -> str:
    """A step and the figures that its costs are made of, in words: what outcomes are kept for.

    Args:
      title: the program and where it runs.
      record: the step, with its floor and expected time.
      layers: of the model, as compiled.
    """
    return (
        f"{title}, {layers} layers, context {record.context}, "
        f"floor {record.floor_s} s, expected {record.expected_s} s"
    )


def kept_outcomes(
    path: Path, case: str, versions: dict[str, str], compile_set: Compile
) -> Callable[[OptionSet], Outcome]:
    """Compiles and scores sets, and keeps each outcome as a line of a file.

    Args:
      path: the file; sets of the same case and versions in it are not compiled again, but for those
        whose compiler died or lacked this machine's memory.
      case: the step, in words.
      versions: versions of JAX and of the compiler.
      compile_set: compiles the step with a set.
    """
    kept = dict(_kept(path, case, versions))

    def outcome_of(options: OptionSet) -> Outcome:
        if options not in kept:
            kept[options] = score(compile_set(options), options)
            line = {"case": case, "versions": versions, "outcome": kept[options].as_record()}
            with open(path, "a", encoding="utf-8") as lines:
                torn = path.stat().st_size and not path.read_bytes().endswith(b"\n")
                lines.write("\n" * bool(torn) + to_json(line) + "\n")
        return kept[options]

    return outcome_of


def _kept(path: Path, case: str, versions: dict[str, str]) -> Iterator[tuple[OptionSet, Outcome]]:
    """Outcomes of former runs; a torn last line is none."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            one = json.loads(line)
        except ValueError:
            continue
        if (one["case"], one["versions"]) != (case, versions):
            continue
        outcome = Outcome(**one["outcome"])
        if outcome.status != "out_of_memory" and not outcome.message.startswith(DIED):
            yield outcome.options, outcome
