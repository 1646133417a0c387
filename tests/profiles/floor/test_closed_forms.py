"""Closed forms of what a floor says of money, against cases worked out by hand."""

import math

import pytest

from profiles.floor import expert_layer, pipelines, speculation, tiers, traffic, training


def test_a_step_keeps_the_drafts_before_the_first_that_is_rejected_and_one_token():
    """Outcomes listed by hand: two drafts at 0.5 keep 1, 2 or 3 tokens with 1/2, 1/4, 1/4."""
    assert speculation.tokens_per_step(2, 0.5) == pytest.approx(1 / 2 + 2 / 4 + 3 / 4)
    assert speculation.tokens_per_step(3, 1.0) == 4 and speculation.tokens_per_step(3, 0.0) == 1
    assert speculation.tokens_per_step(4, 0.8) == pytest.approx((1 - 0.8**5) / (1 - 0.8))


def test_speculation_stops_paying_where_its_arithmetic_takes_as_long_as_the_read_it_saves():
    """2 ms of weights, 10 us a token: critical batch 200; 1.5 of 2 tokens kept leaves 150."""
    found = speculation.largest_paying_batch(2e-3, 0.0, 1e-5, 1, 0.5)
    assert found == pytest.approx(150)
    with_cache = speculation.largest_paying_batch(2e-3, 5e-6, 1e-5, 1, 0.5)
    assert with_cache == pytest.approx(2e-3 / (2 * 1e-5 / 1.5 - 5e-6))  # 240
    plain = 2e-3 + with_cache * 5e-6
    assert 2 * with_cache * 1e-5 / 1.5 == pytest.approx(plain)
    assert math.isinf(speculation.largest_paying_batch(2e-3, 2e-5, 1e-5, 1, 0.5))


def test_holding_for_the_drain_time_costs_what_one_fetch_does_whatever_a_device_costs():
    tier = tiers.Tier("t", "d", capacity=8e12, bandwidth=4e9, round_s=(1, 4))
    assert tier.drain_s == 2000 and tier.round_drain_s == 2
    price, held, size = 0.37, 500, 6e9  # USD per second, seconds, bytes
    holding, fetch = price * held * size / 8e12, price * size / 4e9
    assert tier.fetches(held) == pytest.approx(holding / fetch)


def test_five_minutes_imply_flash_and_an_hour_implies_disk_by_round_figures():
    """By devices an hour is flash still: 1.7 drain times of it, a 23rd of a disk's."""
    offered = tiers.tiers("gb200", 1.979e11, 8e12)
    assert [tier.name for tier in offered] == ["HBM", "DDR", "flash", "disk"]
    for seconds, name in ((0.02, "HBM"), (1, "DDR"), (10, "DDR"), (300, "flash"), (3600, "disk")):
        assert tiers.implied(offered, seconds, rounded=True).name == name
    assert [tiers.implied(offered, each).name for each in (300, 3600)] == ["flash", "flash"]
    drains = [1.979e11 / 8e12, 6e12 / 460.8e9, 32e12 / 14.8e9, 24e12 / 285e6]
    assert [tier.drain_s for tier in offered] == pytest.approx(drains)
    assert drains[0] == pytest.approx(0.02, rel=0.25) and drains[1] == pytest.approx(10, rel=0.35)


def test_the_traffic_that_fills_a_system_is_its_batch_times_its_steps_per_second():
    """In round figures 2,000 x 64; a thousand such systems pass hundreds of millions a second."""
    assert traffic.filling(2000, 1 / 64) == pytest.approx(128_000, rel=0.01)
    found = {each.name: each.tokens_per_s for each in traffic.services()}
    assert found["OpenAI's API"] == 100e6
    assert (
        found["Google"] == pytest.approx(3.2e15 / (30 * 24 * 3600)) == pytest.approx(1.235e9, 1e-3)
    )


def test_training_as_dear_as_serving_is_a_hundred_times_past_the_compute_optimal_point():
    """200 trillion tokens for 100 billion parameters, as many trained on as served.

    They are as many where serving reaches a third of training's MFU: 2 N over 1/3 is 6 N.
    """
    trained = training.balanced_tokens(200e12, served_mfu=0.1, trained_mfu=0.3)
    assert trained == pytest.approx(200e12)
    assert training.past_optimal(trained, 100e9) == pytest.approx(100, rel=0.01)
    assert 6 * 7e9 * training.balanced_tokens(3e12) == pytest.approx(2 * 7e9 * 3e12)
    assert training.past_optimal(1.4e12, 70e9) == pytest.approx(1)  # Chinchilla's own


def test_a_stage_of_a_layer_of_eight_experts_hides_its_hop_over_a_network_of_an_eighth():
    """A token of d numbers: 2 x k x d a layer inside at 8, d to the next stage at 1."""
    d, layers, chosen = 7168, 3, 4
    inside, between = layers * 2 * chosen * d / 8, d / 1
    assert pipelines.inside_over_between(1 / 8, chosen, layers) == inside / between == 3
    assert pipelines.inside_over_between(1 / 8, 8, 1) == 2
    assert pipelines.least_layers(1 / 8, 8) == 1 and pipelines.least_layers(1 / 8, 1) == 4


def test_hops_of_a_few_milliseconds_make_twenty_of_them_thirty_over_four_stages():
    assert pipelines.with_hops(20e-3, 4, 2.5e-3) == pytest.approx(30e-3, rel=0.01)
    assert pipelines.with_hops(20e-3, 1, 2.5e-3) == 20e-3


def test_an_expert_layer_over_two_racks_takes_four_times_as_long_over_a_network_of_an_eighth():
    """Half of the bytes at an eighth of the rate; of one large rack all, but its own part, at 1."""
    two = expert_layer.Domains(chips=2_000_000, size=1_000_000, fabric=8.0, network=1.0)
    one = expert_layer.Domains(chips=1_000_000, size=1_000_000, fabric=8.0, network=1.0)
    assert two.exchange_s(1.0) / one.exchange_s(1.0) == pytest.approx(4, rel=0.01)
    exact = expert_layer.Domains(144, 72, 900e9, 100e9).exchange_s(1e6)
    assert exact == pytest.approx(0.5e6 / 100e9)
    inside = expert_layer.Domains(72, 72, 900e9, 100e9).exchange_s(1e6)
    assert exact / inside == pytest.approx(9 / 2 * 72 / 71)
    even = expert_layer.Domains(16, 8, 900e9, 900e9).exchange_s(16.0)
    assert even == pytest.approx(8 / 900e9)  # 7 parts of 16 inside, 8 between


def test_256_experts_are_four_each_on_64_of_72_chips():
    assert expert_layer.placed(256, 72) == (4, 64)
    assert expert_layer.placed(256, 144) == (2, 128)
    assert expert_layer.placed(8, 72) == (1, 8) and expert_layer.placed(256, 8) == (32, 8)
