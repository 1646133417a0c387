"""What is wrong with a step compiled for GPUs, in words: small kernels, and weights in few bits.

The times behind these costs are of one H200, `profiles/results/llama3-8b-h200/notes.md`: no
compiler tells them.
"""

from collections.abc import Iterator

from profiles.chips.gpu_targets import target_figures
from profiles.compiled.findings import LEAST, Finding
from profiles.compiled.inspection import PassProgram
from profiles.compiled.step import CompiledStep
from profiles.expected.estimate import Estimator
from profiles.hlo.kernels import COLLECTIVE, FUSION, Kernel
from profiles.report.numbers import byte_size, exact, number

SMALL_S = 2.5e-6
"""Seconds of a kernel of few bytes in a graph: norms, sums and rotations 15 us for six kernels of a
layer, writing the cache 4.5 us for two."""
CONVERTED_PER_S = 2e12
"""Numbers that an H200 converts from few bits in a second while it multiplies them: 117 million in
58 us for 64 tokens, and for each token of a sum of products in 56 us."""
CONVERTED_ON = "h200"
HIDDEN = 8
"""Tokens up to which a matmul converts faster than it reads."""
_ATTENTION = "layer/attention"


def gpu_findings(
    step: CompiledStep, program: PassProgram, estimator: Estimator, floor_s: float
) -> list[Finding]:
    """Everything that is found of GPUs alone, beside `findings`.

    Kinds are ``small_kernels``, ``attention_kernels`` and ``conversion``. Arguments are those of
    `findings`.
    """
    bandwidth, layers = estimator.peaks.bandwidth, program.config.layers
    work = [each for each in step.kernels if each.sort != COLLECTIVE]
    decodes = not program.pass_.over_prompts
    attention = [each for each in work if decodes and each.place == _ATTENTION]
    found = [
        *_attention(attention, bandwidth, layers),
        *_small([each for each in work if each not in attention], bandwidth, layers),
        *_conversion(work, program, estimator),
    ]
    return [each for each in found if each.cost_s >= LEAST * floor_s]


def _attention(kernels: list[Kernel], bandwidth: float, layers: int) -> Iterator[Finding]:
    """Attention in more than one kernel: parts are joined afterwards, and the mean laid out."""
    count = sum(each.count for each in kernels)
    if count > layers:
        yield Finding(
            "attention_kernels",
            f"attention takes {exact(count / layers)} kernels in each layer, of which one reads "
            "the cache: others join the parts of programs that divide its slots between them, or "
            "lay the mean out for the product that follows",
            sum(each.count * _wait(each, bandwidth) for each in kernels),
        )


def _small(kernels: list[Kernel], bandwidth: float, layers: int) -> Iterator[Finding]:
    """Kernels that take longer to start and to end than to move their bytes."""
    small = [each for each in kernels if _wait(each, bandwidth)]
    counts: dict[str, int] = {}
    for each in small:
        counts[each.place] = counts.get(each.place, 0) + each.count
    places = sorted((each for each in counts if each), key=lambda each: -counts[each])[:4]
    inside = sum(count for place, count in counts.items() if place.startswith("layer"))
    if small:
        yield Finding(
            "small_kernels",
            f"{sum(counts.values()):,} kernels, {exact(round(inside / layers, 1))} in each layer, "
            f"move less than {byte_size(SMALL_S * bandwidth)} each, and take some "
            f"{exact(SMALL_S * 1e6)} us by themselves on an H200, graphs of kernels included (in "
            + ", ".join(f"{place} {counts[place]:,}" for place in places)
            + ")",
            sum(each.count * _wait(each, bandwidth) for each in small),
        )


def _wait(kernel: Kernel, bandwidth: float) -> float:
    """Seconds of a kernel beside those that its bytes take."""
    return max(0.0, SMALL_S - (kernel.bytes_read + kernel.bytes_written) / bandwidth)


def _conversion(
    kernels: list[Kernel], program: PassProgram, estimator: Estimator
) -> Iterator[Finding]:
    """Products that convert weights more slowly than they could read them."""
    rate = CONVERTED_PER_S * _speed(estimator.chip.name) / _speed(CONVERTED_ON)
    tokens = program.pass_.batch * program.pass_.tokens
    cost, numbers, places = 0.0, 0, {}
    for each in kernels:
        summed = each.sort == FUSION
        if not each.converted or not (summed or tokens > HIDDEN):
            continue
        seconds = each.converted * (tokens if summed else 1) / rate
        beyond = seconds - each.bytes_read / estimator.peaks.bandwidth
        if beyond > 0:
            cost += each.count * beyond
            numbers += each.count * each.converted
            places |= {each.place: "a sum of products" if summed else "a matmul"}
    if numbers:
        yield Finding(
            "conversion",
            f"{number(numbers / 1e9)} billion weights a step are converted to more bits in "
            f"{' and '.join(sorted(set(places.values())))} at {number(rate / 1e12)} trillion a "
            f"second, the rate of an H200 by multiprocessors and clock, which is slower than they "
            f"can be read (in {', '.join(places)})",
            cost,
        )


def _speed(name: str) -> float:
    """Multiprocessors times clock, by which conversions go."""
    figures = target_figures(name)
    return figures["core_count"] * figures["clock_rate_ghz"]
