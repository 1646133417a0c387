"""scripts/plan.py as a user runs it."""

import pytest

from tests.scripts.running import Ended, named, run_many

_ON = ["--model=llama3-8b", "--topology=v5e:2x2,v5e:2x4"]
CASES = {
    "plan": [*_ON, "--context=4096", "--max_step_ms=20"],
    "json": [*_ON, "--context=4096", "--max_step_ms=20", "--json=-"],
    "lengths": [*_ON, "--prompt_length=1000", "--generated_tokens=500", "--json=-"],
    "turns": ["--model=llama3-8b", "--chip=h100", "--max_chips=1", "--weight_dtype=fp8",
              "--json=-"],
    "fp8": ["--model=llama3-8b", "--weight_dtype=fp8", "--dtype=fp8", "--max_chips=1"],
    "own price": [*_ON, "--context=4096", "--max_step_ms=20", "--price_per_chip_hour=2.4",
                  "--json=-"],
    "provider": [*_ON[:1], "--chip=h200,v5e", "--max_chips=1", "--provider=RunPod", "--json=-"],
    "one slice": ["--topology=v5e:8x8", "--price_per_chip_hour=0.7", "--kv_dtype=int8"],
    "infeasible": [*_ON, "--max_step_ms=1"],
    "zero step": [*_ON, "--max_step_ms=0"],
    "negative budget": [*_ON, "--budget_per_hour=-1"],
    "zero context": [*_ON, "--context=0"],
    "long context": [*_ON, "--context=8192"],
    "long answer": [*_ON, "--prompt_length=8000", "--generated_tokens=1000"],
    "answer alone": [*_ON, "--generated_tokens=10"],
    "chip": ["--model=llama3-8b", "--chip=v5x"],
    "topology": ["--model=llama3-8b", "--topology=v5e:3x3"],
    "layout": [*_ON, "--layout=3d"],
    "cache": [*_ON, "--kv_dtype=int3"],
    "weights": [*_ON, "--weight_dtype=int3"],
    "no price": ["--model=llama3-8b", "--chip=gb200"],
    "one price": ["--model=llama3-8b", "--price_per_chip_hour=2"],
    "experts": [*_ON, "--expert_parallel"],
    "sizes": ["--model=deepseek-v3-even", "--topology=h200:8", "--layout=weight_stationary_1d"],
    "short model": ["--model=palm-8b", "--topology=v5e:2x4", "--max_first_token_ms=5000"],
    "long prompt": [*_ON, "--prompt_length=3000", "--context=1000"],
    "prompts": ["--model=llama3-8b", "--topology=v5e:2x4", "--layout=weight_stationary_2d",
                "--prefill_layout=weight_gathered_xyz", "--prompt_length=1000"],
    "dense": [*_ON, "--experts=all"],
    "turned": ["--model=llama3-8b", "--topology=v5e:4x2,v5e:2x4", "--context=4096"],
    "for nothing": [*_ON, "--price_per_chip_hour=0"],
    "stages": ["--model=llama3-70b", "--topology=v5e:2x4,v5e:2x4*2", "--weight_dtype=int8",
               "--kv_dtype=int8", "--json=-"],
    "none": ["--stages=0"],
    "thin": [*_ON, "--stages=1,64"],
    "not joined": ["--model=llama3-8b", "--topology=h100:8", "--stages=2"],
    "hops of none": [*_ON, "--stages=1", "--hop_ms=2"],
    "back in time": [*_ON, "--hop_ms=-2"],
}  # fmt: skip


@pytest.fixture(scope="module")
def ended(tmp_path_factory) -> dict[str, Ended]:
    return run_many("plan.py", named(CASES, "llama3-70b"), folder=tmp_path_factory.mktemp("plan"))


def test_a_plan_names_the_choice_with_its_floor_and_expected_time_and_why_others_lost(ended):
    done = ended["plan"]
    assert done.code == 0, done.stderr
    assert "choice: v5e:" in done.stdout
    assert "floor    " in done.stdout
    assert "expected " in done.stdout
    assert "calibration tpu-v5e-2025" in done.stdout
    assert "1.2 USD per chip-hour (on-demand, Google Cloud" in done.stdout
    for neighbour in ("batch", "layout", "attention by", "weights bfloat16", "v5e:2x"):
        assert f"\n  {neighbour}" in done.stdout
    assert not done.jax_started


def test_the_document_has_the_choice_the_front_and_the_rejected(ended):
    found = ended["json"].document
    assert found["schema"] == 1
    assert found["choice"] == found["pareto"][-1]
    assert found["choice"]["price"]["provider"] == "Google Cloud"
    steps = [record["expected_s"] for record in found["pareto"]]
    costs = [record["usd_per_million_tokens"] for record in found["pareto"]]
    assert steps == sorted(steps)
    assert costs == sorted(costs, reverse=True)
    assert max(steps) <= 0.02
    assert all(each.keys() == {"what", "why"} for each in found["rejected"])
    assert {record["context"] for record in found["pareto"]} == {4096}


def test_terms_are_times_and_words_say_what_runs_beside_what(ended):
    terms = ended["turns"].document["choice"]["expected_terms_s"]
    assert all(type(seconds) is float for seconds in terms.values())
    assert sum(terms.values()) == pytest.approx(ended["turns"].document["choice"]["expected_s"])
    assert "adds" not in ended["turns"].stderr
    assert "; communication after reading, arithmetic after it)" in ended["turns"].stderr
    assert "; communication beside reading, arithmetic beside it)" in ended["plan"].stdout


def test_arithmetic_in_few_bits_is_of_chips_that_multiply_them(ended):
    assert ended["fp8"].code == 0
    (left,) = [line for line in ended["fp8"].stderr.splitlines() if "multiply in fp8" in line]
    assert "v5e" in left and "h100" not in left
    assert "that the network joins, arithmetic in fp8. Ways" in ended["fp8"].stdout
    assert "use --dtype" not in ended["fp8"].stdout
    assert "which multiplies fp8 weights in fp8 on h100: use --dtype=fp8" in ended["turns"].stderr


def test_lengths_give_the_context_half_way_and_room_for_all(ended):
    choice = ended["lengths"].document["choice"]
    assert choice["context"] == 1250
    assert "room for 1,500" in ended["lengths"].stderr


def test_lengths_make_steps_those_of_a_service_and_prompts_part_of_the_price(ended):
    choice = ended["lengths"].document["choice"]
    lengths = choice["prompt_length"], choice["generated_tokens"]
    assert choice["phase"] == "serving" and lengths == (1000, 500)
    assert choice["concurrency"] == choice["batch"]
    assert "prompts of 1,000 and answers of 500 tokens beside" in ended["lengths"].stderr
    assert choice["expected_s"] == choice["expected_forms_s"]["beside"]
    assert "batches fit with caches that have room for 1,500 tokens" in ended["lengths"].stderr
    assert "batches fit with caches" not in ended["json"].stderr
    usd = choice["price"]["usd_per_chip_hour"] / 3600 / choice["tokens_per_s_per_chip"] * 1e6
    assert choice["usd_per_million_tokens"] == pytest.approx(usd)


def test_several_slices_are_a_pipeline_where_that_is_cheaper_and_the_plan_says_why(ended):
    choice, said = ended["stages"].document["choice"], ended["stages"].stderr
    assert (choice["topology"], choice["chips"]) == ("v5e:2x4*2", 16)
    assert choice["pipeline"] == {"stages": 2, "hop_s": 2e-5}
    rate = 2 * choice["batch"] / choice["expected_s"]
    assert choice["tokens_per_s"] == pytest.approx(rate)
    assert "  pipeline of 2 stages, each on v5e:2x4: weights " in said
    assert "v5e:2x4 alone, for batches that it holds: costs" in said
    assert "on 1 slice and 1 of several that the network joins." in said


def test_a_price_twice_as_high_costs_twice_as_much(ended):
    listed, given = (ended[name].document["choice"] for name in ("json", "own price"))
    assert given["usd_per_million_tokens"] == pytest.approx(2 * listed["usd_per_million_tokens"])


def test_where_chips_cost_nothing_the_fastest_step_is_chosen(ended):
    done = ended["for nothing"]
    assert done.code == 0 and "Warning" not in done.stderr
    assert ": 0 USD per million tokens" in done.stdout


def test_a_provider_who_lists_no_price_of_a_chip_is_named(ended):
    assert ended["provider"].code == 2
    assert "price of v5e is not listed on demand by RunPod" in ended["provider"].error


def test_the_model_is_llama3_70b_if_none_is_named_and_one_slice_is_singular(ended):
    title, *table = ended["one slice"].stdout.splitlines()
    assert title.startswith(
        "llama3-70b, decode at 2,048 cached tokens (room for 2,049), on 1 slice."
    )
    assert "0.7  given" in table[2] and "e+0" not in ended["one slice"].stdout


def test_a_prompt_is_as_long_as_a_short_model_goes_where_its_length_is_not_given(ended):
    assert "palm-8b, decode at 2,047 cached tokens" in ended["short model"].stdout
    assert "first token of a prompt of 2,047: expected" in ended["short model"].stdout


def test_a_cache_has_room_for_a_prompt_that_is_longer_than_the_context(ended):
    assert "decode at 1,000 cached tokens (room for 3,001)" in ended["long prompt"].stdout


def test_a_first_token_names_the_layout_of_prompts_where_it_is_another(ended):
    said = "first token of a prompt of 1,000"
    assert f"{said} by weight_gathered_xyz: expected" in ended["prompts"].stdout
    assert f"{said}: expected" in ended["lengths"].stderr


def test_a_turned_slice_is_the_same_slice(ended):
    assert "on 1 slice." in ended["turned"].stdout and "v5e:4x2" not in ended["turned"].stdout


def test_targets_that_contradict_end_with_1_and_the_nearest(ended):
    assert ended["infeasible"].code == 1
    assert "1 ms per step, which nothing meets; nearest: " in ended["infeasible"].error


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("zero step", "--max_step_ms is 0"),
        ("negative budget", "--budget_per_hour is -1"),
        ("zero context", "--context"),
        ("long context", "beyond the 8,192 tokens that llama3-8b goes to; use"),
        ("long answer", "beyond the 8,192 tokens that llama3-8b goes to; use"),
        ("answer alone", "--prompt_length"),
        ("chip", "'v5x'"),
        ("topology", "v5e:2x4"),
        ("layout", "'3d'"),
        ("cache", "'int3'"),
        ("weights", "'int3'"),
        ("no price", "price of gb200"),
        ("one price", "name one with --chip"),
        ("experts", "no experts"),
        ("dense", "--experts is all, but llama3-8b has no experts; leave it out"),
        ("sizes", "deepseek-v3-even is known by its sizes alone"),
        ("none", "--stages is '0'; use positive integers"),
        ("thin", "--stages is 64, but llama3-8b has 32 layers; use one stage a layer at most"),
        (
            "not joined",
            "--stages is 2, which no slices to compare are stages of: name so many with "
            "--topology, such as h100:8*2",
        ),
        ("hops of none", "--hop_ms is given, but nothing is a pipeline with --stages=1"),
        ("back in time", "--hop_ms is -2; use a number, 0 or more"),
    ],
)
def test_wrong_use_ends_with_2_and_one_line(ended, case, words):
    assert ended[case].code == 2
    assert words in ended[case].error
