"""What a step's time means for money, against closed forms."""

import dataclasses

import jax.numpy as jnp
import pytest

from model.catalog import find_model
from model.dtypes import BFLOAT16, Dtypes
from profiles.chips.calibration import calibration_of
from profiles.chips.chip import Price
from profiles.chips.slices import parse_slice
from profiles.expected import answers, balance, economics, economics_text, speculation
from profiles.expected.estimate import Estimator
from profiles.expected.sized_links import SizedLinks
from profiles.expected.text import consequences
from profiles.floor.deployment import Deployment
from profiles.floor.expert_layer import Domains
from profiles.floor.passes import Pass
from profiles.floor.sized_models import SizedModel, sized_models
from profiles.floor.speculation import largest_paying_batch
from profiles.report.numbers import number
from sharding.catalog import find_layout
from sharding.quantization import QUANTIZATIONS
from tests.profiles.sized import WINDOWED

DENSE = SizedModel("dense", "this test", 10, 1000, 10**10, 10**10, cached=10**5, attention_flops=0)
MIXTURE = dataclasses.replace(
    DENSE, active=10**9, in_experts=9 * 10**9, experts=256, experts_per_token=8
)
PRICE = Price(2.0)


def estimator(model, topology="h100:8", dtypes=BFLOAT16) -> Estimator:
    slice = parse_slice(topology)
    chip = slice.chip.override(bandwidth=3e12, flops=9e14)
    slice = dataclasses.replace(slice, chip=chip)
    calibration = calibration_of(chip.name)
    return Estimator(
        Deployment(model=model, slice=slice, dtypes=dtypes, calibration=calibration, price=PRICE)
    )


def test_critical_batch_is_peak_times_bytes_over_twice_the_bandwidth_times_sparsity():
    assert balance.critical_batch(estimator(DENSE)) == pytest.approx(9e14 * 2 / (2 * 3e12))
    int8 = estimator(DENSE, dtypes=Dtypes(jnp.bfloat16, QUANTIZATIONS["int8"]))
    assert balance.critical_batch(int8) == pytest.approx(300 / 2, rel=0.01)  # and scales
    assert balance.critical_batch(estimator(MIXTURE)) == pytest.approx(300 * 10)


def test_the_critical_batch_of_a_real_model_counts_what_its_arrays_do():
    config, slice = find_model("llama3-8b"), parse_slice("v5e:2x4")
    deployment = Deployment(
        model=config,
        slice=slice,
        dtypes=BFLOAT16,
        calibration=calibration_of("v5e"),
        layout=find_layout("weight_stationary_1d"),
        mesh={"x": 1, "y": 8, "z": 1},
    )
    found = balance.critical_batch(Estimator(deployment))
    assert found == pytest.approx(197e12 * 2 / (2 * 859e9), rel=0.01)  # attention to itself


def test_the_cache_costs_as_much_as_compute_at_the_balanced_context():
    found = balance.balanced_context(estimator(DENSE))
    compute = 2 * 10**10 / 9e14
    assert found == pytest.approx(compute * 3e12 / (2 * 10**5), abs=2)
    assert balance.slopes(estimator(DENSE), round(found)).kv_cache >= compute / 8
    windowed = dataclasses.replace(DENSE, cached=1, windowed=10**5, window=4)
    assert balance.balanced_context(estimator(windowed)) > 10**7


def test_mfu_halves_at_twice_the_balanced_context_without_arithmetic_of_attention():
    found = balance.balanced_context(estimator(DENSE), 2.0)
    assert found == pytest.approx(2 * balance.balanced_context(estimator(DENSE)), abs=3)
    assert balance.least_mfu(estimator(DENSE)) == 0
    attending = estimator(dataclasses.replace(DENSE, attention_flops=10**7))
    # 2e10 + 1e7 s FLOPs at 9e14 take half as long as 2e5 (s + 1) bytes at 3e12.
    halved = (2 * 2e10 / 9e14 - 2e5 / 3e12) / (2e5 / 3e12 - 2 * 1e7 / 9e14)
    assert balance.balanced_context(attending, 2.0) == pytest.approx(halved, abs=2)
    assert balance.least_mfu(attending) == pytest.approx(1e7 / 9e14 / (2e5 / 3e12))  # 1/6


def test_mfu_never_halves_where_attention_does_more_than_half_the_arithmetic_there_is_time_for():
    """A latent of 576 bfloat16 numbers meets 128 heads: 2 x 128 x 1088 FLOPs for 1,152 bytes."""
    latent = estimator(sized_models()["deepseek-v3-even"])
    assert balance.balanced_context(latent, 2.0) is None
    found = balance.least_mfu(latent)
    assert found == pytest.approx(2 * 128 * 1088 / 9e14 * 3e12 / 1152, rel=1e-6)  # 0.806
    windowed = dataclasses.replace(DENSE, cached=0, windowed=10**5, window=4)
    assert balance.least_mfu(estimator(windowed)) == 1


def test_drafts_of_a_model_with_states_are_said_to_be_refused():
    found = answers.Speculation(3, 0.8, 2.95, 6e-3, 2e-3, 2.2, 1, None)
    names = "qwen3-next-80b-a3b", "llama3-8b"
    states, others = (
        economics_text.speculation(found, Pass(64, 2048), find_model(name)) for name in names
    )
    assert "generate.py refuses drafts for qwen3-next-80b-a3b" in states[-1]
    assert [line.replace(*names) for line in states[:-1]] == others


def test_batching_gain_is_cost_alone_over_the_least_cost():
    assert balance.batching_gain(estimator(DENSE), 0) == pytest.approx(300, rel=1e-4)
    every = balance.batching_gain(estimator(MIXTURE), 0, every_expert=True)
    assert every == pytest.approx(3000, rel=1e-3)  # as the simplest equation has it
    touched = balance.batching_gain(estimator(MIXTURE), 0)
    assert touched == pytest.approx(3000 * (1e9 + 9e9 * 8 / 256) / 1e10, rel=1e-3)
    long = balance.batching_gain(estimator(DENSE), 10**6)
    assert long == pytest.approx((2 * 10**10 + 2e11) / 2e11, rel=1e-3)


def test_what_fits_is_capacity_less_weights_over_a_sequences_cache():
    one = estimator(DENSE)
    free = one.peaks.capacity - 2 * 10**10 / 8
    assert balance.largest_batch(one, 999) == int(free // (2 * 10**5 * 1000 / 8))
    assert balance.largest_batch(estimator(DENSE, "l4:1"), 10) == 1818  # of 2.2 MB, in 4 GB
    small = dataclasses.replace(DENSE, total=10**12)
    assert balance.largest_batch(estimator(small), 10) == 0
    rings = estimator(dataclasses.replace(DENSE, cached=0, windowed=10**5, window=100))
    for context, spare, kept in ((999, 0, 100), (999, 4, 104), (101, 4, 102)):
        found = balance.largest_batch(rings, context, spare=spare)
        assert found == int(free // (2 * 10**5 * kept / 8))
    assert balance.drain_s(one) == pytest.approx(one.peaks.capacity / 3e12)


def test_the_best_batch_is_the_largest_within_a_target():
    one = estimator(DENSE)
    within = one.decode(200, 1000).expected.seconds
    assert economics.best_batch(one, 1000, within).pass_.batch == 200
    assert economics.best_batch(one, 1000, 1e-9) is None
    everything = economics.best_batch(one, 1000, 1e9)
    assert everything.pass_.batch == balance.largest_batch(one, 1000) and everything.fits


def test_a_request_that_just_missed_a_batch_waits_for_one_and_runs():
    step = estimator(DENSE).decode(64, 1000)
    found = economics.schedule(step, 10)
    assert found.longest_wait_s == found.period_s == step.expected.seconds
    assert found.total_s == pytest.approx(11 * step.expected.seconds)


def test_a_cached_prefix_saves_its_arithmetic_and_decoding_costs_more_than_prompts():
    one = estimator(DENSE)
    costs = economics.phase_costs(one, prompt=10_000, cached=9_000, batch=8, context=10_000)
    assert costs.prefill / costs.cached_prefill == pytest.approx(10, rel=0.4)
    assert costs.decode > 5 * costs.prefill


def test_holding_a_prompt_costs_its_share_of_memory_and_computing_it_again_all_of_the_chips():
    one = estimator(DENSE)
    share = 1000 * 2 * 10**5 / 8 / one.peaks.capacity
    prefill = one.prefill(1, 1000).expected.seconds
    assert economics.recomputed_after_s(one, 1000) * share == pytest.approx(prefill)


def test_tokens_to_train_on_follow_from_the_mfu_of_the_step_that_serves():
    step = estimator(DENSE).decode(64, 1000)
    found = answers.training(step, 10**10, 1e6, 10)
    life, optimum = economics_text.trained(found, step.pass_, 1e6, 10)
    assert life.startswith("served over 10 days at 1,000,000 tokens/s: 0.864 trillion tokens")
    mfu = 2e10 * 64 / step.expected.seconds / (8 * 9e14)
    tokens = 1e6 * 10 * 86_400 * 2 / 6 * 0.4 / mfu
    assert f"step of 64, {number(mfu)}, and 0.4 in training" in optimum
    assert f"; {number(tokens / 1e12)} trillion at the expected MFU" in optimum
    assert optimum.endswith(f" {number(tokens / 2e11)} times as many")


def test_a_million_tokens_held_cost_their_bytes_of_what_each_device_costs():
    """200 kB a token; a chip at 2 USD an hour, and DDR at 76,999 USD for 4.096 TB over 5 years."""
    found = answers.held(estimator(DENSE), 1000, [300.0, 3600.0])
    own, ddr, flash, disk = (tier.usd_per_million_tokens for tier in found.tiers)
    assert found.bytes_per_token == 2e5
    capacity = estimator(DENSE).recommended_chip.capacity
    assert own == pytest.approx([2e11 * 2 / capacity / 12, 2e11 * 2 / capacity])
    assert ddr[1] == pytest.approx(2e11 * 76_999 / 4.096e12 * 3600 / (5 * 365 * 24 * 3600))
    assert own[0] > ddr[0] > flash[0] > disk[0]
    for tier in found.tiers:  # a fetch costs as much as holding for the time to read it all
        assert tier.fetches[0] == pytest.approx(300 / tier.read_s)
    free = dataclasses.replace(estimator(DENSE).deployment, price=None)
    assert answers.held(Estimator(free), 1000, [300.0]).tiers[0].usd_per_million_tokens is None


def test_attention_that_reads_the_root_of_the_context_halves_mfu_at_the_square():
    """At 4,500 tokens twice the time of arithmetic: 2 x 2e10 / 9e14 over 2e5 / 3e12, less one."""
    found = answers.utilization(estimator(DENSE))
    twice = 2 * (2e10 / 9e14) / (2e5 / 3e12)
    assert found.halves_at_context_tokens == pytest.approx(twice, abs=3)
    assert found.halves_at_context_tokens_of_root == pytest.approx(twice**2, rel=0.01)


def test_a_faster_step_is_one_of_fewer_users_and_a_dearer_token():
    one = estimator(DENSE)
    batch = balance.largest_batch(one, 1000)
    price = economics.price_of_speed(one, 1000, batch, 2.0)
    faster = economics.best_batch(one, 1000, one.decode(batch, 1000).expected.seconds / 2)
    assert price == pytest.approx(
        faster.cost(faster.expected.seconds)
        / one.decode(batch, 1000).cost(one.decode(batch, 1000).expected.seconds)
    )
    assert price > 1 and economics.price_of_speed(one, 1000, batch, 1e6) is None


def test_stages_divide_weights_but_not_the_cache_per_chip():
    one, four = (economics.pipeline(estimator(MIXTURE), n, 64, 1000) for n in (1, 4))
    assert four.weights == pytest.approx(one.weights / 4)
    assert four.kv_cache == one.kv_cache
    sent = 3 * 64 * 1000 * 2 / (8 * 50e9)
    assert four.sent_s == pytest.approx(sent) and four.step_s == one.step_s > sent
    assert four.inside_over_between == pytest.approx(50 / 450 * 8 * 2 * 10 / 4)
    slow = economics.pipeline(estimator(MIXTURE), 4, 64, 1000, hop_s=2e-3)
    assert slow.step_s == pytest.approx(four.step_s + 4 * 2e-3)
    assert economics.pipeline(estimator(DENSE), 4, 64, 1000).inside_over_between is None


@pytest.mark.parametrize("model", [find_model("deepseek-v3"), sized_models()["deepseek-v3-even"]])
def test_layers_without_experts_hide_no_hop(model):
    """The first 3 of 61 layers are dense, so that 58 send tokens to experts."""
    slice, given = parse_slice("gb200:72"), {"calibration": calibration_of("gb200")}
    found = Deployment(model=model, slice=slice, dtypes=BFLOAT16, stages=4, **given)
    assert found.inside_over_between == pytest.approx(1 / 9 * 8 * 2 * 58 / 4)


def test_a_pipeline_says_how_many_layers_of_experts_a_stage_has():
    one = estimator(sized_models()["deepseek-v3-even"], "gb200:72")
    found = answers.pipelined(one, Pass(2048, 1000), 4, 0.0)
    assert (found.layers_per_stage, found.expert_layers_per_stage) == (61 / 4, 58 / 4)
    _, said = economics_text.pipelined(found, one.deployment.model)
    assert "network over fabric, 0.111, x 8 experts x 2 x 14.5 layers of experts per stage" in said


def test_what_stages_save_of_weights_is_room_for_sequences():
    one = estimator(DENSE)
    free = one.peaks.capacity - 2 * 10**10 / 8 / 4
    assert balance.largest_batch(one, 999, stages=4) == int(free // (2 * 10**5 * 1000 / 8))


def test_a_price_step_at_a_context_implies_the_size_of_a_cached_token():
    assert economics.implied_kv_bytes(1e11, 600, 200_000) == pytest.approx(1667, abs=1)


def test_sized_models_are_the_sums_of_their_configurations():
    found = sized_models()["deepseek-v3-even"]
    d, layers = 7168, 61
    attention = d * 1536 + 1536 * 128 * 192 + d * 576 + 512 * 128 * 256 + 128 * 128 * d
    expert, dense, table = 3 * d * 2048, 3 * d * 18_432, 129_280 * d
    active = layers * attention + 3 * dense + 58 * (9 * expert + 256 * d) + table
    assert found.active == active and found.in_experts == 58 * 256 * expert
    small = 58 * 256 + layers * (2 * d + 1536 + 512) + d  # norms and router biases
    assert found.total == active + 58 * 248 * expert + table + small
    assert found.cached == layers * 576 and found.attention_flops == layers * 2 * 128 * 1088
    assert found.expand_flops == layers * 2 * 512 * 128 * 256


def test_a_sized_model_reads_its_latents_once_and_the_experts_that_tokens_choose():
    one = estimator(sized_models()["deepseek-v3-even"], "h100:8")
    few, many = one.decode(1, 1000), one.decode(4096, 1000)
    assert few.counts.kv_read == pytest.approx(1000 * 35_136 * 2 / 8)
    chosen = 2 * 653_908_770_816 * 8 / 256 / 8
    plain = 2 * (671_026_419_200 - 653_908_770_816 - 926_679_040) / 8
    assert few.counts.weights_read == pytest.approx(plain + chosen, rel=1e-3)
    assert many.counts.weights_read == pytest.approx(2 * 670e9 / 8, rel=2e-3)
    assert not few.fits and one.describe().mesh is None


def test_a_prompt_of_a_sized_model_does_the_least_arithmetic_there_is():
    """One position meets the unembedding; latents before it are absorbed, or expanded if cheaper.

    Tokens are cached once, and no row of the embedding is read twice.
    """
    model = sized_models()["deepseek-v3-even"]
    one = estimator(model, "h100:8")
    pairs = model.prompt_flops * 4096 * 4097 / 2
    table = 129_280 * 7168
    work = 2 * ((model.active - table) * 4096 + table) + pairs
    assert one.prefill(1, 4096).counts.flops == pytest.approx(work / 8)
    after = one.prefill(1, 4096, 1000).counts.flops
    expanded = 1000 * (4096 * model.prompt_flops + model.expand_flops)
    assert after == pytest.approx((work + expanded) / 8)
    short = one.prefill(1, 2, 1000).counts.flops - one.prefill(1, 2).counts.flops
    assert short == pytest.approx(1000 * 2 * model.attention_flops / 8)
    many = one.prefill(64, 8192).counts
    assert many.weights_read <= many.weights_resident
    windowed = estimator(WINDOWED, "h100:8").prefill(1, 1000).counts
    assert windowed.kv_written == 2 * 18_432 * (1000 + 128) / 8


def test_a_step_that_verifies_drafts_reads_once_and_multiplies_as_often_as_it_has_tokens():
    one = estimator(DENSE)
    found = speculation.verifying_floor(one, 64, 1000, 4)
    plain = one.decode(64, 1000).floor
    assert found.weights == plain.weights and found.compute == pytest.approx(4 * plain.compute)
    row = 64 * 2 * 10**5 / 8 / 3e12  # of the cache, one token of each sequence
    assert found.kv_cache == pytest.approx(1000 * row + 4 * row)
    assert speculation.verifying_floor(one, 64, 1000, 1) == plain


def delta_estimator() -> Estimator:
    """Of a model most of whose layers keep a state."""
    deployment = Deployment(
        model=find_model("qwen3-next-80b-a3b"),
        slice=parse_slice("h100:1"),
        dtypes=BFLOAT16,
        calibration=calibration_of("h100"),
        layout=find_layout("weight_stationary_1d"),
        mesh={"x": 1, "y": 1, "z": 1},
    )
    return Estimator(deployment)


def test_states_that_take_longer_than_arithmetic_leave_no_context_to_balance():
    one = delta_estimator()
    lines = consequences(one, [one.decode(8, 1000)])
    assert "balanced context: none; states cost more than compute" in "\n".join(lines)
    (halved,) = economics_text.halved(answers.utilization(one))
    assert halved.startswith("MFU is below half at every context")


def test_a_state_is_written_once_for_all_tokens_of_a_step_and_is_none_of_their_bytes():
    one = delta_estimator()
    token = 12 * 2 * 2 * 256 * 2  # keys and values of two heads in each of twelve layers
    assert economics.token_bytes(one) == answers.held(one, 1000, [300.0]).bytes_per_token == token
    many, alone = (speculation.verifying_floor(one, 8, 1000, n).kv_cache for n in (4, 1))
    assert many - alone == pytest.approx(8 * 3 * token / one.peaks.bandwidth)


def test_speculation_pays_up_to_the_batch_of_the_closed_form():
    one = estimator(DENSE)
    for context in (0, 500):
        weights, row = 2 * 10**10 / 8 / 3e12, 2 * 10**5 / 8 / 3e12
        kv, compute = (context + 1) * row, 2 * 10**10 / 8 / 9e14
        expected = weights / (3 * compute / (1 + 0.5 + 0.25) - kv)
        assert expected == pytest.approx(largest_paying_batch(weights, kv, compute, 2, 0.5))
        first, last = speculation.paying_batches(one, context, 2, 0.5)
        assert first == 1 and last == int(expected)
    assert speculation.paying_batches(one, 0, 3, 1.0) == (1, 300)  # the critical batch
    assert speculation.paying_batches(one, 10_000, 1, 0.9) == (1, None)
    assert speculation.paying_batches(one, 1000, 1, 0.0) is None


def test_at_few_sequences_a_mixtures_drafts_read_experts_of_their_own():
    """All weights in experts: at batch 1 four tokens read almost four times what one does."""
    one = estimator(dataclasses.replace(MIXTURE, total=10**10, in_experts=10**10))
    touched = 256 * (1 - (1 - 8 / 256) ** 4) / 8
    assert speculation.speedup(one, 1, 0, 3, 0.3) == pytest.approx(1.417 / touched, rel=1e-3)
    first, last = speculation.paying_batches(one, 0, 3, 0.3)
    assert 1 < first < last < 3000
    assert speculation.speedup(one, first - 1, 0, 3, 0.3) <= 1
    assert speculation.speedup(one, last + 1, 0, 3, 0.3) <= 1


@pytest.mark.parametrize("topology, size", [("gb200:72", 72), ("gb200:72*2", 72), ("h100:16", 8)])
def test_an_expert_layers_exchange_is_that_of_the_links(topology, size):
    slice = parse_slice(topology)
    calibration = calibration_of(slice.chip.name)
    sent = SizedLinks(MIXTURE, BFLOAT16, slice, calibration).communication(4096).transfer
    chip = slice.chip.recommended
    domains = Domains(slice.chips, size, chip.fabric, chip.network)
    payload = 4096 * 8 * 1000 * 2 / slice.chips
    assert sent == pytest.approx(2 * MIXTURE.layers * domains.exchange_s(payload))
    # The first layers of some mixtures have no experts, and send nothing to any.
    some = dataclasses.replace(MIXTURE, dense_layers=4)
    links = SizedLinks(some, BFLOAT16, slice, calibration).communication(4096)
    assert links.transfer == pytest.approx(0.6 * sent) and MIXTURE.layers == 10


def test_a_larger_domain_has_a_step_as_much_shorter_and_tokens_that_travel_less_in_one_alone():
    steps = {n: estimator(DENSE, f"gb200:{n}").decode(64, 1000).floor for n in (8, 72, 504)}
    assert steps[8].bound == "weights"
    assert steps[8].memory / steps[72].memory == pytest.approx(9)
    assert steps[72].memory / steps[504].memory == pytest.approx(7)
    travel = {n: Domains(n, min(n, 72), 900e9, 100e9).exchange_s(1e6 / n) for n in (8, 72, 504)}
    assert travel[8] / travel[72] == pytest.approx(9 * (7 / 8) / (71 / 72))
    assert travel[504] / travel[72] == pytest.approx(6 / 7 / 7 * 9 / (71 / 72))  # 1.12
