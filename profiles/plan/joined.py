"""Ways that take several slices, in words: stages of a pipeline, and experts over several racks."""

from profiles.expected.answers import expert_layer
from profiles.plan.cells import Cell
from profiles.plan.search import Candidate
from profiles.plan.words import gigabytes
from profiles.report.numbers import milliseconds, number, several


def joined_words(point: Candidate) -> list[str]:
    """What a pipeline saves and costs, and what experts over several racks do; empty for others."""
    said = [_pipeline(point)] if point.cell.stages > 1 else []
    if far := travelled(point.cell, point.batch):
        said.append(f"experts  {far.removeprefix('; ')}")
    return said


def _pipeline(point: Candidate) -> str:
    """Memory that stages save, what a token waits for, and whether something hides hops' bytes."""
    cell, found = point.cell, point.estimate()
    devices = cell.slice.chip.devices_per_chip
    weights = found.counts.weights_resident * devices
    alone = int(cell.alone[point.number])
    room = several(alone, "sequence") if alone else "none"
    holds = f"this batch fits, where {cell.slice} alone holds {room} in this layout"
    if point.batch <= alone:
        holds = f"{cell.slice} alone, which is not compared, holds {room} in this layout"
    hops, starts = found.expected.hops, cell.estimator(point.number).starts_s
    sent = hops - cell.stages * cell.hop_s - starts
    begun = f" and {milliseconds(starts)} to start programs on the other stages" if starts else ""
    return (
        f"pipeline of {cell.stages} stages, each on {cell.slice}: weights "
        f"{gigabytes(weights * cell.stages)} -> {gigabytes(weights)} per chip, KV cache "
        f"{gigabytes(found.counts.kv_resident * devices)} as without, for {cell.stages} batches "
        f"are under way; {holds}; {cell.stages} hops of {milliseconds(cell.hop_s)} and "
        f"{milliseconds(sent)} for their bytes{begun} add {milliseconds(hops)} to a token, and "
        f"the bytes are {_hidden(point)}"
    )


def _hidden(point: Candidate) -> str:
    """Whether tokens on their way to experts hide the bytes of hops."""
    ratio = point.cell.estimator(point.number).deployment.inside_over_between
    if ratio is not None:
        within = f"stages send for {number(ratio)} times as long inside"
        return f"{'hidden' if ratio >= 1 else 'not hidden'}: {within}"
    if point.cell.space.model.experts:
        return "hidden or not, which rates of a fabric and a network of the chip would tell"
    return "not hidden: a dense model sends nothing to experts meanwhile"


def travelled(cell: Cell, batch: int) -> str:
    """How much longer a mixture's tokens travel over several racks; empty within one.

    Args:
      cell: the slice, or that of one stage.
      batch: sequences of a step.
    """
    found = expert_layer(cell.space.model, cell.slice, cell.dtypes, batch)
    if found is None or found.domains == 1:
        return ""
    return (
        f"; {found.domains} domains of {found.chips_per_domain}: tokens to experts go through a "
        f"network {number(found.fabric_over_network)} times slower than the fabric, "
        f"{number(found.two_domains_over_one)} times as long over two domains as in one"
    )
