"""Measures the rates and fixed costs of devices.

All kernels are timed in turns, round after round, so that a slow moment of the machine falls on all
of them. Of the samples, medians are fitted by lines (`profiles.measured.fits`).
"""

import itertools
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax

from model.catalog import find_model
from model.dtypes import Dtypes
from profiles.measured.compiling import compile_together
from profiles.measured.fits import fit_line
from profiles.measured.kernels import Calls, Kernel, collective_kernels, read_kernels
from profiles.measured.model_kernels import ModelPass, model_passes
from profiles.report.document import summarise
from profiles.report.progress import progress
from sharding import processes

MIN_ROUNDS, MAX_ROUNDS = 5, 1000
SMALLEST_READ, LARGEST_READ = 1 << 18, 1 << 30  # bytes: of a CPU's devices together ...
LARGEST_READ_PER_DEVICE = 1 << 30  # ... and of each other device
MODEL, MODEL_OF_CHIPS = "smollm2-135m", "llama3-8b"  # whose sizes products have likewise
WEIGHTS, WEIGHTS_PER_DEVICE = 1 << 26, 1 << 30  # bytes of the weights that are multiplied
MOST_ROWS = 1024
CONTEXT = 128  # tokens in the cache of each sequence
SMALLEST_PAYLOAD = 1 << 12  # bytes per device
LARGEST_PAYLOAD, LARGEST_PAYLOAD_PER_DEVICE = 1 << 25, 1 << 27  # as of reads
ARGUMENTS = (1, 256)  # a model of thirty layers is some two hundred arrays
BEYOND_CACHE = 4  # times what all caches hold: an array of so much is read from memory


class Kernels(NamedTuple):
    """All kernels of a run, by the parts of the document."""

    memory: list[Kernel]
    matmul: list[ModelPass]
    collectives: list[Kernel]
    dispatch: list[Calls]
    attention: list[ModelPass]  # steps of `matmul` once more, with nothing in the cache

    @property
    def all(self) -> list[Kernel | ModelPass | Calls]:
        """All of them, in the order of a round."""
        return [one for part in self for one in part]


def kernels(
    mesh: jax.sharding.Mesh,
    dtypes: Sequence[Dtypes],
    rows: Sequence[int] = (),
) -> Kernels:
    """The kernels to measure on a mesh, with their operands in its memory.

    Args:
      mesh: the devices.
      dtypes: those of matmuls.
      rows: those of matmuls; 1, 4, 64 and `MOST_ROWS` if there are none.
    """
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    largest = LARGEST_READ if on_cpu else LARGEST_READ_PER_DEVICE * mesh.size
    smallest = SMALLEST_READ if on_cpu else SMALLEST_READ * mesh.size
    payload = LARGEST_PAYLOAD // mesh.size if on_cpu else LARGEST_PAYLOAD_PER_DEVICE
    rows = sorted({*(rows or powers(1, MOST_ROWS, 16)), MOST_ROWS})
    model = find_model(MODEL if on_cpu else MODEL_OF_CHIPS)
    weights = WEIGHTS if on_cpu else WEIGHTS_PER_DEVICE * mesh.size
    passes = model_passes(mesh, dtypes, rows, model, weights, CONTEXT)
    return Kernels(
        memory=list(read_kernels(mesh, powers(smallest, largest, 4))),
        matmul=passes.filled,
        collectives=list(collective_kernels(mesh, powers(SMALLEST_PAYLOAD, payload, 8))),
        dispatch=[Calls(mesh, arguments) for arguments in ARGUMENTS],
        attention=passes.empty,
    )


def powers(first: int, last: int, factor: int) -> list[int]:
    """Both sizes and those between them, each so many times smaller than the next."""
    sizes = itertools.takewhile(
        lambda size: size > first, (last // factor**power for power in itertools.count())
    )
    return [first, *reversed(list(sizes))]


def measure(found: Kernels, seconds: float) -> None:
    """Takes samples of all kernels in turns, for so many seconds but five rounds at least."""
    each = found.all
    compile_together(found.matmul)
    for one in progress(each, lambda one: f"preparing {one}"):
        one.prepare()
    stop = time.perf_counter() + seconds
    rounds = range(1, MAX_ROUNDS + 1)
    for number in progress(rounds, lambda number: f"measuring, round {number}"):
        for one in each:
            one.sample()
        # All processes must run the same kernels, so process 0's clock decides.
        if number >= MIN_ROUNDS and processes.from_first_process(
            lambda: time.perf_counter() > stop
        ):
            break


def results(found: Kernels, on_chip: float) -> dict[str, dict]:
    """Samples and fits of each part, as the document has them.

    Rates of memory and matmuls are those of all devices together, payloads those of one device.

    Args:
      found: measured kernels.
      on_chip: bytes that the caches of all devices hold: smaller arrays are not fitted.
    """
    largest = max(one.amount for one in found.memory)
    fitted = min(BEYOND_CACHE * on_chip, largest)  # the largest array alone where caches hold all
    memory = [one for one in found.memory if one.amount >= fitted]
    return {
        "memory": {
            "samples": [one.as_record("bytes_per_s") for one in found.memory],
            "fits": fits(memory, ("kernel",), "bytes_per_s"),
        },
        "matmul": {
            "samples": [one.as_record("flops_per_s") for one in found.matmul],
            "fits": fits(found.matmul, ("dtype", "width"), "flops_per_s"),
        },
        "collectives": {
            "samples": [one.as_record("bytes_per_s") for one in found.collectives],
            "fits": fits(found.collectives, ("kind", "axes", "devices"), "bytes_per_s"),
        },
        "dispatch": {
            "samples": [one.as_record() for one in found.dispatch],
            "fits": [call_fit(found.dispatch)],
        },
        "attention": {
            "samples": [one.as_record("flops_per_s") for one in found.attention],
            "fits": attention_fits(found),
        },
    }


def fits(found: Sequence[Kernel], keys: Sequence[str], rate: str) -> list[dict[str, object]]:
    """A line of seconds against the amount for kernels that are alike in these fields.

    Args:
      found: measured kernels.
      keys: names of fields.
      rate: what the amount per second is called.
    """
    alike: dict[str, list[Kernel]] = {}
    for one in found:
        alike.setdefault(str([one.fields[key] for key in keys]), []).append(one)
    records = []
    for ones in alike.values():
        line = fit_line([one.amount for one in ones], [one.seconds for one in ones])
        fields = {key: ones[0].fields[key] for key in keys}
        records.append({**fields, "fixed_s": line.fixed_s, rate: line.rate})
    return records


def call_fit(found: Sequence[Calls]) -> dict[str, float]:
    """The time until a call returns, as a fixed cost and one of each argument."""
    times = [summarise(one.returned)["median"] for one in found]
    line = fit_line([one.arguments for one in found], times)
    return {"devices": found[0].mesh.size, "fixed_s": line.fixed_s, "argument_s": 1 / line.rate}


def attention_fits(found: Kernels) -> list[dict[str, object]]:
    """What a step takes more for what is cached, as FLOP/s; 0 where no time was seen."""
    records = []
    for empty in found.attention:
        keys = ("dtype", "rows", "width")
        (filled,) = (
            one for one in found.matmul if all(one.fields[k] == empty.fields[k] for k in keys)
        )
        seconds = max(filled.seconds - empty.seconds, 0.0)
        rate = (filled.attention - empty.attention) / seconds if seconds else 0.0
        records.append({**filled.fields, "flops_per_s": rate})
    return records
