"""The chip data against JAX's own table of TPUs, which Pallas kernels are tuned by.

JAX gives rates and sizes of one TensorCore, a zero where a chip lacks the arithmetic.
"""

import pytest
from jax.experimental.pallas import tpu as pltpu

from profiles.chips.chip import chips

ROUNDED = 0.004
"""JAX writes three digits."""

FIELDS = {
    "capacity": "hbm_capacity_bytes",
    "bandwidth": "mem_bw_bytes_per_second",
    "bfloat16_flops": "bf16_ops_per_second",
    "int8_flops": "int8_ops_per_second",
    "fp8_flops": "fp8_ops_per_second",
    "int4_flops": "int4_ops_per_second",
    "on_chip": "vmem_capacity_bytes",
}

DISAGREEMENTS = {
    ("v3", "bandwidth"): "JAX has 825 GB/s, Google's page 900",
    ("v3", "bfloat16_flops"): "JAX has 140 TFLOP/s, Google's page 123",
    ("v4", "int8_flops"): "JAX has none; Google's page gives 275 TOPS, those of bfloat16",
    ("v4", "on_chip"): "JAX lists 128 MiB of CMEM apart from 32 MiB of VMEM; the larger counts",
    ("v5p", "capacity"): "JAX has 96 GiB, Google's page the 95 that programs can use",
    ("v5p", "bandwidth"): "JAX has 2460 GB/s, Google's page 2765",
    ("v5p", "fp8_flops"): "JAX has none; Google's page gives 459 TFLOP/s, those of bfloat16",
    ("tpu8i", "capacity"): "JAX has 288 GiB, the announcement 288 GB",
    ("tpu8t", "capacity"): "JAX has 231 GB, the announcement 216",
    ("tpu8t", "bandwidth"): "JAX has 6400 GB/s, the announcement 6528",
}


def jax_figures(name: str) -> dict[str, int]:
    """JAX's figures of a whole chip, by the names that this project gives them."""
    version = pltpu.ChipVersion(name.removeprefix("tpu"))
    info = pltpu.get_tpu_info_for_chip(version, 1)
    cores = version.num_physical_tensor_cores_per_chip
    return {ours: cores * getattr(info, theirs) for ours, theirs in FIELDS.items()}


def known(name: str) -> bool:
    return name.removeprefix("tpu") in {version.value for version in pltpu.ChipVersion}


TPUS = [
    pytest.param(chip, marks=() if known(chip.name) else pytest.mark.skip("not in this JAX"))
    for chip in chips()
    if chip.device_kinds[0].startswith("TPU")
]


def test_disagreements_are_of_tpus():
    assert {name for name, _ in DISAGREEMENTS} <= {case.values[0].name for case in TPUS}


@pytest.mark.parametrize("chip", TPUS)
def test_figures_are_jaxs_but_for_known_disagreements(chip):
    theirs = jax_figures(chip.name)
    ours = {name: figure.recommended for name, figure in chip.figures.items()}
    differ = {
        (chip.name, name)
        for name in FIELDS
        if ours.get(name, 0) != pytest.approx(theirs[name], rel=ROUNDED)
    }
    assert differ == {key for key in DISAGREEMENTS if key[0] == chip.name}


@pytest.mark.parametrize("chip", TPUS)
def test_no_floor_divides_by_less_than_jaxs_figure(chip):
    for name, theirs in jax_figures(chip.name).items():
        ours = chip.figures[name].highest if name in chip.figures else 0
        assert ours >= theirs * (1 - ROUNDED), name


@pytest.mark.parametrize("chip", TPUS)
def test_devices_per_chip_are_jaxs(chip):
    version = pltpu.ChipVersion(chip.name.removeprefix("tpu"))
    cores = 1 if version.supports_megacore else version.num_physical_tensor_cores_per_chip
    assert chip.devices_per_chip == cores
