"""Configurations: frozen, hashable, and refused where they contradict themselves."""

import dataclasses

import pytest

from model.catalog import find_model
from model.config_checks import ConfigError
from model.delta_sizes import DeltaSizes
from model.latent_sizes import LatentSizes

TINY = find_model("tiny")
EXPERTS = {"experts": 4, "experts_per_token": 1}
LATENT = {"kv_heads": 1, "latent": LatentSizes(rank=32, rotary=8, content=8, value=24)}
DELTA = DeltaSizes(key_heads=2, values_per_key=2, key_size=8, value_size=16)


def test_a_configuration_is_hashable_and_frozen():
    assert hash(TINY) == hash(dataclasses.replace(TINY))
    with pytest.raises(dataclasses.FrozenInstanceError):
        TINY.layers = 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 0}, "layers of tiny is 0"),
        ({"d_ff": -1}, "d_ff of tiny is -1"),
        ({"vocabulary": 2.5}, "vocabulary of tiny is 2.5"),
        ({"d_model": True}, "d_model of tiny is True"),
        ({"kv_heads": 3}, "query_heads of tiny is 4, not a multiple of its 3 kv_heads"),
        ({"head_size": 15}, "head_size of tiny is 15; it must be even"),
        ({"norm": "batch"}, "norm of tiny is 'batch'"),
        ({"norm_epsilon": 0.0}, "norm_epsilon of tiny is 0.0"),
        ({"rotary_base": float("nan")}, "rotary_base of tiny is nan"),
        ({"rotary_factors": (1.0, 2.0)}, "rotary_factors of tiny has 2 values; it needs 8"),
        ({"rotary_factors": (0.0,) * 8}, "rotary_factors of tiny"),
        ({"query_growth": (0, 0.1)}, "query_growth of tiny is (0, 0.1)"),
        ({"expert_layers": (True, False)}, "expert_layers of tiny is given"),
        ({"expert_layers": (True,), **EXPERTS}, "expert_layers of tiny has 1 entries"),
        ({"expert_layers": (True, False), **EXPERTS}, "dense_layers of tiny is 1 and dense_d_ff 0"),
        ({"expert_layers": (False, False), **EXPERTS, "dense_d_ff": 8}, "at most 1 layers"),
        ({"delta_layers": (True, False)}, "delta_layers of tiny is (True, False)"),
        ({"delta": DELTA}, "delta_layers of tiny is None"),
        ({"delta": DELTA, "delta_layers": (True,)}, "one entry for each of 2 layers"),
        (
            {"delta": dataclasses.replace(DELTA, taps=1), "delta_layers": (True, True)},
            "delta layers of tiny cannot be: taps is 1",
        ),
        ({"shared_gate": True}, "shared_gate of tiny is True; it needs shared_d_ff"),
        ({"experts_apart": True, **EXPERTS}, "experts_apart of tiny is True; it needs shared_d_ff"),
        (
            {"experts_apart": True, **EXPERTS, "shared_d_ff": 8, "parallel_block": True},
            "norms before an MLP that comes after attention",
        ),
        (
            {"delta": DELTA, "delta_layers": (True, False), "shared_cache_layers": 1},
            "in a model without experts, latent attention and delta layers",
        ),
        ({**LATENT, "attention_sinks": True}, "attention_sinks of tiny is True; latent attention"),
        ({**LATENT, "query_growth": (4, 0.1)}, "query_growth of tiny is (4, 0.1); latent"),
    ],
)
def test_contradictions_are_refused_by_name(changes, message):
    with pytest.raises(ConfigError) as refusal:
        dataclasses.replace(TINY, **changes)
    assert message in str(refusal.value)


def test_layers_of_experts_may_alternate_with_others():
    maverick = find_model("llama4-maverick")
    assert maverick.kinds == ((0, 24), (1, 24)) and maverick.layers_of_experts == 24
    assert not maverick.has_experts(0) and maverick.has_experts(1)
    assert maverick.only([1, 3]).dense_d_ff == 0
    assert maverick.first_layers(1).expert_layers == (True,)
    assert maverick.first_layers(3).expert_layers == (False, True, False)
    assert find_model("deepseek-v3").first_layers(2).dense_layers == 1


def test_layers_of_states_are_a_kind_and_cache_no_tokens():
    mixed = dataclasses.replace(
        TINY, layers=5, delta=DELTA, delta_layers=(True, True, False, True, False)
    )
    assert mixed.kinds == ((0, 3), (2, 2)) and mixed.attention_layers == (2, 4)
    assert mixed.one_of_each().delta_layers == (True, False)
    assert mixed.equal_layers(3).attention_layers == (0, 1, 2)
