"""estimate.py as a user runs it: tables, documents, what does not fit, and mistakes."""

import json

import pytest

from tests.scripts.running import named, run_many

CASES = {
    "table": ["--batch=1,64", "--context=2048,4096", "--weight_dtype=int8", "--kv_dtype=int8"],
    "document": ["--model=llama3-8b", "--topology=v5e:2x2,h100:1", "--batch=1", "--json=-"],
    "too_large": ["--topology=v5e:2x2", "--batch=1", "--json=-"],
    "fixed": ["--topology=v4:4x4x4", "--mesh=4x4x4", "--layout=weight_stationary_2d",
              "--attention=batch", "--batch=64", "--json=-"],
    "prompts": ["--model=llama3-8b", "--phase=prefill", "--context=2048", "--batch=4",
                "--cached=1024", "--json=-"],
    "sized": ["--model=deepseek-v3-even", "--topology=gb200:72", "--weight_dtype=fp8",
              "--economics", "--batch=1,2048", "--context=4096"],
    "given": ["--model=llama3-8b", "--hbm_bandwidth=1e12", "--price_per_chip_hour=2", "--batch=1",
              "--topology=v5e:2x2", "--json=-"],
    "provider": ["--model=llama3-8b", "--topology=h200:1,b200:1", "--provider=google cloud",
                 "--batch=1", "--json=-"],
    "no_provider": ["--provider=nobody"],
    "two_prices": ["--provider=AWS", "--price_per_chip_hour=1"],
    "twice": ["--model=llama3-8b", "--topology=v5e:2x4,v5e:2x4", "--batch=8,1,8", "--json=-",
              "--context=2048,2048", "--weight_dtype=int8,int8"],
    "all_experts": ["--model=mixtral-8x7b", "--experts=all", "--batch=1", "--json=-"],
    "mixture": ["--model=mixtral-8x7b", "--topology=v5e:2x4,h100:8", "--batch=64", "--json=-"],
    "model": ["--model=gpt-9"],
    "chip": ["--topology=v9:4x4"],
    "slice": ["--topology=v5e:3x5"],
    "layout": ["--layout=diagonal"],
    "dtype": ["--weight_dtype=int3"],
    "arithmetic": ["--topology=v3:4x4", "--weight_dtype=int8", "--round_activations"],
    "zero": ["--batch=0"],
    "negative": ["--context=-5"],
    "mesh": ["--mesh=4x4x4"],
    "figure": ["--hbm_bandwidth=-1"],
    "price": ["--price_per_chip_hour=-1"],
    "calibration": ["--calibration=none.json"],
    "short": ["--phase=prefill", "--context=1"],
    "two_chips": ["--model=llama3-8b", "--topology=v5e:2x2,h100:1", "--batch=1"],
    "prompts_otherwise": ["--model=llama3-8b", "--layout=weight_stationary_2d", "--batch=4",
                          "--mesh=4x2x2", "--prefill_layout=weight_gathered_xyz",
                          "--phase=prefill", "--json=-"],
    "prompts_by_batch": ["--model=llama3-8b", "--topology=v5e:2x4", "--phase=prefill",
                         "--batch=8", "--context=4096", "--layout=weight_stationary_2d",
                         "--attention=batch", "--mesh=2x2x2",
                         "--prefill_layout=weight_gathered_x", "--json=-"],
    "long_prompts": ["--model=llama3-8b", "--topology=v5e:1x1", "--phase=prefill", "--batch=1",
                     "--context=50000,900000", "--cached=1000", "--json=-",
                     "--max_context=1000000"],
    "rounded": ["--model=llama3-8b", "--weight_dtype=int8", "--round_activations", "--batch=1"],
    "no_topology": ["--topology="],
    "figure_of_two": ["--topology=v5e:4x4,h100:8", "--hbm_bandwidth=1e12"],
    "price_of_two": ["--topology=v5e:4x4,h100:8", "--price_per_chip_hour=1"],
    "endless": ["--hbm_bandwidth=inf"],
    "no_price": ["--price_per_chip_hour=nan"],
    "absurd_price": ["--price_per_chip_hour=1e308"],
    "no_home": ["--json=~nobody-of-this-name/a.json"],
    "long_name": [f"--json={'a' * 300}"],
    "at_home": ["--model=tiny", "--topology=v5e:1x1", "--batch=1", "--json=~/results/at_home.json"],
    "prompts_layout": ["--prefill_layout=diagonal"],
    "no_experts": ["--expert_parallel"],
    "sized_layout": ["--model=deepseek-v3-even", "--topology=h200:8",
                     "--layout=weight_stationary_2d"],
    "sized_mesh": ["--model=deepseek-v3-even", "--topology=h200:8", "--mesh=1x1x8"],
    "cached_steps": ["--cached=100"],
    "long": ["--model=llama3-8b", "--topology=v5e:2x4", "--batch=1", "--context=2048,8192"],
    "long_after_cached": ["--phase=prefill", "--context=8000", "--cached=193"],
    "cached_alone": ["--phase=prefill", "--cached=9000"],
    "dense": ["--experts=all"],
    "just_fits": ["--model=llama3-8b", "--topology=v5e:2x4", "--batch=1", "--context=8191",
                  "--json=-"],
    "short_model": ["--model=palm-540b", "--topology=v4:4x4x4", "--batch=1", "--json=-"],
    "on_purpose": ["--model=llama3-8b", "--topology=v5e:2x4", "--batch=1", "--context=20000",
                   "--max_context=20001", "--json=-"],
    "sized_length": ["--model=deepseek-v3-even", "--topology=h200:8", "--max_context=9"],
    "list_of_attention": ["--attention=heads,rows"],
    "one_token": ["--model=llama3-8b", "--topology=v5e:1x1", "--weight_dtype=int8", "--batch=1",
                  "--context=1", "--economics"],
    "four_bits": ["--model=llama3-8b", "--topology=b200:1", "--weight_dtype=bfloat16,nvfp4",
                  "--batch=512", "--json=four_bits.json"],
    "economics_of_prompts": ["--phase=prefill", "--economics"],
    "drafts": ["--model=llama3-8b", "--topology=h100:1", "--drafted=1", "--context=1"],
    "acceptance_alone": ["--acceptance=0.5"],
    "drafts_of_prompts": ["--phase=prefill", "--drafted=2"],
    "no_drafts": ["--drafted=0"],
    "held": ["--model=llama3-8b", "--topology=h100:1", "--held_s=300,3600", "--batch=1"],
    "nothing_served": ["--served_days=9"],
    "no_traffic": ["--served_tokens_per_s=nan"],
    "hops_alone": ["--hop_ms=3"],
    "no_hop": ["--stages=2", "--hop_ms=-1"],
    "thin_stages": ["--stages=81"],
    "no_network": ["--model=llama3-8b", "--topology=l4:2", "--stages=2"],
    "not_held": ["--held_s=60,-1"],
    "certain": ["--drafted=2", "--acceptance=1.5"],
    "answers": ["--model=deepseek-v3-even", "--topology=gb200:72", "--weight_dtype=fp8",
                "--batch=1,64", "--context=1024,4096", "--economics", "--drafted=3", "--held_s=300",
                "--served_tokens_per_s=1e6", "--stages=4", "--hop_ms=2.5", "--json=-"],
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("estimate")


@pytest.fixture(scope="module")
def ended(folder):
    cases = named(CASES, "llama3-70b")
    return run_many("estimate.py", cases, folder=folder, HOME=str(folder / "home"))


def test_what_a_list_names_twice_is_one_point(ended):
    assert [point["batch"] for point in ended["twice"].document["points"]] == [8, 1]


def test_a_table_names_peaks_calibration_and_price_and_has_a_row_for_each_point(ended):
    text = ended["table"].stdout
    assert ended["table"].code == 0 and not ended["table"].jax_started
    for words in ("859 GB/s", "197 TFLOP/s", "calibration tpu-v5e", "1.2 USD per chip-hour"):
        assert words in " ".join(text.split())
    rows = [line.split()[:2] for line in text.splitlines() if line.startswith("  ")]
    assert rows == [[context, batch] for context in ("2,048", "4,096") for batch in ("1", "64")]


def test_a_document_has_a_record_for_each_slice(ended):
    points = ended["document"].document["points"]
    assert [point["topology"] for point in points] == ["v5e:2x2", "h100:1"]
    for point in points:
        assert point["floor_s"] <= point["expected_s"] and point["status"] == "ok"
    assert [point["price"]["provider"] for point in points] == ["Google Cloud", "AWS"]
    assert ended["document"].document["calibration"]["source"]


def test_what_does_not_fit_is_a_result_with_the_least_slice_that_does(ended):
    (point,) = ended["too_large"].document["points"]
    assert ended["too_large"].code == 0 and point["status"] == "does_not_fit"
    assert not point["fits"] and "the least slice that fits is v5e:4x4" in point["message"]


def test_four_bit_floats_are_counted_at_the_rate_of_chips_that_multiply_them(ended, folder):
    words = " ".join(ended["four_bits"].stdout.split())
    assert "2,250 TFLOP/s of bfloat16 or 9,000 TFLOP/s of fp4 per chip" in words
    plain, four = json.loads((folder / "four_bits.json").read_text())["points"]
    assert four["weight_dtype"] == "nvfp4"
    assert four["floor_terms_s"]["compute"] == plain["floor_terms_s"]["compute"] / 4
    assert four["bytes_per_chip"]["weights_read"] < 0.35 * plain["bytes_per_chip"]["weights_read"]


def test_mesh_and_layout_are_as_given(ended):
    (point,) = ended["fixed"].document["points"]
    assert point["mesh"] == {"x": 4, "y": 4, "z": 4}
    assert (point["layout"], point["attention"]) == ("weight_stationary_2d", "batch")


def test_prompts_are_passes_of_many_tokens_after_those_in_the_cache(ended):
    (point,) = ended["prompts"].document["points"]
    assert (point["phase"], point["tokens_per_sequence"]) == ("prefill", 2048)
    assert point["context"] == 1024 and point["bytes_per_chip"]["kv_read"] > 0
    assert point["tokens_per_s"] == pytest.approx(4 * 2048 / point["expected_s"])


def test_what_follows_for_serving_is_said_where_asked_for(ended):
    text = ended["sized"].stdout
    for words in ("critical batch:", "balanced context:", "batching gain:", "if batch 1 read them",
                  "sparsity: 18.3", "experts alone are 32", "drain time:", "departing trains:",
                  "latency for money:", "price of speed:", "a price step at", "prefill:",
                  "MFU halves at no context", "traffic that fills it: 2,860 sequences",
                  "256 experts on 72 chips: 64 with 4 each",
                  "pipeline of 4"):  # fmt: skip
        assert words in text
    assert "critical batch" not in ended["table"].stdout


def test_figures_and_prices_can_be_given(ended):
    (point,) = ended["given"].document["points"]
    assert point["weight_floor_s"] == pytest.approx(point["bytes_per_chip"]["weights_read"] / 1e12)
    dollars = 2 * 4 * point["expected_s"] / 3600 * 1e6
    assert point["usd_per_million_tokens"] == pytest.approx(dollars)
    assert point["price"] == {"usd_per_chip_hour": 2}
    dearer, free = ended["provider"].document["points"]
    assert dearer["price"]["usd_per_chip_hour"] == 10.6 and "price" not in free
    assert "no price of b200 is listed by Google Cloud" in " ".join(
        ended["provider"].stderr.split()
    )


def test_a_path_that_begins_with_a_tilde_is_in_the_home_folder(ended, folder):
    assert ended["at_home"].code == 0, ended["at_home"].stderr
    assert json.loads((folder / "home/results/at_home.json").read_text())["points"]
    assert not list(folder.glob("~*"))


def test_a_name_too_long_for_a_file_is_refused_before_the_work(ended):
    assert (ended["long_name"].code, ended["long_name"].stdout) == (1, "")
    assert ended["long_name"].error.startswith("--json is aaa")
    assert "(File name too long); name a place" in ended["long_name"].error


def test_a_document_says_which_figures_are_given(ended):
    bandwidth = ended["given"].document["bandwidth"]
    assert (bandwidth["bytes_per_s"], bandwidth["source"]) == (1e12, "given")
    assert ended["document"].document["bandwidth"]["source"] == "published"
    assert "published, but for bandwidth, given" in ended["given"].stderr


def test_a_model_goes_so_far_and_farther_on_purpose(ended):
    contexts = {
        name: ended[name].document["points"][0]["context"]
        for name in ("just_fits", "on_purpose", "short_model")
    }
    # A default is cut to what the model goes to.
    assert contexts == {"just_fits": 8191, "on_purpose": 20_000, "short_model": 2047}


def test_a_title_has_the_mesh(ended):
    assert "mesh 4x4x4" in " ".join(ended["fixed"].stderr.split())
    point = ended["prompts_by_batch"].document["points"][0]
    assert (point["attention"], point["cache_attention"]) == ("heads", "batch")
    said = "attention by heads, collectives compiler, mesh 2x2x2, cache as weight_stationary_2d by"
    assert said in " ".join(ended["prompts_by_batch"].stderr.split())


def test_a_title_has_the_price_of_each_chip_and_the_arithmetic_that_floors_divide_by(ended):
    words = " ".join(ended["two_chips"].stdout.split())
    assert "1.2 USD per chip-hour" in words and "6.88 USD per chip-hour" in words
    assert "394 TFLOP/s of int8" in ended["rounded"].stdout


def test_which_experts_steps_read_is_said_of_a_mixture_alone(ended):
    said = "experts that a step reads: "
    assert said + "all (all)" in ended["all_experts"].stderr
    assert said + "those that evenly spread" in ended["sized"].stdout
    assert said not in ended["table"].stdout


def test_of_a_mixture_the_layouts_that_divide_experts_are_tried_too(ended):
    points = ended["mixture"].document["points"]
    assert [point.get("expert_parallel", False) for point in points] == [True, False]


def test_a_prompt_may_have_a_layout_of_its_own(ended):
    (point,) = ended["prompts_otherwise"].document["points"]
    assert point["layout"] == "weight_gathered_xyz" and point["mesh"] == {"x": 4, "y": 2, "z": 2}
    assert point["bytes_per_chip"]["weights_gathered"] > 0


def test_each_prompt_that_does_not_fit_has_a_slice_of_its_own(ended):
    messages = [point["message"] for point in ended["long_prompts"].document["points"]]
    assert "1,000 cached tokens and 50,000 of a prompt" in messages[0]
    assert len({message.split(";")[1] for message in messages}) == 2


def test_all_experts_are_read_where_that_is_asked(ended):
    (point,) = ended["all_experts"].document["points"]
    counted = point["bytes_per_chip"]
    assert counted["weights_read"] > 0.98 * counted["weights_resident"]
    assert point["experts"] == "all"


def test_one_token_is_singular(ended):
    assert "a price step at 1 token would imply" in ended["one_token"].stdout


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("model", "model is 'gpt-9'"),
        ("chip", "chip or device kind is 'v9'"),
        ("slice", "topology is v5e:3x5, a slice that v5e does not come in; use"),
        ("layout", "layout is 'diagonal'; use one of"),
        ("dtype", "--weight_dtype is 'int3'; use one of"),
        ("arithmetic", "dtype is int8, which v3 has no published rate"),
        ("zero", "--batch is '0'; use positive integers"),
        ("negative", "--context is '-5'; use positive integers"),
        ("mesh", "mesh is 4x4x4, of 64 devices, but v5e:4x4 has 16"),
        ("figure", "bandwidth of v5e is -1.0; use a positive number"),
        ("price", "--price_per_chip_hour is -1.0"),
        ("calibration", "--calibration is 'none.json', which cannot be read"),
        ("short", "--context is 1 with --phase=prefill"),
        ("no_topology", "topology is ''; write a chip"),
        ("figure_of_two", "--hbm_bandwidth is given for several chips alike, v5e, h100; name one"),
        ("price_of_two", "--price_per_chip_hour is given for several chips alike"),
        ("endless", "bandwidth of v5e is inf; use a positive number"),
        ("no_price", "--price_per_chip_hour is nan; use USD"),
        ("no_provider", "use one of Google Cloud, RunPod, AWS, Azure, Hot Aisle, DigitalOcean"),
        ("two_prices", "--provider is AWS, beside --price_per_chip_hour"),
        ("absurd_price", "--price_per_chip_hour is 1e+308; use USD, 0 to 1,000,000"),
        ("no_home", "--json is '~nobody-of-this-name/a.json' (no home folder is known for it"),
        ("prompts_layout", "layout is 'diagonal'; use one of"),
        ("no_experts", "--expert_parallel is true, but llama3-70b has no experts"),
        (
            "sized_layout",
            "--layout is weight_stationary_2d, but deepseek-v3-even is known by its sizes",
        ),
        ("sized_mesh", "--mesh is 1x1x8, but deepseek-v3-even is known by its sizes"),
        ("cached_steps", "--cached is 100 of no prompt; give --phase=prefill"),
        (
            "long",
            "--context is 8,192 and 1 more token, beyond the 8,192 tokens that llama3-8b goes to; "
            "use at most 8,191, or --max_context=8193",
        ),
        (
            "cached_alone",
            "--cached is 9,000 and 2 more tokens, beyond the 8,192 tokens that llama3-70b",
        ),
        ("dense", "--experts is all, but llama3-70b has no experts; leave it out"),
        ("long_after_cached", "--context is 8,000 and 193 more tokens, beyond the 8,192 tokens"),
        ("sized_length", "--max_context is 9, but deepseek-v3-even is known by its sizes alone"),
        (
            "list_of_attention",
            "--attention is 'heads,rows' (use one of heads, batch, sequence, aut",
        ),
        ("economics_of_prompts", "--economics is true, but of decode steps"),
        ("acceptance_alone", "nothing is drafted without --drafted; leave it out"),
        ("drafts_of_prompts", "it is of decode steps, and --phase is prefill; leave it out"),
        ("no_drafts", "--drafted is '0' (0 is not an integer in the range [1, 64])"),
        ("not_held", "--held_s is '-1'; use positive numbers joined by commas"),
        ("nothing_served", "nothing is served without --served_tokens_per_s; leave it out"),
        ("no_traffic", "--served_tokens_per_s is nan; use a positive number"),
        ("hops_alone", "nothing is a pipeline without --stages; leave it out"),
        ("no_hop", "--hop_ms is -1; use a number, 0 or more"),
        ("thin_stages", "--stages is 81, but llama3-70b has 80 layers; use one stage a layer"),
        ("no_network", "between slices of l4 is not known; give --network_bandwidth"),
        ("certain", "--acceptance is '1.5' (1.5 is not a number in the range [0, 1])"),
    ],
)
def test_mistakes_end_in_one_line(ended, case, message):
    assert ended[case].code == 2 and message in ended[case].error
    assert ended[case].stdout == ""


def test_drafts_have_a_floor_and_a_last_batch_that_pays(ended):
    text = ended["drafts"].stdout
    assert "-  speculation: a step of 2 tokens per sequence keeps 1.80 of them" in text
    assert "-  speculation pays up to batch 266 at context 1, by floors" in text  # 295 x 1.8 / 2
    assert "critical batch" not in text


def test_answers_stand_in_the_record_of_the_last_step_with_units_in_their_names(ended):
    *others, last = ended["answers"].document["points"]
    assert not any("economics" in each for each in others)
    assert (last["batch"], last["context"]) == (64, 4096)
    found = last["economics"]
    assert list(found) == ["traffic", "utilization", "expert_layer", "speculation", "held",
                           "training", "pipeline"]  # fmt: skip
    stages = found["pipeline"]
    weights = stages["weights_bytes_per_chip_alone"]
    assert weights == pytest.approx(last["bytes_per_chip"]["weights_resident"])
    assert stages["weights_bytes_per_chip"] == pytest.approx(weights / 4)
    assert stages["hops_s"] == 0.01 and stages["inside_over_between"] > 1
    assert stages["sent_s"] < stages["token_floor_s_alone"]  # and may go while a stage works
    assert stages["token_floor_s"] - stages["token_floor_s_alone"] == pytest.approx(0.01)
    filled = found["traffic"]
    assert filled["tokens_per_s"] == pytest.approx(last["critical_batch"] * filled["steps_per_s"])
    assert found["held"]["tiers"][0]["fetches"] == [300 / found["held"]["tiers"][0]["read_s"]]
    assert found["training"]["served_tokens"] == 1e6 * 60 * 86_400
    assert found["expert_layer"]["chips_with_experts"] == 64
    assert found["speculation"]["kept_tokens_per_step"] == pytest.approx(2.952)
    assert "traffic that fills it" in ended["answers"].stderr


def test_a_cache_that_is_held_has_a_tier_of_memory(ended):
    text = ended["held"].stdout
    assert text.count("read once in") == 4 and "-  flash (Samsung PM1753, 32 TB): read" in text
    assert "-  held for 3,600 s: flash by these devices, disk by round figures" in text
