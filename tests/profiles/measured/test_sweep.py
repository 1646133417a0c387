"""Measuring: held contexts, interleaved samples, honest peaks, refusals before any work."""

import dataclasses
import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from decode.load import ModelSource
from model.catalog import find_model
from model.dtypes import BFLOAT16, FLOAT32, Dtypes
from profiles.floor.passes import Pass
from profiles.measured import bandwidth, peak_rates
from profiles.measured import sweep as sweeping
from profiles.measured.bandwidth import READS, PeakMeter
from profiles.measured.step_record import step_record
from profiles.measured.sweep import Interrupted, Sweep, run
from profiles.measured.timing import LONG_S, MIN_BURST, RepeatedStep
from profiles.measured.trace import TraceError
from profiles.report.lines import fit_lines, fits, lines
from profiles.report.record import Record
from sharding.catalog import LAYOUTS
from sharding.error_types import UsageError
from sharding.mesh import make_mesh, parse_mesh
from sharding.quantization import QUANTIZATIONS

TINY = find_model("tiny")


def sweep(**changes) -> Sweep:
    settings = {
        "source": ModelSource(dataclasses.replace(TINY, layers=1), None, None),
        "layouts": [LAYOUTS["weight_stationary_1d"]],
        "shapes": [parse_mesh("1"), parse_mesh("2")],
        "batches": [1, 2],
        "contexts": [16],
        "dtype_sets": [FLOAT32],
        "seconds": 0.0,
    }
    return Sweep(**settings | changes)


def read_little(patch: pytest.MonkeyPatch) -> None:
    """Bandwidths too good, of little read: where they are not what is tested."""
    patch.setattr(bandwidth, "READ_BYTES", 1 << 22)
    patch.setattr(bandwidth, "MATMUL_SIZE", 128)


@pytest.fixture
def quick_meter(monkeypatch):
    read_little(monkeypatch)


@pytest.fixture(scope="module")
def outcome():
    with pytest.MonkeyPatch.context() as patch:
        read_little(patch)
        return run(sweep(), report=lambda text: None)


def test_every_mesh_batch_and_context_has_a_record(outcome):
    cases = [(point.devices, point.batch) for point in outcome.points]
    assert cases == [(1, 1), (1, 2), (2, 1), (2, 2)]
    for point in outcome.points:
        assert len(point.step_s["samples"]) == sweeping.MIN_ROUNDS
        assert 0 < point.step_s["p10"] <= point.step_s["median"] <= point.step_s["p90"]


@pytest.mark.slow
def test_layouts_are_compared_in_one_run_each_a_line_of_its_own(quick_meter):
    names = ["weight_stationary_1d", "weight_stationary_2d"]
    wanted = sweep(layouts=[LAYOUTS[name] for name in names], shapes=[parse_mesh("2x1x2")])
    points = run(wanted, lambda text: None).points
    assert [point.layout for point in points] == [names[0]] * 2 + [names[1]] * 2
    assert len(lines(points)) == 2
    text = fit_lines(fits([point | Record(status="ok") for point in points]))
    assert [line.split(",")[0] for line in text] == names


@pytest.mark.slow  # by default `test_profile_decode` runs a sweep of two types
def test_stored_types_are_compared_in_one_run_each_with_its_own_floor(quick_meter):
    dtype_sets = [
        FLOAT32,
        Dtypes(jnp.float32, QUANTIZATIONS["int8"]),
        Dtypes(jnp.float32, None, QUANTIZATIONS["int8"]),
    ]
    wanted = sweep(dtype_sets=dtype_sets, shapes=[parse_mesh("1")])
    points = run(wanted, lambda text: None).points
    plain, weights, cache = points[0], points[2], points[4]
    assert [p.weight_dtype for p in points] == ["float32"] * 2 + ["int8"] * 2 + ["float32"] * 2
    assert weights.weight_floor_s < plain.weight_floor_s == cache.weight_floor_s
    assert cache.floor_terms_s["kv_cache"] < plain.floor_terms_s["kv_cache"]
    assert weights.bytes_per_chip["weights_unpacked"] > 0  # so small that one block holds them
    assert "weights_unpacked" not in plain.bytes_per_chip
    text = fit_lines(fits([point | Record(status="ok") for point in points]))
    assert [line.split(",")[:2] for line in text] == [
        ["float32", " float32"], ["int8", " float32"], ["float32", " int8"]
    ]  # fmt: skip


def test_the_floors_bandwidth_is_the_best_sample_of_any_kernel_on_any_mesh(outcome):
    kernels = [k for mesh in outcome.bandwidth["samples"].values() for k in mesh.items()]
    samples = [rate for name, rates in kernels if name != "matmul" for rate in rates]
    assert outcome.bandwidth["bytes_per_s"] == max(samples)
    assert outcome.bandwidth["source"] == "measured"
    # Three samples of each kernel on each mesh before the rows, then one after every round.
    assert len(samples) == 2 * 3 * (3 + sweeping.MIN_ROUNDS)
    flops = [rate for name, rates in kernels if name == "matmul" for rate in rates]
    assert outcome.bandwidth["peak_flops_per_s"] == max(flops)


def test_devices_that_share_a_memory_are_one_chip_with_its_bandwidth(outcome):
    one, _, two, _ = outcome.points
    for point in (one, two):
        assert point.chips == 1  # its bytes are those of all fake devices together
        counted = point.bytes_per_chip["weights_read"]
        assert point.weight_floor_s == pytest.approx(counted / outcome.bandwidth["bytes_per_s"])
    resident = "weights_resident"
    assert two.bytes_per_chip[resident] > one.bytes_per_chip[resident]  # norms are copied


@pytest.fixture(scope="module")
def untraced(tmp_path_factory):
    """A run on one device at a rate that is given, no trace of which can be written.

    Its end, its results after every round, and what it said.
    """

    def full(directory):
        raise TraceError(f"trace to {directory} is not started (no room); make some")

    kept, said = [], []
    with pytest.MonkeyPatch.context() as patch:
        read_little(patch)
        patch.setattr("profiles.measured.rows.capture", full)
        folder = tmp_path_factory.mktemp("untraced")
        wanted = sweep(shapes=[parse_mesh("1")], bandwidth=5e9, trace=folder)
        return run(wanted, said.append, kept.append), kept, said


def test_given_peaks_replace_the_measured_ones(untraced):
    given = untraced[0]
    assert given.bandwidth["bytes_per_s"] == 5e9 and given.bandwidth["source"] == "given"
    for point in given.points:
        assert point.weight_floor_s == point.bytes_per_chip["weights_read"] / 5e9


@pytest.mark.parametrize(
    ("dtypes", "flops"),
    [
        (FLOAT32, 4.947e14),
        (BFLOAT16, 9.894e14),
        (Dtypes(jnp.bfloat16, QUANTIZATIONS["int8"]), 9.894e14),
        (Dtypes(jnp.bfloat16, QUANTIZATIONS["int8"], round_activations=True), 1.979e15),
    ],
)
def test_published_peaks_are_of_the_arithmetic_that_a_step_does(monkeypatch, dtypes, flops):
    h100 = SimpleNamespace(device_kind="NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(peak_rates, "devices", lambda: [h100])
    assert peak_rates.published(sweep(), dtypes).flops == flops


def test_a_published_peak_stands_beside_the_rate_that_reads_reached_on_each_chip(
    monkeypatch, tiny_engine
):
    h200 = SimpleNamespace(device_kind="NVIDIA H200")
    monkeypatch.setattr(peak_rates, "devices", lambda: [h200])
    monkeypatch.setattr(peak_rates, "shares_memory", lambda: False)
    samples = {
        "1x1x1": {"sum": [4.0e12, 4.2e12], "matmul": [6e14]},
        "1x1x2": {"sum": [8.8e12], "max": [8.0e12], "matmul": [1e15]},  # of both chips
    }
    found = peak_rates.bandwidth_of(sweep(), samples)
    assert (found["source"], found["bytes_per_s"]) == ("published", 4.8e12)
    assert found["measured_bytes_per_s"] == 4.4e12 and found["measured_flops_per_s"] == 6e14
    engine = tiny_engine("1x1x1", layers=1)
    peaks = peak_rates.peaks_of(sweep(), found, engine)
    assert (peaks.bandwidth, peaks.read_rate) == (4.8e12, 4.4e12)
    peaks = dataclasses.replace(peaks, on_chip=0)
    point = step_record(engine, peaks, Pass(1, 16, slots=64), samples=[1e-6])
    assert point.bound == "weights"
    assert point.read_floor_s == pytest.approx(point.floor_s * 4.8 / 4.4)
    assert point.fraction_of_read_floor == pytest.approx(point.read_floor_s / 1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batches": [0]}, "batch is 0"),
        ({"contexts": [-1]}, "context is -1"),
        (
            {"contexts": [512]},
            "context is 512 and 1 more token, beyond the 512 tokens that tiny goes to",
        ),
        ({"shapes": [parse_mesh("1"), parse_mesh("3")]}, "d_ff is 128"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_loaded(monkeypatch, changes, message):
    monkeypatch.setattr(ModelSource, "engine", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(UsageError) as refusal:
        run(sweep(**changes), lambda text: None)
    assert message in str(refusal.value)


FAILURES = {
    2: jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nAt: a"),
    3: jax.errors.JaxRuntimeError(
        "INTERNAL: Error dispatching computation: Out of memory allocating 9 bytes."
    ),
    4: MemoryError("Unable to allocate 3.73 GiB for an array"),
    5: MemoryError(),
    6: jax.errors.JaxRuntimeError("INTERNAL: Mosaic failed"),
    7: ValueError("odd"),
}


def test_a_rows_failure_is_its_own_result(quick_meter, monkeypatch):
    compile_step, lower = RepeatedStep.compile, RepeatedStep.lower

    def failing(self):
        if self.batch in FAILURES:
            raise FAILURES[self.batch]
        compile_step(self)

    monkeypatch.setattr(RepeatedStep, "compile", failing)
    monkeypatch.setattr(
        RepeatedStep, "lower", lambda self: [] if self.batch in FAILURES else lower(self)
    )
    outcome = run(sweep(shapes=[parse_mesh("1")], batches=[1, *FAILURES]), lambda text: None)
    assert len(outcome.points[0].step_s["samples"]) == sweeping.MIN_ROUNDS
    assert outcome.error is FAILURES[2]
    found = {point.batch: (point.status, point.message) for point in outcome.points[1:]}
    assert found == {
        2: ("out_of_memory", "RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes."),
        3: (
            "out_of_memory",
            "INTERNAL: Error dispatching computation: Out of memory allocating 9 bytes.",
        ),
        4: ("out_of_memory", "MemoryError: Unable to allocate 3.73 GiB for an array"),
        5: ("out_of_memory", "MemoryError"),
        6: ("unsupported", "INTERNAL: Mosaic failed"),
        7: ("unsupported", "ValueError: odd"),
    }
    for point in outcome.points[1:]:
        assert point.floor_s > 0 and point.step_s is None


def test_batches_that_memory_cannot_hold_are_found_before_anything_is_made(
    quick_meter, monkeypatch
):
    monkeypatch.setattr(ModelSource, "engine", lambda *_, **__: pytest.fail("weights were made"))
    wanted = sweep(source=ModelSource(TINY, None, None), batches=[10**9, 5 * 10**8])
    points = run(wanted, lambda text: None).points
    assert [point.status for point in points] == ["does_not_fit"] * 4
    # 32 slots of 2 layers, keys and values, 2 heads of 16 in float32; and 256 logits.
    assert "17,408 GB" in points[0].message and "use a batch of" in points[0].message
    assert points[0].bytes_per_chip["kv_resident"] == 10**9 * 32 * 2 * 2 * 2 * 16 * 4


def test_all_that_is_measured_is_kept_after_every_round(untraced):
    outcome, kept, _ = untraced
    counts = [[len(point.step_s["samples"]) for point in each.points] for each in kept]
    assert counts == [[n, n] for n in range(1, sweeping.MIN_ROUNDS + 1)]
    assert kept[0].points[0].message.endswith("1 of 5 samples: the run ended early")
    assert "the run ended early" not in (outcome.points[0].message or "")


def test_an_interrupted_run_keeps_what_it_measured_and_says_which_rows_have_less(
    quick_meter, monkeypatch
):
    sample, kept = RepeatedStep.sample, []

    def stopping(self):
        if self.batch == 2 and len(self.samples) == 3:
            raise KeyboardInterrupt
        sample(self)

    monkeypatch.setattr(RepeatedStep, "sample", stopping)
    with pytest.raises(Interrupted) as interrupt:
        run(sweep(shapes=[parse_mesh("1")], batches=[1, 2]), lambda text: None, kept.append)
    one, two = kept[-1].points
    assert [len(point.step_s["samples"]) for point in (one, two)] == [4, 3]
    assert two.message.endswith("3 of 5 samples: the run ended early")
    where = "weight_stationary_1d, devices 1, batch {}, context 16 ({} of 5)"
    assert str(interrupt.value) == (
        f"2 of 2 rows; with fewer samples: {where.format(1, 4)}; {where.format(2, 3)}"
    )


def test_weights_that_do_not_fit_are_a_result(quick_meter, monkeypatch):
    def full(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")

    monkeypatch.setattr(ModelSource, "engine", full)
    points = run(sweep(shapes=[parse_mesh("1")]), lambda text: None).points
    assert [point.status for point in points] == ["out_of_memory"] * 2
    assert points[0].message == "RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"


def test_a_layout_and_a_form_are_measured_once():
    twice = sweep(layouts=[LAYOUTS["weight_stationary_1d"]] * 2, dtype_sets=[FLOAT32, FLOAT32])
    assert len(twice.placings()) == 2 and len(twice.sizes()) == 2


def test_a_held_step_keeps_its_context(tiny_engine):
    step = RepeatedStep(tiny_engine("1x1x1", layers=1), batch=2, context=20)
    step.compile()
    lengths = np.asarray(step._carry.lengths)
    before = np.asarray(step._cache.keys[0])
    step.sample()
    step.sample()
    assert np.asarray(step._carry.lengths).tolist() == lengths.tolist() == [20, 20]
    assert len(step.samples) == 2 and all(0 < seconds < 10 for seconds in step.samples)
    # Only the one slot was ever written.
    changed = np.flatnonzero((np.asarray(step._cache.keys[0]) != before).any(axis=(0, 1, 3)))
    assert set(changed) <= {20}
    assert step.slots == 32


@pytest.mark.parametrize(
    ("each", "given", "burst"),
    [(1e-3, 0, MIN_BURST), (1e-3, 0.1, 100), (1e-3, 10, LONG_S / 1e-3), (0.1, 10, 3), (9, 0, 1)],
)
def test_a_burst_is_long_where_there_is_time(each, given, burst, monkeypatch):
    """On a clock of its own: steps take `each` seconds, and the first launch 2 ms more."""

    def simulated(step, dispatches: int) -> SimpleNamespace:
        return SimpleNamespace(seconds=0.002 + dispatches * each, call=0.002, touched=[None])

    monkeypatch.setattr(RepeatedStep, "_run", simulated)
    step = RepeatedStep(None, batch=1, context=20)
    step.lengthen(given)
    assert step.burst == pytest.approx(burst, abs=1)
    step.sample()
    assert step.samples == [pytest.approx(each + 0.002 / step.burst)]


def test_the_meter_reads_more_than_a_cache_holds_and_its_kernels_read_all_of_it():
    meter = PeakMeter(make_mesh(parse_mesh("2")))
    assert meter._big.nbytes >= 4 * 32 << 20
    assert {shard.data.nbytes for shard in meter._big.addressable_shards} == {
        meter._big.nbytes // 2
    }
    meter.sample(repeats=1)
    big = np.asarray(meter._big, np.float64)
    with jax.set_mesh(meter.mesh):
        rows = np.asarray(READS["sum"](meter._big, meter._vector))
        product = np.asarray(READS["matrix_vector"](meter._big, meter._vector))
    np.testing.assert_allclose(rows, big.sum(1), rtol=1e-4)
    np.testing.assert_allclose(product, big @ np.asarray(meter._vector, np.float64), rtol=1e-4)
    assert {name: len(rates) for name, rates in meter.rates().items()} == dict.fromkeys(
        ("sum", "max", "matrix_vector", "matmul"), 1
    )


@pytest.mark.parametrize(
    ("levels", "size"),
    [
        ({2: "2048K", 3: "32768K"}, 64 << 20),  # a last-level cache for each of two cores
        ({2: "2048K", 3: "491520K"}, 4 << 20),  # which the meter measures, in place of memory
        ({3: "491520K"}, 960 << 20),
        ({}, 32 << 20),
    ],
)
def test_a_cache_that_holds_what_the_meter_reads_has_its_own_rate_measured(
    levels, size, tmp_path, monkeypatch
):
    for core, (level, text) in itertools.product(range(2), levels.items()):
        cache = tmp_path / f"cpu{core}" / "cache" / f"index{level}"
        cache.mkdir(parents=True)
        (cache / "size").write_text(text + "\n")
        (cache / "shared_cpu_list").write_text(f"{core}\n")
    monkeypatch.setattr(bandwidth, "CPU_CACHES", tmp_path)
    assert bandwidth.cache_beside_rates() == size


def test_a_row_whose_trace_fails_stays_measured(untraced):
    outcome, _, said = untraced
    assert all(point.ran and point.status != "unsupported" for point in outcome.points)
    assert outcome.error is None
    lines_said = [each for each in said if "trace" in each]
    assert len(lines_said) == 2
    for batch, line in zip((1, 2), lines_said, strict=True):
        assert f"batch {batch}, context 16 is missing: trace to" in line and "no room" in line
