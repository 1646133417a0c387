"""Services: floors against closed forms of published sizes, and a queue run step by step."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest

from model.catalog import find_model
from model.dtypes import BFLOAT16, Dtypes
from profiles.chips.calibration import calibration_of
from profiles.chips.slices import parse_slice
from profiles.expected.candidates import LayoutNames, candidates
from profiles.expected.estimate import Estimator
from profiles.expected.service_text import shortage
from profiles.expected.serving import (
    ServiceEstimate,
    estimate_service,
    serve,
    smallest_slice_for,
)
from profiles.floor.deployment import Deployment
from profiles.floor.passes import Counts, Pass
from profiles.floor.serving import Service
from profiles.floor.sized_models import SizedModel, sized_models
from sharding.catalog import LAYOUTS, find_layout
from sharding.error_types import UsageError
from sharding.quantization import QUANTIZATIONS
from tests.profiles.sized import WINDOWED

FP8 = Dtypes(jnp.bfloat16, QUANTIZATIONS["fp8"], QUANTIZATIONS["fp8"])
H100 = 3.35232e12, 989.4e12
"""Bytes and bfloat16 FLOPs per second of an H100's data sheet."""


def deployment(model, topology="h100:1", dtypes=BFLOAT16, **changes) -> Deployment:
    slice = parse_slice(topology)
    found = model if isinstance(model, SizedModel) else sized_models().get(model)
    if not found:
        found = find_model(model)
        changes.setdefault("layout", find_layout("weight_stationary_1d"))
        changes.setdefault("mesh", {"x": 1, "y": 1, "z": slice.devices})
    calibration = calibration_of(slice.chip.name)
    return Deployment(model=found, slice=slice, dtypes=dtypes, calibration=calibration, **changes)


def estimate(*named, service: Service, **changes) -> ServiceEstimate:
    return estimate_service(Estimator(deployment(*named, **changes)), service)


def test_the_floor_of_a_dense_model_is_that_of_its_published_sizes():
    C, P, G = 64, 1024, 512
    found = estimate("llama3.1-8b", "h100:1", FP8, service=Service(C, P, G))
    D, F, V, L, H, K, h = 4096, 14336, 128256, 32, 32, 8, 128
    matrices = L * (2 * D * H * h + 2 * D * K * h + 3 * D * F)
    rows = C * (1 + P / G)  # tokens of answers and of prompts in a step
    scales = 2 * L * (H * h + 2 * K * h + D + 2 * F + D)  # one of two bytes for each output
    weights = matrices + scales + 2 * D * V + 2 * rows * D + 4 * (2 * L + 1) * D
    cached = 2 * L * K * (h + 4)  # bytes of a token, each head with a scale of four
    filled = P + (G + 1) / 2
    cache = C * filled * cached + C * P / G * cached
    products = 2 * rows * matrices + 2 * (C + C / G) * D * V
    attention = 4 * L * H * h * (C * filled + C / G * P * (P + 1) / 2)
    assert found.floor.weights == pytest.approx(weights / H100[0], rel=1e-3)
    assert found.floor.kv_cache == pytest.approx(cache / H100[0], rel=1e-9)
    assert found.floor.compute == pytest.approx((products + attention) / H100[1], rel=1e-9)
    assert found.floor.seconds == pytest.approx((weights + cache) / H100[0], rel=1e-3)
    assert found.floor_s_per_token == pytest.approx(found.floor.seconds / C)


@pytest.mark.parametrize("experts", ["coverage", "least"])
def test_a_mixture_reads_the_experts_that_tokens_of_answers_and_prompts_choose(experts):
    C, P, G = 4, 128, 1024
    found = estimate("qwen3-30b-a3b", "h200:1", service=Service(C, P, G), experts=experts)
    D, F, V, L, H, K, h, E, k = 2048, 768, 151936, 48, 32, 4, 128, 128, 8
    rows = C * (1 + P / G)
    read = {"coverage": E * (1 - (1 - k / E) ** rows), "least": k}[experts]
    dense, expert = 2 * D * H * h + 2 * D * K * h + D * E, 3 * D * F
    weights = 2 * (L * (dense + read * expert) + D * V)
    filled, cached = P + (G + 1) / 2, 2 * 2 * L * K * h
    cache = (C * filled + C * P / G) * cached
    products = 2 * rows * L * (dense + k * expert) + 2 * (C + C / G) * D * V
    attention = 4 * L * H * h * (C * filled + C / G * P * (P + 1) / 2)
    assert found.floor.weights == pytest.approx(weights / 4.8e12, rel=2e-3)
    assert found.floor.kv_cache == pytest.approx(cache / 4.8e12, rel=1e-9)
    assert found.floor.compute == pytest.approx((products + attention) / 989e12, rel=2e-3)


def filled_within(window: float, P: int, G: int) -> float:
    """The mean over an answer's tokens of what a window leaves of each length, one by one."""
    return sum(min(P + token, window) for token in range(1, G + 1)) / G


def pairs_within(window: float, P: int) -> float:
    return sum(min(token, window) for token in range(1, P + 1))


@pytest.mark.parametrize("P, G", [(100, 60), (900, 400), (2000, 3000)])
def test_windows_leave_of_each_length_what_they_see(P, G):
    C = 32
    found = estimate("gemma3-4b", service=Service(C, P, G))
    D, F, V, H, K, h = 2560, 10240, 262208, 8, 4, 256
    near, far, window = 29, 5, 1024
    matrices = 34 * (2 * D * H * h + 2 * D * K * h + 3 * D * F)
    filled = near * filled_within(window, P, G) + far * filled_within(math.inf, P, G)
    pairs = near * pairs_within(window, P) + far * pairs_within(math.inf, P)
    written = near * min(P, window) + far * P
    cache = 2 * 2 * K * h * (C * filled + C / G * written)
    flops = 2 * C * (1 + P / G) * matrices + 2 * (C + C / G) * D * V
    flops += 4 * H * h * (C * filled + C / G * pairs)
    assert found.floor.weights == pytest.approx(2 * (matrices + D * V) / H100[0], rel=1e-3)
    assert found.floor.kv_cache == pytest.approx(cache / H100[0], rel=1e-9)
    assert found.floor.compute == pytest.approx(flops / H100[1], rel=1e-9)


def test_models_by_their_sizes_have_windows_and_latents():
    C, P, G = 64, 1024, 1024
    found = estimate(WINDOWED, "h100:4", FP8, service=Service(C, P, G), experts="least")
    layer = 2 * 8 * 64  # keys and values of a token
    filled = 18 * filled_within(128, P, G) + 18 * filled_within(math.inf, P, G)
    cache = layer * (1 + 4 / 128) * (C * filled + C / G * 18 * (128 + P))
    assert found.floor.kv_cache == pytest.approx(cache / 4 / H100[0], rel=1e-9)
    assert found.steps.seconds < found.expected_beside_s < found.expected_between_s

    found = estimate("deepseek-v3-even", "h200:8", FP8, service=Service(C, P, G), experts="least")
    latent = 61 * (512 + 64) * (1 + 4 / 128)
    assert found.counts.kv_read * 8 == pytest.approx(C * (P + (G - 1) / 2) * latent)
    absorbed, direct = 2 * 128 * (2 * 512 + 64), 2 * 128 * (192 + 128)
    flops = 61 * (absorbed * C * (P + (G + 1) / 2) + direct * C / G * P * (P + 1) / 2)
    flops += 2 * (2 * C) * 36_624_596_992 - 2 * (C - C / G) * 926_679_040
    assert found.counts.flops * 8 == pytest.approx(flops, rel=1e-6)


def test_chips_of_a_slice_share_the_work_and_send_what_both_kinds_of_tokens_need():
    service = Service(64, 1024, 1024)
    one, four = (estimate("llama3.1-8b", f"h100:{n}", service=service) for n in (1, 4))
    assert four.floor.compute == pytest.approx(one.floor.compute / 4)
    assert four.floor.kv_cache == pytest.approx(one.floor.kv_cache / 4)
    alone = Estimator(four.deployment)
    step, prompt = alone.decode(64, 1024), alone.prefill(1, 1024)
    sent = step.floor.communication + 64 / 1024 * prompt.floor.communication
    assert four.floor.communication == pytest.approx(sent, rel=1e-3)
    latency = alone.communication(64).latency
    assert 0 < latency < four.beside.communication - four.steps.communication + latency
    assert four.beside.overhead == four.steps.overhead  # paid once
    between = four.steps.seconds + 64 / 1024 * prompt.expected.seconds
    assert four.expected_between_s == pytest.approx(between)


def test_every_layout_has_the_floor_of_its_own_bytes():
    service = Service(64, 512, 256)
    one = dataclasses.replace(deployment("llama3.1-8b", "v5e:2x4"), layout=None, mesh=None)
    found = candidates(one, LayoutNames().layouts(one.model))
    assert len({each.placement.layout.name for each in found}) == len(LAYOUTS)
    for estimator in found:
        service_, step = estimate_service(estimator, service), estimator.decode(64, 640)
        terms = service_.floor.terms()
        assert all(terms[name] >= step.floor.terms()[name] * (1 - 1e-9) for name in terms)
        assert service_.floor.seconds < min(service_.expected_beside_s, service_.expected_between_s)


def test_as_many_as_fit_fill_a_chip_with_what_their_caches_hold():
    found = estimate("llama3.1-8b", service=Service(None, 1000, 1000))
    capacity = found.deployment.slice.chip.recommended.capacity
    sequence = 2 * 2 * 32 * 8 * 128
    each = sequence * 1500.5 + found.counts.activations / found.concurrency
    assert capacity - each < found.resident <= capacity
    assert found.fits and found.concurrency == found.most
    assert found.reserved - found.resident == pytest.approx(
        sequence * 499.5 * found.concurrency, rel=1e-9
    )
    room = (capacity - found.counts.weights_resident) / (each + 499.5 * sequence)
    assert found.most_reserved == int(room)
    assert not estimate("llama3.1-8b", service=Service(found.most + 1, 1000, 1000)).fits
    assert not estimate("llama3.1-70b", service=Service(None, 1000, 1000)).fits


def test_the_most_that_fits_is_over_all_layouts_and_so_is_the_smallest_slice():
    one = dataclasses.replace(deployment("llama3-8b", "v5e:4x4"), layout=None, mesh=None)
    layouts = LayoutNames().layouts(one.model)
    offered = candidates(one, layouts)
    asked = [Service(count, 1024, 1024) for count in (None, 10**7)]
    for served in serve(offered, asked):
        rooms = [estimate_service(each, asked[0], links=False).most for each in offered]
        assert served.most == max(rooms) == rooms[offered.index(served.roomiest)]
    smallest = smallest_slice_for(one, Service(served.most, 1024, 1024), layouts)
    assert smallest == one.slice
    assert smallest_slice_for(one, Service(served.most + 1, 1024, 1024), layouts).chips == 32
    assert smallest_slice_for(one, asked[1], layouts) is None


def test_a_service_that_another_layout_holds_is_told_which():
    one = dataclasses.replace(deployment("llama3-8b", "v5e:4x4"), layout=None, mesh=None)
    layouts, service = LayoutNames().layouts(one.model), Service(1250, 1024, 1024)
    offered = candidates(one, layouts)
    (served,) = serve(offered, [service])
    assert served.estimate.fits
    other = next(each for each in offered if not estimate_service(each, service).fits)
    unfit = dataclasses.replace(served, chosen=other, estimate=estimate_service(other, service))
    assert shortage(unfit, layouts).endswith(
        "where 1,280 fit on v5e:4x4, bfloat16; the rows of a slice have one layout: ask for this "
        "one alone, which fits in weight_stationary_1d, attention by batch, on 1x1x16"
    )


def test_lengths_that_vary_have_the_caches_of_long_answers_for_longer():
    alike, varying = (
        estimate("llama3.1-8b", service=Service(16, 1000, 1000, spread)) for spread in (0, 0.8)
    )
    mean_square = 1 + 0.8**2 / 3  # of an evenly spread length over that of its mean
    read = alike.counts.kv_read / (1000 + 999 / 2) * (1000 + (1000 * mean_square - 1) / 2)
    assert varying.counts.kv_read == pytest.approx(read, rel=1e-3)
    assert varying.floor.weights == alike.floor.weights


@pytest.mark.parametrize(
    "service, said",
    [
        ((64, 1024, 0), "generated_tokens of a service is 0; use 1 or more"),
        ((0, 1024, 1), "concurrency of a service is 0; use 1 or more"),
        ((1, 0, 1), "prompt_length of a service is 0; use 1 or more"),
        ((1, 1, 1, 1.0), "spread of a service's lengths is 1.0; use 0 or more, and less than 1"),
    ],
)
def test_services_that_there_are_none_of_are_refused(service, said):
    with pytest.raises(UsageError, match=said):
        Service(*service)


# A queue, step by step ----------------------------------------------------------------------------

FIELDS = [field.name for field in dataclasses.fields(Counts)]


class Queue:
    """Slots that are always full: where an answer ends, the next prompt begins.

    Args:
      estimator: the model on its slice.
      C: slots.
      P: tokens of each prompt.
      G: tokens of each answer.
    """

    def __init__(self, estimator: Estimator, C: int, P: int, G: int):
        self.estimator, self.P, self.G = estimator, P, G
        self.left = np.random.default_rng(0).permutation(np.linspace(1, G, C).astype(int))
        deployment = estimator.deployment
        passes = (deployment.count(Pass(1, context)) for context in range(P, P + G))
        self.one = np.array([[getattr(each, field) for field in FIELDS] for each in passes])

    def step(self, answering: np.ndarray, joined: Pass | None = None) -> float:
        """Seconds of a step of these slots at their own contexts, beside a chunk of a prompt.

        Put together of passes' own counts and collectives: the weights are read once, by all rows,
        and what does not depend on their number is paid once.
        """
        estimator, count = self.estimator, len(answering)
        mean = self.one[self.G - self.left[answering]].mean(axis=0)
        whole = vars(estimator.deployment.count(Pass(count, self.P)))
        scaled = dict(zip(FIELDS, (mean * count).tolist(), strict=True))
        kept = "weights_resident", "weights_read", "weights_gathered"
        counts = Counts(**scaled | {field: whole[field] for field in kept})
        links = estimator.communication(count)
        if joined:
            other = estimator.deployment.count(joined)
            rows = count + joined.tokens
            counts = dataclasses.replace(
                counts,
                weights_read=estimator.deployment.counter.weights_read(rows),
                kv_written=counts.kv_written + other.kv_written,
                flops=counts.flops + other.flops,
                rows=counts.rows + other.rows,
            )
            sent = estimator.communication(1, joined.tokens, joined.continues).transfer
            links = links._replace(transfer=links.transfer + sent)
        self.left[answering] -= 1
        return estimator.expect(counts, links).seconds

    def between(self, steps: int) -> float:
        """Seconds per token, if steps wait while prompts run alone as soon as slots are free."""
        seconds, slots = 0.0, np.arange(len(self.left))
        for _ in range(steps):
            free = self.left == 0
            if free.any():
                seconds += self.estimator.prefill(int(free.sum()), self.P).expected.seconds
            self.left[free] = self.G
            seconds += self.step(slots)
        return seconds / steps / len(slots)

    def beside(self, steps: int) -> float:
        """Seconds per token, if each step has a chunk of the prompt beside it that waits longest.

        Chunks are as large as is needed to keep up.
        """
        chunk = len(self.left) * self.P // self.G
        waiting: dict[int, int] = {}  # slot -> tokens of its prompt that have run
        seconds = tokens = 0
        for _ in range(steps):
            for slot in np.flatnonzero(self.left == 0).tolist():
                waiting.setdefault(slot, 0)
            answering, joined = np.flatnonzero(self.left), None
            if waiting:
                slot, done = next(iter(waiting.items()))
                joined = Pass(1, done, min(chunk, self.P - done))
            seconds += self.step(answering, joined)
            tokens += len(answering)
            if joined:
                waiting[slot] += joined.tokens
                if waiting[slot] == self.P:
                    del waiting[slot]
                    self.left[slot] = self.G
        return seconds / tokens


@pytest.mark.parametrize(
    "model, topology",
    [("llama3-70b", "v5e:4x4"), ("deepseek-v3-even", "h200:8"),
     *(pytest.param(model, "h100:1", marks=pytest.mark.slow)
       for model in ("llama3.1-8b", "gemma3-4b", "qwen3-30b-a3b"))],
)  # fmt: skip
def test_a_queue_run_step_by_step_takes_what_the_equation_says(model, topology):
    C, P, G = 64, 1024, 1024
    estimator = Estimator(deployment(model, topology, FP8))
    found = estimate_service(estimator, Service(C, P, G))
    between, beside = (Queue(estimator, C, P, G) for _ in range(2))
    assert found.between_s_per_token == pytest.approx(between.between(2 * G), rel=0.03)
    assert found.beside_s_per_token == pytest.approx(beside.beside(2 * G), rel=0.03)
