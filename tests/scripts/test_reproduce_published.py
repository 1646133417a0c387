"""`reproduce_published.py` as users run it."""

import json

import pytest

from tests.scripts.running import run_many

STEP = {
    "source": "mine",
    "locator": "run 1",
    "model": "llama2-7b",
    "topology": "a100-80gb:1",
    "layout": "weight_stationary_1d",
    "attention": "heads",
    "weight_dtype": "bf16",
    "phase": "decode",
    "batch": 1,
    "context": 1000,
    "published_s": 0.011,
}
SERVICE = {
    "source": "theirs",
    "locator": "table 1",
    "engine": "vLLM",
    "model": "llama2-7b",
    "topology": "a100-80gb:1",
    "parallelism": "TP1",
    "weight_dtype": "bf16",
    "phase": "serving",
    "concurrency": 16,
    "prompt_length": 512,
    "generated_tokens": 128,
    "published": {"tokens_per_s": 400},
}
FILES = {
    "services": [
        SERVICE,
        SERVICE | {"concurrency": None, "published": {"tokens_per_s": 450}},
        SERVICE | {"concurrency": None, "published": {"per_token_s": 0.5}},
        SERVICE | {"parallelism": "TP8"},
        SERVICE | {"phase": "served"},
        SERVICE | {"source": ""},
        SERVICE | {"generated_tokens": 0},
        SERVICE | {"concurrency": 1000},
        STEP,
    ],
    "list": [STEP, STEP | {"locator": "run 2", "batch": 8, "published_s": 0.012}],
    "object": {"cases": [STEP]},
    "beating": [STEP, STEP | {"locator": "run 3", "published_s": 0.005}],
    "mixed": [STEP, {"source": "theirs", "locator": "table 9"}, STEP | {"topology": "v9:2"}],
    "words": {"rows": [STEP]},
    "empty": [],
    "useless": [SERVICE | {"parallelism": "TP" + "9" * 5000}, STEP | {"model": ["llama2-7b"]}],
}


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    for name, data in FILES.items():
        (folder / f"{name}.json").write_text(json.dumps(data))
    (folder / "broken.json").write_text("[{")
    (folder / "deep.json").write_text("[" * 100_000 + "]" * 100_000)
    rates = {"name": "mine", "source": "guessed", "chips": ["a100-80gb"], "memory": 1,
             "compute": 1, "link": 1, "collective_s": 0, "network_s": 0, "layer_s": 0, "step_s": 0,
             "hidden": False}  # fmt: skip
    (folder / "rates.json").write_text(json.dumps(rates))
    cases = {"shipped": ["--json=-"], "table": ["--cases=list.json"]}
    cases |= {
        name: [f"--cases={name}.json", "--json=-"] for name in (*FILES, "broken", "deep", "absent")
    }
    cases["rates"] = ["--cases=object.json", "--calibration=rates.json", "--json=-"]
    elsewhere = {"measured_on": "h200", "chips": ["h200"]}
    (folder / "elsewhere.json").write_text(json.dumps(rates | elsewhere))
    cases["elsewhere"] = ["--cases=object.json", "--calibration=elsewhere.json"]
    cases["figure"] = ["--cases=object.json", "--hbm_bandwidth=1e12"]
    cases["experts"] = ["--cases=object.json", "--experts=all"]
    return run_many("reproduce_published.py", cases, folder=folder)


def test_shipped_rows_have_every_field_and_none_beats_its_floor(ended):
    done = ended["shipped"]
    assert done.code == 0, done.stderr
    rows = done.document["rows"]
    fields = {"source", "locator", "assumed", "published_s", "floor_s", "expected_s", "error"}
    assert len(rows) >= 63 + 178 and all(fields <= row.keys() for row in rows)
    assert sum(row["phase"] == "serving" for row in rows) == 129
    assert all(row["floor_s"] < row["published_s"] for row in rows)
    assert all(
        row["error"] == pytest.approx(row["expected_s"] / row["published_s"] - 1) for row in rows
    )


def test_each_source_has_a_summary_and_so_have_fitted_and_held_out_rows(ended):
    document = ended["shipped"].document
    assert set(document["summary"]) == {row["source"] for row in document["rows"]}
    assert sum(each["rows"] for each in document["summary"].values()) == len(document["rows"])
    steps = document["accuracy"]
    assert steps["decode steps"]["median"] < 0.15 and steps["decode steps"]["p90"] < 0.35
    assert (
        steps["decode steps, held out"]["rows"] + steps["decode steps, fitted"]["rows"]
        == (steps["decode steps"]["rows"])
    )


def test_services_are_reproduced_beside_steps_and_bad_ones_are_listed_in_one_line_each(ended):
    done = ended["services"]
    assert done.code == 0, done.stderr
    one, all_that_fit, single, step = done.document["rows"]
    assert (one["concurrency"], one["published_s"], one["prompts"]) == (16, 1 / 400, "beside")
    assert one["floor_s"] < one["expected_s"] < one["published_s"]
    assert all_that_fit["concurrency"] > 100 and all_that_fit["of"] == "the whole service"
    assert single["concurrency"] == 1 and single["published_s"] == 0.5
    assert (one["calibration"], step["calibration"]) == ("gpu-2023", "gpu-2023")
    assert step["batch"] == 1 and "concurrency" not in step
    reasons = {each["why"] for each in done.document["unusable"]}
    said = (
        "parallelism is 'TP8', of 8 devices, but a100-80gb:1 has 1",
        "phase is 'served'; use one of decode, prefill, run, serving",
        "case is without source; give",
        "generated_tokens is 0; use",
        f"concurrency is 1,000, but {all_that_fit['concurrency']} fit on a100-80gb:1",
    )
    assert len(reasons) == len(said) and not any("\n" in each for each in reasons)
    for words in said:
        assert any(each.startswith(words) for each in reasons), words


def test_contexts_and_printed_digits_are_reproduced_too(ended):
    document = ended["shipped"].document
    found = {(row["batch"], row["published_context"]) for row in document["longest_contexts"]}
    assert found == {(128, 1320), (512, 330), (128, 660), (512, 165), (128, 43000), (512, 10700)}
    assert all(abs(row["error"]) < 0.015 for row in document["longest_contexts"])
    assert all(row["agrees"] for row in document["reproductions"])


def test_the_document_alone_is_on_standard_output_and_the_tables_beside_it(ended):
    text = ended["shipped"].stderr
    assert "what sets apart" in text and "cannot be used:" in text and "summary: " in text


def test_cases_of_ones_own_are_reproduced_in_place_of_shipped_ones(ended):
    assert [row["locator"] for row in ended["list"].document["rows"]] == ["run 1", "run 2"]
    assert len(ended["object"].document["rows"]) == 1
    assert "reproductions" not in ended["list"].document
    done = ended["table"]
    assert done.code == 0 and done.stdout.count("llama2-7b") == 2
    assert "measured ms" in done.stdout and "kv_dtype not stated" in done.stdout


def test_cases_that_cannot_be_used_are_listed_with_the_reason(ended):
    done = ended["mixed"]
    assert done.code == 0 and len(done.document["rows"]) == 1
    reasons = [each["why"] for each in done.document["unusable"]]
    assert "model, topology, layout" in reasons[0] and "v9" in reasons[1]


def test_a_measurement_below_its_floor_fails_after_all_is_told(ended):
    done = ended["beating"]
    assert done.code == 1 and "run 3" in done.error and "below its floor" in done.error
    assert len(done.document["rows"]) == 2 and "BEATS ITS FLOOR" in done.stderr


def test_a_file_of_which_no_case_can_be_used_fails_after_all_are_listed(ended):
    done = ended["useless"]
    assert done.code == 1 and done.document["rows"] == []
    assert len(done.document["unusable"]) == 2 and "cannot be used:" in done.stderr
    assert "--cases is 'useless.json', of which no case can be used; put right" in done.error


@pytest.mark.parametrize("name", ["broken", "deep", "absent", "words", "empty"])
def test_a_file_that_cannot_be_read_is_refused_in_one_line(ended, name):
    done = ended[name]
    assert done.code == 2 and done.stdout == ""
    assert f"--cases is '{name}.json'" in done.error


def test_expected_times_are_by_the_calibration_that_is_given(ended):
    given, shipped = (ended[name].document for name in ("rates", "object"))
    assert given["calibration"] == ["mine"]
    assert given["rows"][0]["expected_s"] == pytest.approx(given["rows"][0]["floor_s"])
    assert given["rows"][0]["expected_s"] < shipped["rows"][0]["expected_s"]


@pytest.mark.parametrize(("case", "flag"), [("figure", "hbm_bandwidth"), ("experts", "experts")])
def test_what_the_cases_say_is_refused_as_a_flag(ended, case, flag):
    assert ended[case].code == 2 and ended[case].stdout == ""
    assert f"--{flag} is given, but chips and experts are those of the cases" in ended[case].error


def test_a_calibration_that_was_measured_on_no_chip_of_the_cases_is_refused_by_name(ended):
    done = ended["elsewhere"]
    assert done.code == 2
    assert "calibration mine is measured on h200, not on a100-80gb; give" in done.error
