"""estimate.py of services: rows, what fits, arithmetic of engines, and mistakes."""

import re

import pytest

from model.catalog import find_model
from tests.scripts.running import named, run_many

CASES = {
    "service": ["--model=llama3.1-8b", "--topology=h100:1,v5e:2x4", "--weight_dtype=int8",
                "--phase=serving", "--concurrency=64,max", "--prompt_length=2048",
                "--generated_tokens=512", "--json=-"],
    "service_table": ["--model=gpt-oss-120b", "--topology=h200:1", "--phase=serving",
                      "--weight_dtype=fp8", "--concurrency=max"],
    "short_service": ["--model=tiny", "--topology=v5e:1x1", "--phase=serving", "--json=-"],
    "crowded": ["--model=llama3.1-8b", "--topology=h100:1", "--phase=serving",
                "--concurrency=1000000"],
    "nothing_fits": ["--model=llama3.1-70b", "--topology=h100:1", "--phase=serving"],
    "no_room": ["--model=llama3-8b", "--topology=v5e:4x4", "--phase=serving",
                "--concurrency=9999999"],
    "one_fits": ["--model=llama3.1-70b", "--topology=h100:1,h200:2", "--phase=serving",
                 "--weight_dtype=fp8,bfloat16", "--concurrency=max,99999", "--json=-"],
    "more_than_the_least": ["--model=llama3.1-70b", "--topology=h100:1", "--weight_dtype=fp8",
                            "--phase=serving", "--concurrency=64"],
    "long_answer": ["--phase=serving", "--generated_tokens=9999999999"],
    "both_long": ["--phase=serving", "--generated_tokens=9000", "--prompt_length=9001"],
    "fp8": ["--model=llama3.1-8b", "--topology=h100:1", "--weight_dtype=fp8", "--kv_dtype=fp8",
            "--dtype=bfloat16,fp8", "--phase=serving", "--concurrency=64", "--json=-"],
    "as_the_engine": ["--model=llama3.1-8b", "--topology=h100:1", "--weight_dtype=fp8",
                      "--dtype=fp8", "--phase=serving"],
    "no_fp8": ["--topology=v5e:4x4", "--dtype=fp8"],
    "rounded_twice": ["--weight_dtype=int8", "--dtype=int8", "--round_activations"],
    "no_answers": ["--phase=serving", "--generated_tokens=0"],
    "no_concurrency": ["--phase=serving", "--concurrency=most"],
    "service_of_batch": ["--phase=serving", "--batch=8"],
    "steps_of_service": ["--concurrency=8"],
    "long_service": ["--phase=serving", "--prompt_length=8000", "--generated_tokens=1000"],
}  # fmt: skip


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    cases = named(CASES, "llama3-70b")
    return run_many("estimate.py", cases, folder=tmp_path_factory.mktemp("services"))


def test_a_service_has_both_expected_forms_and_the_concurrency_that_was_used(ended):
    points = ended["service"].document["points"]
    assert [(p["topology"], p["phase"]) for p in points] == [
        *[("h100:1", "serving")] * 2, *[("v5e:2x4", "serving")] * 2
    ]  # fmt: skip
    for given, most in (points[:2], points[2:]):
        assert given["concurrency"] == 64 < most["concurrency"]
        assert (given["prompt_length"], given["generated_tokens"]) == (2048, 512)
        assert given["floor_s"] == max(
            given["floor_terms_s"]["weights"] + given["floor_terms_s"]["kv_cache"],
            given["floor_terms_s"]["compute"], given["floor_terms_s"]["communication"],
        )  # fmt: skip
        forms = given["expected_forms_s"]
        assert given["floor_s"] < forms["beside"] == given["expected_s"] < forms["between"]
        assert given["tokens_per_s"] == pytest.approx(64 / given["expected_s"])
        held = most["bytes_per_chip"]
        total = held["weights_resident"] + held["kv_resident"] + held["activations"]
        assert 0.99 * held["capacity"] < total <= held["capacity"]
        assert held["kv_reserved"] == pytest.approx(held["kv_resident"] * 2560 / 2304.5, rel=1e-6)
    for point in points:
        cost = point["price"]["usd_per_chip_hour"] / 3600 / point["tokens_per_s_per_chip"] * 1e6
        assert point["usd_per_million_tokens"] == pytest.approx(cost)


def test_a_table_of_a_service_says_what_fits_and_what_its_forms_are(ended):
    text = " ".join(ended["service_table"].stdout.split())
    assert ended["service_table"].code == 0
    assert "beside: chunks of prompts ride along with steps; between: prompts run alone" in text
    counts = re.search(r"([\d,]+) sequences fit with caches .* ([\d,]+) if each has", text)
    fit, reserved = (int(count.replace(",", "")) for count in counts.groups())
    assert fit > reserved > 0


def test_services_that_do_not_fit_are_rows_beside_those_that_do(ended):
    done = ended["one_fits"]
    points, said = done.document["points"], " ".join(done.stderr.split())
    assert done.code == 0 and len(points) == 8
    for point in points:
        fits = point["concurrency"] != 99999 and point["topology"] + point["weight_dtype"] != (
            "h100:1bfloat16"
        )
        assert (point["fits"], point["status"]) == (fits, "ok" if fits else "does_not_fit")
        assert fits or "the least slice that fits is h" in point["message"]
        assert fits or point["message"] in said
    for words in ("h100:1, bfloat16 (weights fp8), prompts of 1,024 tokens and answers of 1,024: ",
                  "h200:2, bfloat16, prompts of 1,024 tokens and answers of 1,024: "):  # fmt: skip
        assert f"- {words}" in said


def test_arithmetic_in_few_bits_is_at_the_peak_of_that_type_and_stores_the_same(ended):
    plain, fp8 = ended["fp8"].document["points"]
    assert (plain["dtype"], plain.get("arithmetic")) == ("bfloat16", None)
    assert (fp8["dtype"], fp8["arithmetic"]) == ("bfloat16", "fp8")
    assert plain["bytes_per_chip"] == fp8["bytes_per_chip"]
    assert fp8["floor_terms_s"]["compute"] == pytest.approx(fp8["flops_per_chip"] / 1979e12)
    assert plain["floor_terms_s"]["compute"] == pytest.approx(plain["flops_per_chip"] / 989.4e12)
    ratio = fp8["expected_terms_s"]["compute"] / plain["expected_terms_s"]["compute"]
    assert ratio == pytest.approx(989.4 / 1979, rel=1e-3)


def test_a_report_names_the_arithmetic_of_the_engine_that_a_calibration_was_fitted_to(ended):
    said = " ".join(ended["fp8"].stderr.split())
    assert "of TensorRT-LLM, which multiplies fp8 weights in fp8 on h100: use --dtype=fp8" in said
    said = " ".join(ended["as_the_engine"].stdout.split())
    assert "bfloat16 (arithmetic in fp8, weights fp8)" in said and "use --dtype" not in said
    assert "use --dtype" not in ended["service"].stderr  # int8, which that engine converts


def test_lengths_of_a_service_are_reduced_to_a_short_model(ended):
    (point,) = ended["short_service"].document["points"]
    longest = find_model("tiny").max_context
    assert point["prompt_length"] + point["generated_tokens"] <= longest


@pytest.mark.parametrize(
    "case, said",
    [
        ("crowded", "--concurrency is 1,000,000, of prompts of 1,024 tokens and answers of 1,024, "
                    "where 341 fit on h100:1, bfloat16; use 341 at most"),
        ("no_room", "where 1,280 fit on v5e:4x4, bfloat16; use 1,280 at most or fewer bits; no "
                    "slice of it fits"),
        ("more_than_the_least", "where 24 fit on h100:1, bfloat16 (weights fp8); use 24 at most or "
                                "fewer bits; the least slice that fits is h100:2"),
        ("nothing_fits", "where 0 fit on h100:1, bfloat16; the least slice that fits is h100:2"),
        ("no_answers", "--generated_tokens is '0'; use positive integers"),
        ("no_concurrency", "--concurrency is 'most'; use positive integers or max, joined"),
        ("service_of_batch", "--batch is given, but --phase is serving"),
        ("steps_of_service", "--concurrency is given, but it is of services, and --phase is"),
        ("no_fp8", "dtype is fp8, which v5e has no published rate of arithmetic for; use one of"),
        ("rounded_twice", "--round_activations is true, which is arithmetic in int8, beside"),
        ("long_service", "--prompt_length is 8,000 and 1,000 more tokens"),
        ("long_answer", "--generated_tokens is 9,999,999,999 and 1,024 more tokens, beyond the "
                        "8,192 tokens that llama3-70b goes to; use at most 7,168, or"),
        ("both_long", "--prompt_length is 9,001 and 9,000 more tokens, beyond the 8,192 tokens "
                      "that llama3-70b goes to; use fewer of both, or"),
    ],
)  # fmt: skip
def test_services_that_cannot_be_are_one_line(ended, case, said):
    assert ended[case].code == 2 and ended[case].stdout == ""
    assert ended[case].stderr.startswith("error: ") and ended[case].stderr.count("\n") == 1
    assert said in ended[case].stderr
