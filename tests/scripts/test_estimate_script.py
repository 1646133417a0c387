"""estimate.py as a user runs it: tables, documents, what does not fit, and mistakes."""

import pytest

from tests.scripts.running import run_many

CASES = {
    "table": ["--batch=1,64", "--context=2048,8192", "--weight_dtype=int8", "--kv_dtype=int8"],
    "document": ["--model=llama3-8b", "--topology=v5e:2x2,h100:1", "--batch=1", "--json=-"],
    "too_large": ["--topology=v5e:2x2", "--batch=1", "--json=-"],
    "fixed": ["--topology=v4:4x4x4", "--mesh=4x4x4", "--layout=weight_stationary_2d",
              "--attention=batch", "--batch=64", "--json=-"],
    "prompts": ["--model=llama3-8b", "--phase=prefill", "--context=2048", "--batch=4",
                "--cached=1024", "--json=-"],
    "sized": ["--model=deepseek-v3", "--topology=gb200:72", "--weight_dtype=fp8", "--economics",
              "--batch=1,2048", "--context=4096"],
    "given": ["--model=llama3-8b", "--hbm_bandwidth=1e12", "--price_per_chip_hour=2", "--batch=1",
              "--topology=v5e:2x2", "--json=-"],
    "all_experts": ["--model=mixtral-8x7b", "--experts=all", "--batch=1", "--json=-"],
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
}  # fmt: skip


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    return run_many("estimate.py", CASES, folder=tmp_path_factory.mktemp("estimate"))


def test_a_table_names_peaks_calibration_and_price_and_has_a_row_for_each_point(ended):
    text = ended["table"].stdout
    assert ended["table"].code == 0 and not ended["table"].jax_started
    for words in ("859 GB/s", "197 TFLOP/s", "calibration tpu-v5e", "1.2 USD per chip-hour"):
        assert words in text
    rows = [line.split()[:2] for line in text.splitlines() if line.startswith("  ")]
    assert rows == [[context, batch] for context in ("2,048", "8,192") for batch in ("1", "64")]


def test_a_document_has_a_record_for_each_slice(ended):
    points = ended["document"].document["points"]
    assert [point["topology"] for point in points] == ["v5e:2x2", "h100:1"]
    for point in points:
        assert point["floor_s"] <= point["expected_s"] and point["status"] == "ok"
    assert ended["document"].document["calibration"]["source"]


def test_what_does_not_fit_is_a_result_with_the_least_slice_that_does(ended):
    (point,) = ended["too_large"].document["points"]
    assert ended["too_large"].code == 0 and point["status"] == "does_not_fit"
    assert not point["fits"] and "the least slice that fits is v5e:4x4" in point["message"]


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
                  "latency for money:", "prefill:", "pipeline of 4"):  # fmt: skip
        assert words in text
    assert "critical batch" not in ended["table"].stdout


def test_figures_and_prices_can_be_given(ended):
    (point,) = ended["given"].document["points"]
    assert point["weight_floor_s"] == pytest.approx(point["bytes_per_chip"]["weights_read"] / 1e12)
    dollars = 2 * 4 * point["expected_s"] / 3600 * 1e6
    assert point["usd_per_million_tokens"] == pytest.approx(dollars)


def test_all_experts_are_read_where_that_is_asked(ended):
    (point,) = ended["all_experts"].document["points"]
    counted = point["bytes_per_chip"]
    assert counted["weights_read"] > 0.98 * counted["weights_resident"]
    assert point["experts"] == "all"


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
    ],
)
def test_mistakes_end_in_one_line(ended, case, message):
    assert ended[case].code == 2 and message in ended[case].error
    assert ended[case].stdout == ""
