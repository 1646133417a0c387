"""Published services: how cases are read, what their words stand for, and their floors."""

import dataclasses
import statistics

import pytest

from profiles.chips.slices import parse_slice
from profiles.floor.collective import Collective
from profiles.published.cases import parse_case, read_rows, shipped_cases
from profiles.published.comparison import reproduce, reproduce_all
from profiles.published.engines import engine_of, layout_names
from profiles.published.fields import model_of, stored
from profiles.published.reproduced import check_floors
from profiles.published.text import accuracy, rows_text
from sharding.error_types import FloorlineError, UsageError

SERVICE = {
    "source": "theirs",
    "locator": "table 1",
    "engine": "TensorRT-LLM",
    "model": "llama3.1-8b",
    "topology": "h100:1",
    "parallelism": "TP1",
    "weight_dtype": "fp8",
    "phase": "serving",
    "concurrency": 64,
    "prompt_length": 1024,
    "generated_tokens": 1024,
    "published": {"tokens_per_s": 5000},
}


def case(**changes):
    return parse_case({name: v for name, v in (SERVICE | changes).items() if v is not ...})


@pytest.fixture(scope="module")
def shipped():
    services = [each for each in shipped_cases()[0] if each.phase == "serving"]
    assert len(services) == 129
    # Of those in any layout on eight chips, which take longest, one; the script's test has all.
    wide = [each for each in services if not each.divisions and each.slice.devices > 1]
    rows, refused = reproduce_all(each for each in services if each not in wide[1:])
    assert len(wide) == 3 and not refused
    return rows


def test_no_shipped_service_beats_its_floor(shipped):
    assert all(row.fraction < 1 for row in shipped)
    assert all(row.floor_s < row.expected_s for row in shipped)


def test_dense_services_reach_what_a_calculation_by_hand_gave_for_each_chip(shipped):
    # Medians of weights once a step, the cache at its mean length and arithmetic, over the peaks.
    by_hand = {"h100": 0.38, "h200": 0.40, "b200": 0.27, "gb200": 0.29}
    for chip, published in by_hand.items():
        reached = [
            row.fraction
            for row in shipped
            if row.case.slice.chip.name == chip and not row.case.model.experts
        ]
        assert len(reached) >= 13
        assert statistics.median(reached) == pytest.approx(published, abs=0.03), chip


def test_services_have_a_summary_and_a_table_of_their_own(shipped):
    assert accuracy(shipped)["services"].rows == len(shipped) == 127
    text = rows_text(shipped[:3], [])
    assert "at once  measured ms a token" in text
    words = " ".join(text.split())
    assert "stands for no layout here: the floor is the least of all layouts" in words


def test_every_shipped_service_says_where_it_stands_and_what_was_assumed(shipped):
    places = {(row.case.source, row.case.locator) for row in shipped}
    assert len(places) == len(shipped)
    for row in shipped:
        assert row.case.fit or row.case.held_out
        assert any("prompts" in each for each in row.assumptions)


def test_the_floor_of_a_service_is_that_of_its_mean_step_by_hand():
    layers, width = 32, 4096
    matrices = layers * (2 * width**2 + 2 * 1024 * width + 3 * 14336 * width)
    table = 128256 * width

    def by_hand(slots, prompt, answer):
        joining = slots / answer
        tokens = slots + joining * prompt  # of answers and of prompts
        weights = matrices + table + 4 * 65 * width + tokens * width  # a byte; norms have four
        cached = slots * (prompt + (answer + 1) / 2) + joining * prompt
        memory = weights + cached * 2 * layers * 1024
        pairs = slots * (prompt + (answer + 1) / 2) + joining * prompt * (prompt + 1) / 2
        flops = 2 * matrices * tokens + 2 * table * (slots + joining)
        flops += 4 * layers * width * pairs
        return {"memory": memory / 3.35232e12 / slots, "compute": flops / 1.979e15 / slots}

    hand, found = by_hand(64, 1024, 1024), reproduce(case())
    assert (found.bound, found.concurrency) == ("weights", 64)
    assert found.floor_s == pytest.approx(max(hand.values()), rel=1e-4)
    assert hand["memory"] > hand["compute"]
    sizes = {"concurrency": 200, "prompt_length": 4096, "generated_tokens": 64}
    hand, found = by_hand(200, 4096, 64), reproduce(case(**sizes))
    assert found.bound == "compute"
    assert found.floor_s == pytest.approx(max(hand.values()), rel=1e-4)


def test_seconds_are_of_the_whole_service_or_of_one_sequence_where_no_more_is_known():
    whole = reproduce(case(published={"tokens_per_s": 5000, "per_token_s": 0.0128}))
    one = reproduce(case(published={"per_token_s": 0.0128, "first_token_s": 0.2}))
    assert (whole.case.published_s, one.case.published_s) == (1 / 5000, 0.0128)
    assert one.floor_s == pytest.approx(64 * whole.floor_s)
    assert one.expected_s == pytest.approx(64 * whole.expected_s)
    assert one.as_record()["of"] == "one sequence" != whole.as_record()["of"]


def test_as_many_as_fit_are_counted_and_their_number_is_told():
    row = reproduce(case(concurrency=None))
    record = row.as_record()
    token = 2 * 32 * 1024
    assert record["concurrency"] == pytest.approx((80e9 - 8.03e9) / (token * 1536.5), rel=0.1)
    assert row.floor_s < reproduce(case()).floor_s
    few = reproduce(case(concurrency=None, requests=100))
    assert few.concurrency == 100 and few.floor_s == reproduce(case(concurrency=100)).floor_s
    assert any("100 at most: as many requests were there" in each for each in few.assumptions)
    fields = {"published_s", "floor_s", "expected_s", "error", "prompt_length", "parallelism"}
    assert fields <= record.keys() and "batch" not in record


def test_lengths_that_vary_or_are_the_largest_lower_the_floor():
    stated, drawn, most = (reproduce(case(lengths=each)) for each in (1, 0.8, "at most"))
    assert most.floor_s < drawn.floor_s < stated.floor_s
    assert any("evenly from 0.8" in each for each in drawn.assumptions)
    assert any("empty cache and no prompts" in each for each in most.assumptions)
    weights = 8.03e9 - 128256 * 4096
    assert most.floor_s == pytest.approx(weights / 3.35232e12 / 64, rel=0.01)


@pytest.mark.parametrize(
    "words, topology, model, found",
    [
        ("TP4", "h100:4", "llama3-70b", [("weight_stationary_1d", "heads", False)]),
        ("tp=8", "h100:8", "llama3-70b", [("weight_stationary_1d", "heads", False)]),
        ("TP2 (2 devices)", "tpu7x:1x1x1", "qwen3-32b", [("weight_stationary_1d", "heads", False)]),
        ("DEP4", "b200:4", "qwen3-235b-a22b", [("auto", "batch", True)]),
        ("DP8EP8", "b200:8", "qwen3-235b-a22b", [("auto", "batch", True)]),
        (
            "TP16 EP16",
            "v6e:4x4",
            "qwen3-30b-a3b",
            [("weight_stationary_1d", kind, True) for kind in ("heads", "batch")],
        ),
        ("EP8", "h200:8", "mixtral-8x7b", [("auto", "auto", True)]),
        ("v5e-8", "v5e:2x4", "llama3-8b", []),
        ("vLLM", "mi300x:1", "gpt-oss-120b", []),
        ("TP4", "h100:8", "llama3-70b", []),
        ("TP4 PP2", "h100:8", "llama3-70b", []),
        ("DEP4", "h100:4", "llama3-70b", []),
        ("DP8", "h100:8", "llama3-8b", [("data_parallel_x_1d", "auto", False)]),
        ("DP2 TP4", "h100:8", "llama3-8b", []),
        ("SP8 TP8", "h100:8", "llama3-8b", []),
        ("CP8", "h100:8", "llama3-8b", []),
    ],
)
def test_words_for_parallelism_stand_for_layouts(words, topology, model, found):
    names = layout_names(words, model_of(model), parse_slice(topology))
    assert [(each.layout, each.attention, each.expert_parallel) for each in names] == found


def test_tensor_parallel_mixtures_may_divide_experts_and_attention_either_way():
    names = layout_names("TP8", model_of("qwen3-235b-a22b"), parse_slice("h200:8"))
    assert {(each.attention, each.expert_parallel) for each in names} == {
        (kind, divided) for kind in ("heads", "batch") for divided in (False, True)
    }


def test_what_a_source_leaves_open_is_as_its_engine_does():
    assert case().cache == stored("fp8") and case().multiplied == "fp8"
    four = case(weight_dtype="nvfp4", topology="b200:1")
    assert four.cache == stored("fp8") and four.multiplied == "fp4"
    # The chip multiplies no 4-bit floats.
    assert case(weight_dtype="mxfp4", model="gpt-oss-120b").multiplied == "bfloat16"
    assert case(weight_dtype="bfloat16").cache is None
    assert case(kv_dtype="bfloat16").cache == stored("bfloat16")
    assert case(engine="JetStream", weight_dtype="int8").cache == stored("int8")
    assert case(engine="of one's own").engine.prompts == "beside"
    assert engine_of(None, "NVIDIA/TensorRT-LLM docs/performance.md").name == "TensorRT-LLM"
    assert engine_of(None, "a blog") is None


def test_prompts_run_where_the_engine_runs_them():
    beside, between = (reproduce(case(engine=name)) for name in ("vLLM", "SGLang"))
    assert beside.floor_s == between.floor_s and beside.expected_s < between.expected_s
    assert "expected: prompts beside steps" in beside.assumptions
    assert "expected: prompts between steps" in between.assumptions


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"phase": "served"}, "phase is 'served'; use one of decode, prefill, run, serving"),
        ({"source": ...}, "case is without source; give what"),
        ({"source": ""}, "case is without source; give what"),
        ({"locator": None}, "case is without locator"),
        ({"published": ...}, "case is without published"),
        ({"published": {"first_token_s": 1}}, "give tokens_per_s or per_token_s"),
        ({"published": {"tokens_per_s": 0}}, "published tokens_per_s is 0; use tokens per second"),
        ({"published": 5}, "published is 5; write an object of tokens_per_s"),
        ({"generated_tokens": 0}, "generated_tokens is 0; use a whole number from 1"),
        ({"concurrency": 0}, "concurrency is 0; use a whole number from 1"),
        ({"parallelism": "TP8"}, "parallelism is 'TP8', of 8 devices, but h100:1 has 1; use"),
        ({"parallelism": "v5e-8", "topology": "v5e:2x2"}, "of 8 devices, but v5e:2x2 has 4"),
        ({"parallelism": "TP4 PP4", "topology": "h100:8"}, "of 16 devices, but h100:8 has 8"),
        ({"lengths": 2}, "lengths is 2; use 'at most', or"),
        ({"parallelism": "TP1 then TP1"}, "which counts TP twice; use one count of each kind"),
        ({"parallelism": "SP16 TP1"}, "parallelism is 'SP16 TP1', of 16 devices, but h100:1 has 1"),
        ({"parallelism": "CP16"}, "of 16 devices, but h100:1 has 1"),
        ({"parallelism": "CP2 TP8", "topology": "h100:8"}, "of 16 devices, but h100:8 has 8"),
        ({"parallelism": "DP2 TP8", "topology": "h100:8"}, "of 16 devices, but h100:8 has 8"),
        ({"parallelism": "TP" + "9" * 5000}, "with a count of 5,000 digits; use the source's word"),
        ({"parallelism": "v5e-" + "9" * 5000}, "with a count of 5,000 digits; use"),
        ({"topology": "h100:" + "9" * 5000}, "; write a chip and the shape of a slice"),
        ({"topology": 8}, "topology is 8; write text, in one line"),
        ({"dtype": "fp4"}, "dtype is fp4, which h100 has no published rate of arithmetic for; use"),
        ({"phase": ...}, "case is without phase; give decode or prefill for a step, or run for a"),
        ({"phase": ...}, "or serving for a service, with source, locator, engine, model, topology"),
        ({"engine": " "}, "engine is ' '; write text, in one line"),
        ({"model": ["llama3.1-8b"]}, "model is ['llama3.1-8b']; write text, in one line"),
        ({"weight_dtype": 8}, "weight_dtype is 8; write text, in one line"),
        ({"source": "a\nb"}, r"source is 'a\nb'; write text, in one line"),
        ({"locator": "a\u2028b"}, r"locator is 'a\u2028b'; write text, in one line"),
        ({"assumed": ["a\nb"]}, r"assumed is ['a\nb']; write a list of texts, each in one line"),
        (
            {"published": {"tokens_per_s": 5e-324}},
            "published tokens_per_s is 5e-324; use tokens per",
        ),
        ({"published": {"tokens_per_s": 10**400}}, "0000; use tokens per second, above 0: from"),
        ({"requests": 10}, "requests is 10, fewer than concurrency 64; give"),
        ({"prompt_length": 200_000}, "is 201,024, beyond the 131,072 tokens that llama3.1-8b goes"),
        ({"prompt_length": 200_000, "lengths": "at most"}, "is 200,000, beyond the 131,072 tokens"),
        (
            {"published": {"tokens_per_s": 5000, "per_token_s": 0.0138}},
            "tokens_per_s times per_token_s is 69.0 sequences in flight, more than the 64 that",
        ),
    ],
)
def test_a_service_that_cannot_be_read_is_refused_by_what_is_wrong(changes, said):
    with pytest.raises(UsageError) as refused:
        case(**changes)
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_a_concurrency_that_does_not_fit_is_refused_with_both_numbers_and_the_others_go_on():
    cases, wrong = read_rows([SERVICE, SERVICE | {"concurrency": 100_000}, {"phase": "serving"}])
    rows, refused = reproduce_all(cases)
    assert len(rows) == 1 and len(wrong) == 1
    assert "concurrency is 100,000, but 7" in refused[0].why and "; give those" in refused[0].why
    big = case(model="llama3-405b", concurrency=None)
    for wide in (big, case(model="llama3-405b", lengths="at most")):
        with pytest.raises(
            UsageError, match="which has no room for llama3-405b in fp8 and a cache"
        ):
            reproduce(wide)
    with pytest.raises(
        UsageError, match="topology is h100:1, which has no room for llama3-405b in fp8"
    ):
        reproduce(big)


def test_a_floor_sends_activations_in_the_type_of_its_arithmetic_and_no_wider_one():
    # Sums in float32, as this project has them, bound such steps at 96,224 tokens per second.
    sizes = {"model": "qwen3-235b-a22b", "topology": "h200:8", "parallelism": "TP8"}
    fast = case(**sizes, engine="vLLM", concurrency=256, published={"tokens_per_s": 150_000})
    row = reproduce(fast)
    assert row.fraction < 1 and row.bound == "kv_cache"
    assert any("over links in 8 bits at most" in each for each in row.assumptions)
    stated = reproduce(dataclasses.replace(fast, dtype="bfloat16"))
    assert stated.floor_s > row.floor_s
    assert any("over links in 16 bits at most" in each for each in stated.assumptions)
    sizes |= {"weight_dtype": "nvfp4", "topology": "b200:8"}
    assert case(**sizes).fastest == "fp4"
    wide = Collective("all-reduce", ("z",), 4096, 2, "layer/mixture", "f32")
    assert [wide.narrowed(bits).payload_bytes for bits in (32, 16, 8, 4)] == [4096, 2048, 1024, 512]
    weights = dataclasses.replace(wide, of_weights=True)
    assert weights.narrowed(8) == weights


def test_as_many_as_fit_of_unknown_lengths_are_those_with_empty_caches_in_the_floor():
    long = {"model": "llama3.1-70b", "topology": "h200:1", "lengths": "at most"}
    sizes = {"prompt_length": 60_000, "generated_tokens": 60_000, "concurrency": None}
    row = reproduce(case(**long, **sizes, published={"tokens_per_s": 1500}))
    # Few sequences of 120,000 tokens fit; thousands of empty ones do, and arithmetic is the bound.
    assert row.fraction < 1 and row.concurrency > 10_000 and row.bound == "compute"
    assert row.floor_s == pytest.approx(2 * 70.55e9 / 1.979e15, rel=0.02)
    assert any("as many sequences as fit with empty caches" in each for each in row.assumptions)
    few = reproduce(case(**long, **sizes, requests=50))
    assert few.concurrency == 50


def test_seconds_of_one_sequence_have_the_floor_of_a_single_one_where_no_number_is_known():
    row = reproduce(case(concurrency=None, published={"per_token_s": 0.003}))
    single = reproduce(case(concurrency=1, published={"per_token_s": 0.003}))
    assert row.floor_s == single.floor_s < 0.003 < row.expected_s
    assert row.concurrency == 1
    assert "the floor is of one sequence at once, as seconds are of one sequence" in row.assumptions


def test_other_published_figures_have_floors_of_their_own_and_beating_one_fails():
    figures = {"tokens_per_s": 5000, "per_token_s": 0.0125, "first_token_s": 0.1}
    row = reproduce(case(published=figures))
    matrices, table = 8.03e9 - 2 * 128256 * 4096, 128256 * 4096
    cached = 62 * 1024 * 2 * 32 * 1024  # Of 62 sequences in flight, their prompts.
    step = (matrices + table + cached) / 3.35232e12
    assert row.floors["per_token_s"] == pytest.approx(step, rel=0.01)
    first = 2 * 1024 * matrices / 1.979e15
    assert row.floors["first_token_s"] == pytest.approx(first, rel=0.02)
    assert row.as_record()["floors"] == row.floors and not row.beaten
    check_floors([row])
    for name in row.floors:
        beating = reproduce(case(published=figures | {name: row.floors[name] / 2}))
        if name == "first_token_s":
            assert list(beating.beaten) == [name] and "BEATS ITS FLOOR" in rows_text([beating], [])
        with pytest.raises(FloorlineError, match=f"^{name} is .* ms in theirs, table 1, below its"):
            check_floors([beating])


def test_a_row_says_whose_constants_its_expected_time_has_if_not_those_of_its_engine():
    for engine, words in (
        ("SGLang", "not of SGLang: tensorrt-llm-hopper, fitted to TensorRT-LLM"),
        ("TensorRT-LLM", None),
    ):
        row = reproduce(case(engine=engine))
        found = [each for each in row.assumptions if "constants of another engine" in each]
        assert [each.partition(", ")[2] for each in found] == [words][: words is not None]
        assert row.as_record()["calibration"] == "tensorrt-llm-hopper"


def test_copies_of_a_model_are_on_one_axis_so_that_each_reads_all_weights():
    eight = {"model": "llama3-8b", "topology": "h100:8"}
    row = reproduce(case(**eight, parallelism="DP8", concurrency=8))
    assert row.case.mesh == {"x": 8, "y": 1, "z": 1}
    assert "parallelism 'DP8' is data_parallel_x_1d, on x=8, y=1, z=1" in row.assumptions
    assert row.floor_s > 7.5e9 / 3.35232e12 / 8
    assert case(**eight, parallelism="TP8").mesh is None


def test_nothing_is_claimed_of_an_engine_that_is_not_known():
    row = reproduce(case(engine="Foo"))
    assert "kv_dtype not stated: fp8, as nothing is known here of Foo" in row.assumptions
    assert "expected: prompts beside steps, as nothing is known here of Foo" in row.assumptions


def test_no_more_sequences_are_in_flight_than_fit():
    figures = {"tokens_per_s": 5000, "per_token_s": 1}
    with pytest.raises(UsageError, match=r"is 5,000 sequences in flight, more than the 7.. that"):
        reproduce(case(concurrency=None, published=figures))


def test_a_case_that_is_given_twice_counts_once():
    cases, wrong = read_rows([SERVICE, SERVICE, 5, 5, SERVICE | {"concurrency": 8}])
    assert len(cases) == 2
    assert wrong[0].why.startswith("case 2 is the same as case 1, which is counted once; give")
    assert wrong[2].why.startswith("case 4 is the same as case 3")
    odd = read_rows([{"source": ["mine"], "locator": "a\nb"}])[1][0]
    assert (odd.source, odd.locator) == ("case 1", "")
