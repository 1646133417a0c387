"""Microbenchmarks: fits of planted times, amounts as the compiler counts them, calibrations."""

import dataclasses
import json
import types

import jax
import numpy as np
import pytest

from model.catalog import find_model
from model.declarations import count
from model.dtypes import FLOAT32, Dtypes
from model.transformer import Transformer
from profiles.chips.calibration import calibration_of, read_calibration
from profiles.chips.chip import find_chip
from profiles.floor.bytes_and_flops import PassCounter
from profiles.floor.passes import Pass
from profiles.hlo.census import census
from profiles.measured import calibration_here, microbenchmark, model_kernels
from profiles.measured.bandwidth import device_name
from profiles.measured.fits import fit_line
from profiles.measured.kernels import (
    COLLECTIVES,
    Calls,
    Kernel,
    collective_kernels,
    groups,
    read_kernels,
)
from profiles.measured.measured_calibration import Basis, calibrate
from profiles.measured.microbenchmark import Kernels, fits, measure, powers, results
from profiles.measured.microbenchmark_tables import tables
from profiles.measured.model_kernels import model_passes
from sharding.mesh import make_mesh, parse_mesh
from sharding.quantization import QUANTIZATIONS


def test_fits_find_a_planted_fixed_cost_and_rate():
    sizes = powers(1 << 12, 1 << 24, 8)
    line = fit_line(sizes, [5e-6 + size / 3e9 for size in sizes])
    assert line.fixed_s == pytest.approx(5e-6) and line.rate == pytest.approx(3e9)
    assert line.seconds(3e9) == pytest.approx(1 + 5e-6)


def test_fits_are_of_medians_and_of_relative_errors():
    """Neither a sample that was held up nor a tenth of the longest time moves the fixed cost."""
    kernels = [
        Kernel(None, {"kind": "permute"}, None, (), size, samples=[time, time, 40 * time])
        for size in powers(1 << 12, 1 << 24, 8)
        for time in [5e-6 + size / 3e9]
    ]
    (found,) = fits(kernels, ("kind",), "bytes_per_s")
    assert found["fixed_s"] == pytest.approx(5e-6)
    assert found["bytes_per_s"] == pytest.approx(3e9)
    kernels[-1].samples = [1.1 * kernels[-1].seconds]  # longer than all others together
    (found,) = fits(kernels, ("kind",), "bytes_per_s")
    assert found["fixed_s"] == pytest.approx(5e-6, rel=0.02)


@pytest.mark.parametrize(
    ("sizes", "times", "fixed", "rate"),
    [
        ([1.0, 2.0], [1.0, 3.0], 0, 5 / 8),  # begins below zero: 1 and 2/3 per second
        ([1.0, 4.0], [2.0, 2.0], 2, np.inf),
        ([8.0], [2.0], 0, 4),
    ],
)
def test_no_fit_has_a_negative_cost(sizes, times, fixed, rate):
    line = fit_line(sizes, times)
    assert line.fixed_s == pytest.approx(fixed)
    if sizes == [1.0, 2.0]:
        relative = np.divide(sizes, times)
        rate = (relative**2).sum() / relative.sum()
    assert line.rate == pytest.approx(rate)


TINY = find_model("tiny")


def compiled(kernel: Kernel) -> jax.stages.Compiled:
    with jax.set_mesh(kernel.mesh):
        return kernel.program.lower(*kernel.operands).compile()


@pytest.mark.parametrize("shape", ["1", "2x2x2"])
def test_bytes_and_flops_are_those_that_the_compiler_counts(shape):
    """The compiler counts those of one device."""
    mesh = make_mesh(parse_mesh(shape))
    for kernel in read_kernels(mesh, [1 << 22]):
        counted = compiled(kernel).cost_analysis()["bytes accessed"]
        beside = 4096 * 4 + (kernel.amount / 4096) / mesh.size  # a vector, and a sum of each row
        assert kernel.amount / mesh.size <= counted + 4 * 4096
        assert counted <= kernel.amount / mesh.size + 3 * beside, kernel


def test_the_part_of_a_model_weighs_no_more_than_wanted_and_has_a_layer_at_least():
    """Vocabulary and layers are the same share of the model's."""
    config = find_model("smollm2-135m")
    for most_bytes, layers in ((1, 1), (1 << 26, 3), (1e12, 30)):
        part = model_kernels.part_of(config, FLOAT32, most_bytes)
        assert part.layers == layers
        assert part.vocabulary / config.vocabulary == pytest.approx(layers / 30, rel=0.02)
        assert layers == 1 or 4 * count(Transformer(part, FLOAT32)) <= most_bytes
        assert (part.d_model, part.d_ff, part.kv_heads) == (576, 1536, 3)


@pytest.mark.parametrize("weights", ["float32", pytest.param("int8", marks=pytest.mark.slow)])
def test_passes_are_steps_and_prompts_of_the_rows_that_are_asked_for(weights, monkeypatch):
    """Their FLOPs are those that floors count, of all devices."""
    monkeypatch.setattr(model_kernels, "MOST_SEQUENCES", 4)
    mesh = make_mesh(parse_mesh("2"))
    dtypes = Dtypes(np.float32, QUANTIZATIONS.get(weights))
    found = model_passes(mesh, [dtypes], [1, 4, 48], TINY, 1e9, 10)
    assert [(each.fields["rows"], each.fields["context"]) for each in found.filled] == [
        (1, 10), (4, 10), (64, 0),
    ]  # fmt: skip
    assert [(each.fields["rows"], each.fields["context"]) for each in found.empty] == [(4, 0)]
    engine = found.filled[0].step.engine
    assert (engine.config.layers, engine.config.vocabulary) == (TINY.layers, TINY.vocabulary)
    for each, pass_ in zip(found.filled, [Pass(1, 10), Pass(4, 10), Pass(1, 0, 64)], strict=True):
        counts = PassCounter(engine.config, engine.placement, dtypes).count(pass_)
        assert each.amount == 2 * counts.flops
        assert each.attention == (0 if pass_.over_prompts else 2 * counts.attention)
        assert each.collectives == 2 * TINY.layers + 1  # the last one is of the vocabulary


@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_passes_read_equal_weights_in_places_that_take_turns(weights, monkeypatch):
    """A few layers would stay in a cache of the CPU."""
    mesh = make_mesh(parse_mesh("2"))
    dtypes = Dtypes(np.float32, QUANTIZATIONS.get(weights))
    monkeypatch.setattr(model_kernels, "MOST_PLACES", 3)
    (one,) = model_passes(mesh, [dtypes], [1], TINY, 1e9, 10).filled
    turns = [jax.tree.leaves(one.step.engine.parameters) for _ in range(6)]
    for first, *others in zip(*turns, strict=True):
        places = [array.addressable_shards[1].data.unsafe_buffer_pointer() for array in others]
        assert len(set(places)) == 3
        assert places[:2] == places[3:]
        for other in others:
            assert other.sharding == first.sharding
            np.testing.assert_array_equal(other, first)


def test_places_hold_more_than_a_cache_does_and_no_more_than_that():
    mesh = make_mesh(parse_mesh("1"))
    found = [model_kernels.places_of(mesh, size) for size in (1 << 20, 1 << 27, 1 << 29, 1 << 33)]
    assert found == [8, 4, 1, 1]


def test_payloads_and_axes_are_those_of_the_compiled_collectives():
    mesh = make_mesh(parse_mesh("2x1x4"))
    assert groups(mesh) == [("x",), ("z",), ("x", "z")]
    kernels = list(collective_kernels(mesh, [1 << 20]))
    assert len(kernels) == 3 * len(COLLECTIVES)
    for kernel in kernels:
        (found,) = census(compiled(kernel).as_text(), mesh)
        made = found.kind, list(found.axes), found.payload_bytes, found.count
        asked = (*(kernel.fields[key] for key in ("kind", "axes", "payload_bytes")), kernel.repeats)
        assert made == asked


def test_collectives_move_what_they_are_called_after():
    mesh = make_mesh(parse_mesh("4"))
    for kind, collective in COLLECTIVES.items():
        specs = {"in_specs": jax.P("z"), "out_specs": jax.P("z"), "check_vma": False}
        with jax.set_mesh(mesh):
            parts = jax.device_put(np.arange(16.0), jax.NamedSharding(mesh, jax.P("z")))
            run = jax.shard_map(lambda part, one=collective: one(part, ("z",)), **specs)
            moved = np.asarray(jax.jit(run)(parts)).reshape(4, -1)
        own = np.arange(16.0).reshape(4, 4)
        wanted = {
            "all-gather": np.tile(np.arange(16.0), (4, 1)),
            "reduce-scatter": own.sum(0)[:, None],
            "all-reduce": np.tile(own.sum(0), (4, 1)),
            "all-to-all": own.T,
            "permute": np.roll(own, 1, axis=0),
        }[kind]
        np.testing.assert_array_equal(moved, wanted)


@pytest.fixture(scope="module")
def found():
    """A run of small kernels on two devices; the script's test has more axes."""
    mesh = make_mesh(parse_mesh("2"))
    passes = model_passes(mesh, [FLOAT32], [1, 8], TINY, 1e9, 10)
    kernels = Kernels(
        memory=list(read_kernels(mesh, [1 << 18, 1 << 20])),
        matmul=passes.filled,
        collectives=list(collective_kernels(mesh, [1 << 8, 1 << 12])),
        dispatch=[Calls(mesh, arguments) for arguments in (1, 16)],
        attention=passes.empty,
    )
    measure(kernels, 0)
    return json.loads(json.dumps(results(kernels, 0)))


def test_a_document_has_samples_and_fits_of_each_part(found):
    assert {name: len(part["samples"]) for name, part in found.items()} == {
        "memory": 2 * 3, "matmul": 2, "collectives": 5 * 2, "dispatch": 2, "attention": 1,
    }  # fmt: skip
    assert {name: len(part["fits"]) for name, part in found.items()} == {
        "memory": 3, "matmul": 1, "collectives": 5, "dispatch": 1, "attention": 1,
    }  # fmt: skip
    for name, size, rate in (
        ("memory", lambda row: row["bytes"], "bytes_per_s"),
        ("matmul", lambda row: row["flops"], "flops_per_s"),
        ("collectives", lambda row: row["payload_bytes"], "bytes_per_s"),
    ):
        for row in found[name]["samples"]:
            assert len(row["seconds"]["samples"]) == microbenchmark.MIN_ROUNDS
            assert row[rate] == pytest.approx(size(row) / row["seconds"]["median"])
    for row in found["dispatch"]["samples"]:
        assert 0 < row["returned"]["median"] <= row["awaited"]["median"]


def test_memory_is_fitted_beyond_caches_alone():
    """A cache is read ten times as fast as memory; of the largest array alone there is no line."""

    def fit(on_chip: float) -> dict:
        reads = [
            Kernel(None, {"kernel": "sum", "bytes": size}, None, (), size, samples=[time])
            for size, time in ((1e6, 1e-5), (4e6, 5e-5), (16e6, 17e-4), (64e6, 65e-4))
        ]
        calls = [Calls(make_mesh(parse_mesh("1")), 1, returned=[1e-5], awaited=[2e-5])]
        (line,) = results(Kernels(reads, [], [], calls, []), on_chip)["memory"]["fits"]
        return line

    assert fit(4e6)["bytes_per_s"] == pytest.approx(1e10)
    assert fit(4e6)["fixed_s"] == pytest.approx(1e-4)
    assert fit(1e9)["bytes_per_s"] == pytest.approx(64e6 / 65e-4)
    assert fit(1e9)["fixed_s"] == 0


def test_tables_have_a_row_for_each_size_kind_and_call(found):
    text = tables(found, 2, "cpu")
    assert text.count("measured on 2 x cpu") == 4
    for words in ("matrix_vector", "262 kB", "TFLOP/s of all devices together", "all-to-all",
                  "call returned"):  # fmt: skip
        assert words in text
    alone = found | {"collectives": {"samples": [], "fits": []}}
    assert "Collectives" not in tables(alone, 1, "cpu")


def rows(rate: str, key: str, sizes, rates, **fields) -> list[dict]:
    seconds = {"median": 2.0, "samples": [1.6, 2.0, 3.0]}
    return [
        {**fields, key: size, rate: each, "seconds": seconds, "flops": 2 * each,
         "attention_flops": 0.0, "collectives": 0}
        for size, each in zip(sizes, rates, strict=True)
    ]  # fmt: skip


PLANTED = {
    "memory": {
        "samples": [
            *rows("bytes_per_s", "bytes", [1, 9], [9e12, 3.6e12], kernel="sum"),
            *rows("bytes_per_s", "bytes", [1, 9], [9e12, 3.0e12], kernel="max"),
        ]
    },
    "matmul": {
        "samples": [
            *rows("flops_per_s", "rows", [16, 64], [6e14, 5e14], dtype="bfloat16"),
            *rows("flops_per_s", "rows", [1, 64], [1e12, 9e14], dtype="float32"),
        ]
    },
    "collectives": {
        "fits": [
            {"kind": kind, "axes": ["z"], "fixed_s": fixed, "bytes_per_s": rate}
            for kind, fixed, rate in (("a", 5e-6, 1e11), ("b", 7e-6, 2e11), ("c", 9e-6, 4e11))
        ]
    },
    "dispatch": {
        "samples": [
            {"arguments": n, "returned": {"median": n * 1e-5}, "awaited": {"median": n * 3e-5}}
            for n in (16, 1)
        ]
    },
    "attention": {"fits": [{"dtype": "bfloat16", "flops_per_s": 4e13}]},
}
ON_CHIP = Basis("h200", 4.8e12, 1e15, lambda kind, axes: (1e-6, 2.5e-12), True, "bfloat16", "here")


def test_fractions_are_of_recommended_figures_and_the_rest_is_lent():
    lent = calibration_of("h200")
    found = calibrate(PLANTED, ON_CHIP, lent)
    assert found.memory == pytest.approx(0.75)  # of the best kernel at the largest size
    assert found.compute == pytest.approx(0.5)
    assert found.link == pytest.approx(0.5)  # the median kind
    assert found.collective_s == pytest.approx(6e-6)  # without its hops
    assert found.step_s == pytest.approx(2e-5)
    assert (found.chips, found.measured_on) == (("h200",), "h200")
    assert found.attention is None and found.peaks == ()  # which memory bounds on a chip
    kept = ("network_s", "layer_s", "hidden")
    assert all(getattr(found, name) == getattr(lent, name) for name in kept)
    assert f"{', '.join(sorted(kept))} are those of {lent.name}" in found.source


def test_without_published_figures_fractions_are_of_the_best_of_the_run():
    basis = dataclasses.replace(ON_CHIP, chip="cpu", memory=None, flops=None, published=False)
    found = calibrate(PLANTED, basis, calibration_of("h200"))
    assert found.memory == pytest.approx(1.6 / 2.0)
    assert found.compute == pytest.approx(5 / 6 * 1.6 / 2.0)  # the best is of fewer rows
    assert found.link == pytest.approx(0.5)
    assert (found.chips, found.measured_on) == (("cpu",), device_name("cpu"))
    peaks = {"bandwidth": 3.6e12 * 2.0 / 1.6, "flops": 6e14 * 2.0 / 1.6}
    assert dict(found.peaks) == pytest.approx(peaks)
    assert found.attention == pytest.approx(4e13 / peaks["flops"])


def planted(rates: dict[int, float]) -> dict:
    """What was found, with products of these rows at these FLOP/s."""
    samples = rows("flops_per_s", "rows", rates, rates.values(), dtype="bfloat16")
    return PLANTED | {"matmul": {"samples": samples}}


def test_more_rows_take_no_less_time_and_have_no_lower_rate():
    basis = dataclasses.replace(ON_CHIP, memory=None, flops=None, published=False)
    found = calibrate(
        planted({1: 1e12, 4: 9e12, 16: 8e12, 64: 5e13}), basis, calibration_of("h200")
    )
    peak = 5e13 * 2.0 / 1.6
    wanted = [(1, 1e12 / peak), (4, 4e12 / peak), (16, 8e12 / peak), (64, 3.2e13 / peak)]
    assert dict(found.compute_by_rows) == pytest.approx(dict(wanted))


def test_where_memory_limits_products_of_a_chip_they_tell_nothing_of_arithmetic():
    """Of 1 row 3.4e12 bytes per second were read, of 3.6e12 that memory achieves."""
    found = calibrate(planted({1: 3.4e12, 64: 5e13, 256: 4e14}), ON_CHIP, calibration_of("h200"))
    assert dict(found.compute_by_rows) == pytest.approx({64: 0.05, 256: 0.2})


def test_products_are_what_attention_and_collectives_leave_of_a_pass():
    """Planted: 2 s, 0.5 s of attention at 4e13 FLOP/s, and 3 collectives of 6 us; never all."""
    (row,) = rows("flops_per_s", "rows", [4], [1e13], dtype="bfloat16")
    row |= {"attention_flops": 2e13 - 1e12, "collectives": 3}
    basis = dataclasses.replace(ON_CHIP, memory=None, flops=None, published=False)
    found = calibrate(PLANTED | {"matmul": {"samples": [row]}}, basis, calibration_of("h200"))
    peak = dict(found.peaks)["flops"]
    alone = 2 - (2e13 - 1e12) / 4e13 - 3 * 6e-6
    assert found.compute_at(4) * peak == pytest.approx(1e12 / alone)
    row["collectives"] = 1_000_000  # 6 s, of a step of 2 s: no more than half is believed
    found = calibrate(PLANTED | {"matmul": {"samples": [row]}}, basis, calibration_of("h200"))
    assert found.collective_s == pytest.approx(1e-6)


def test_one_device_takes_its_links_from_another_calibration(tmp_path):
    lent = calibration_of("h200")
    found = calibrate(PLANTED | {"collectives": {"fits": []}}, ON_CHIP, lent)
    assert (found.link, found.collective_s) == (lent.link, lent.collective_s)
    assert "collective_s" in found.source
    file = tmp_path / "calibration.json"
    file.write_text(json.dumps(found.as_record()))
    assert read_calibration(str(file)) == found


def test_devices_are_calibrated_for_the_rows_of_a_sweep(monkeypatch):
    """Fractions are of their own peaks; two devices tell collectives too."""
    for name, value in {"WEIGHTS": 1, "READ_BYTES": 1 << 18}.items():
        monkeypatch.setattr(calibration_here, name, value)
    monkeypatch.setattr(model_kernels, "BURST_S", 0)
    monkeypatch.setattr(microbenchmark, "MIN_ROUNDS", 1)
    mesh, said = make_mesh(parse_mesh("2")), []
    sizes = {"config": TINY, "context": 10}
    monkeypatch.setattr(calibration_here, "MOST_ROWS", 128)
    many = [4, 10**9, 1]  # a batch that no memory holds is a row all the same
    found = calibration_here.calibration_here(mesh, FLOAT32, many, 0, said.append, **sizes)
    assert [rows for rows, _ in found.compute_by_rows] == [1, 4, 128]
    assert found.measured_on == device_name("cpu") and found.collective_s > 0
    assert dict(found.peaks).keys() == {"bandwidth", "flops"}
    assert len(said) == 1 and "2 x cpu" in said[0]


def test_a_chip_of_the_list_has_the_calibration_that_is_shipped(monkeypatch):
    h200 = types.SimpleNamespace(slice=types.SimpleNamespace(chip=find_chip("h200")))
    monkeypatch.setattr(calibration_here, "local_devices", lambda count: h200)
    mesh = make_mesh(parse_mesh("1"))
    found = calibration_here.calibration_here(mesh, FLOAT32, [1])
    assert found == calibration_of("h200")
