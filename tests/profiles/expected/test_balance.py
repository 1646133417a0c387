"""Contexts at which memory and compute balance where layers read other parts of a cache in turn."""

import dataclasses

import jax.numpy as jnp
import pytest

from model.catalog import find_model
from model.dtypes import Dtypes
from profiles.chips.calibration import calibration_of
from profiles.chips.slices import parse_slice
from profiles.expected import balance
from profiles.expected.estimate import Estimator
from profiles.floor.deployment import Deployment
from sharding.catalog import find_layout
from sharding.quantization import QUANTIZATIONS


def test_the_balanced_context_of_chunks_is_one_that_no_chunk_begins_below():
    """Llama 4 Scout, int8 cache: as a second chunk begins, 36 of 48 layers read nothing again.

    A token is 2 x 8 heads of 128 numbers and a scale: 2,112 bytes a layer. At 8,192 + r tokens a
    step reads 2,112 x (12 (8,192 + r) + 36 r + 48) bytes of a sequence.
    """
    scout, slice = find_model("llama4-scout"), parse_slice("v5p:2x2x1")
    chip = slice.chip.override(bandwidth=2.8e12, flops=4.6e14)
    one = Estimator(
        Deployment(
            model=scout,
            slice=dataclasses.replace(slice, chip=chip),
            dtypes=Dtypes(jnp.bfloat16, cache=QUANTIZATIONS["int8"]),
            calibration=calibration_of("v5p"),
            layout=find_layout("weight_stationary_1d"),
            mesh={"x": 1, "y": 1, "z": 4},
        )
    )
    D, F = 5120, 8192
    attention, experts = 2 * D * 40 * 128 + 2 * D * 8 * 128, 2 * 3 * D * F
    router = 4 * D * 16  # whole on each of four chips
    weights = 48 * (attention + router + experts) + 202_048 * D
    flops, size = 4 * 40 * 128, 2112  # of a pair of query and key; of a cached token in a layer
    compute = (2 * weights + flops * (12 * 8193 + 36)) / 4.6e14
    read = size * (12 * 8192 + 48) / 2.8e12
    each = 48 * (size / 2.8e12 - flops / 4.6e14)
    rest = (compute - read) / each
    assert 1 < rest < 100
    assert balance.balanced_context(one) == pytest.approx(8192 + rest, abs=1)
    inside = balance.slopes(one, 8191)
    assert inside.kv_cache > inside.compute  # which a shorter context has too
