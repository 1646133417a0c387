"""Attention is traced once for all layers that are alike."""

import dataclasses

import pytest

from model import filled_attention
from model.catalog import find_model
from model.dtypes import FLOAT32
from sharding.catalog import LAYOUTS
from tests.engines import random_engine


@pytest.mark.parametrize("windows, kinds", [(None, 1), ((None, 8, None, 8), 2)])
def test_layers_that_are_alike_are_traced_once(windows, kinds, monkeypatch):
    traced, local = [], filled_attention._attend_local

    def count(*operands):
        traced.append(operands)
        return local(*operands)

    monkeypatch.setattr(filled_attention, "_attend_local", count)
    # A scale that no other test has, which would have traced the same attention before.
    scale = 0.123 + 0.001 * kinds
    config = dataclasses.replace(
        find_model("tiny"), layers=4, windows=windows, attention_scale=scale
    )
    engine = random_engine(config, LAYOUTS["weight_stationary_1d"], "1", FLOAT32)
    engine.lower_decode(3, 37)
    assert len(traced) == kinds
