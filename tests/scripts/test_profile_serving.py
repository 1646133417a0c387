"""profile_serving.py as a user runs it: its files, its record, and what is refused."""

import json

import pytest
from PIL import Image

from model.catalog import find_model
from model.dtypes import FLOAT32
from profiles.floor.memory_needed import need_of
from profiles.report.numbers import byte_size
from sharding.catalog import LAYOUTS
from sharding.mesh import parse_mesh
from sharding.placement import Placement
from tests.gguf_samples import write_tiny_gguf
from tests.scripts.profile_cases import QUICK_RATES
from tests.scripts.running import run_many

TINY = ["--model=tiny", "--random_weights", "--seconds=0", "--token_budget=16"]
LENGTHS = ["--prompt_length=20", "--generated_tokens=6"]
SHORT = [*TINY, *LENGTHS]
FILE = ["--model=tiny.gguf", *TINY[2:], *LENGTHS]
CASES = {
    "both": [*FILE, "--concurrency=1,2", "--rate=50", "--departure_ms=20", "--rows=2",
             "--output_dir=both", "--json=-", "--price_per_chip_hour=3.6"],
    "rate": [*SHORT, "--rate=0"],
    "rate_words": [*SHORT, "--rate=fast"],
    "rows": [*SHORT, "--concurrency=1,8", "--rows=4"],
    "concurrency": [*SHORT, "--concurrency=0"],
    "context": [*SHORT, "--context=25"],
    "too_long": [*TINY, "--prompt_length=9999999"],
    "trace": [*TINY, "--trace_file=broken.jsonl"],
    "two_lengths": [*TINY, "--trace_file=timed.jsonl", "--prompt_length=4"],
    "two_arrivals": [*TINY, "--trace_file=timed.jsonl", "--rate=4"],
    "no_times": [*SHORT, "--departure_ms=100"],
    "departure": [*SHORT, "--rate=3", "--departure_ms=-1"],
    "budget": [*SHORT, "--token_budget=1"],
    "url": ["--url=somewhere", "--concurrency=1"],
    "url_rows": ["--url=http://127.0.0.1:1", "--rows=3"],
    "key": [*SHORT, "--api_key=secret"],
    "no_draft": [*SHORT, "--draft_tokens=3"],
    "url_draft": ["--url=http://127.0.0.1:1", "--draft=ngram"],
    "no_room": [*SHORT, "--concurrency=1", "--rows=100000000", "--draft=ngram", "--draft_tokens=7"],
}  # fmt: skip
REFUSED = {
    "rate": "rate is 0.0; use a positive number",
    "rate_words": "--rate is 'fast'; use numbers",
    "rows": "--concurrency is 8, more than --rows=4",
    "concurrency": "--concurrency is '0'; use positive integers",
    "context": "prompt_length and generated_tokens are 20 and 6, 26 together, but context is 25",
    "too_long": "longest request is 10,000,063, beyond the 512 tokens",
    "trace": "line 2 of broken.jsonl is 'hello', which is no JSON",
    "two_lengths": "--prompt_length is given, but --trace_file has the lengths",
    "two_arrivals": "--rate is given, but --trace_file has arrival times",
    "no_times": "--departure_ms is 100, but no request has an arrival time",
    "departure": "--departure_ms is -1.0; use a positive number",
    "budget": "token_budget is 1",
    "url": "url is 'somewhere'; use an address",
    "url_rows": "--rows is given, but --url names a server",
    "key": "--api_key is given, but no --url",
    "no_draft": "--draft_tokens is given, but --draft is not; leave it out",
    "url_draft": "--draft is given, but --url names a server",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serving")
    write_tiny_gguf(folder / "tiny.gguf", layers=1)
    line = {"prompt_length": 20, "generated_tokens": 6}
    times = [0.0, 0.01, 0.02, 0.1]
    timed = [json.dumps(line | {"arrival_s": at}) for at in times]
    (folder / "timed.jsonl").write_text("\n".join(timed))
    (folder / "broken.jsonl").write_text(json.dumps(line) + "\nhello\n")
    return folder


@pytest.fixture(scope="module")
def ended(folder):
    return run_many("profile_serving.py", CASES, folder=folder, patches=QUICK_RATES)


def test_files_are_written_and_what_is_lost_adds_up(ended, folder):
    done = ended["both"]
    assert done.code == 0, done.stderr
    document = json.loads((folder / "both/serving.json").read_text())
    assert document["load"] == done.document["load"] and document["schema"] == 1
    kinds = [(row["arrivals"], row.get("concurrency"), row.get("rate")) for row in document["load"]]
    assert kinds == [("closed", 1, None), ("closed", 2, None), ("poisson", None, 50)]
    for row in document["load"]:
        assert row["recompilations"] == 0
        assert row["generated_tokens"] == 6 * row["requests"] and row["requests"] == 4
        assert sum(row["lost"].values()) == pytest.approx(
            row["s_per_token"] - row["floor"]["s_per_token"], rel=1e-9
        )
        cost = row["s_per_token"] * 3.6 / 3600 * 1e6
        assert row["usd_per_million_tokens"] == pytest.approx(cost)
        assert row["ideal"]["s_per_token"] > row["floor"]["s_per_token"]
    assert {(each["batch"], each["context"]) for each in document["points"]} == {(1, 22), (2, 22)}
    assert (folder / "both/serving.csv").read_text().count("\n") == 4
    assert Image.open(folder / "both/serving_cost.png").size == (1100, 590)


def test_a_train_on_schedule_is_compared_with_the_same_arrivals(ended, folder):
    document = json.loads((folder / "both/serving.json").read_text())
    (both,) = document["departures"]
    assert (both["departure_s"], both["arrivals"], both["rate"]) == (0.02, "poisson", 50)
    assert both["train"]["waiting_s"]["mean"] > 0 and both["any_step"]["total_s"]["mean"] > 0
    assert "on schedule" in ended["both"].stderr and "joining at any step" in ended["both"].stderr


@pytest.mark.slow
def test_what_drafts_came_to_is_in_the_record_and_told(folder):
    drafts = {"drafts": [*FILE, "--concurrency=2", "--draft=ngram", "--output_dir=drafts"]}
    done = run_many("profile_serving.py", drafts, folder=folder, patches=QUICK_RATES)["drafts"]
    assert done.code == 0, done.stderr
    (row,) = json.loads((folder / "drafts/serving.json").read_text())["load"]
    tally = row["speculation"]
    assert tally["tokens"] == tally["steps"] + tally["accepted"] == 5 * row["requests"]
    assert tally["accepted"] <= tally["drafted"] <= 4 * tally["steps"]
    assert row["recompilations"] == 0
    least = row["floor"]["step_s"] / (tally["tokens"] / tally["steps"]) / row["batch"]
    assert row["floor"]["s_per_token"] == pytest.approx(least)
    assert f"of {tally['drafted']} drafted tokens were accepted" in " ".join(done.stdout.split())


def test_rows_that_do_not_fit_with_the_logits_of_drafts_are_refused_before_loading(ended):
    done, config = ended["no_room"], find_model("tiny")
    placement = Placement.of(LAYOUTS["weight_stationary_1d"], config.sizes, parse_mesh("1"))
    need = need_of(config, placement, FLOAT32, batch=10**8, slots=26, tokens=8, spare=14)
    assert done.code == 1
    assert f"cache and logits is {byte_size(need.bytes)}, where there are " in done.error


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_measured_is_refused_in_one_line(case, ended):
    done = ended[case]
    assert done.code == 2, (case, done.stderr)
    assert REFUSED[case] in done.error
