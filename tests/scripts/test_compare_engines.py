"""compare_engines.py as a user runs it, with planted engines: files, table, and what is refused."""

import json

import pytest

from profiles.peers.engine_process import ENGINES
from tests.scripts.running import run_many

PLANTED = {
    "profiles.peers.engine_process.ENGINES": dict.fromkeys(
        ENGINES, "tests.profiles.peers.planted_engine"
    )
}
TINY = ["--model=tiny", "--random_weights", "--rounds=3", "--prompt_length=5"]
CASES = {
    "all": [*TINY, "--batch=2", "--max_new_tokens=4", "--output_dir=all", "--json=all.json"],
    "absent": [*TINY, "--engines=llama.cpp-quantized", "--output_dir=absent"],
    "typed": [*TINY, "--engines=transformers", "--dtype=float32", "--output_dir=typed"],
    "types": [*TINY, "--dtype=float32,bfloat16"],
    "counted type": [*TINY, "--dtype=fp8"],
    "unknown": [*TINY, "--engines=vllm"],
    "none": [*TINY, "--engines=floorline"],
    "threads": [*TINY, "--threads=100000"],
    "long": [*TINY, "--max_new_tokens=510"],
    "text": ["--model=tiny", "--random_weights", "--prompt=Once"],
    "both": [*TINY, "--prompt=Once"],
    "chat": [*TINY, "--chat"],
    "tokens": [*TINY, "--max_new_tokens=1"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("engines")


@pytest.fixture(scope="module")
def ended(folder):
    return run_many("compare_engines.py", CASES, folder=folder, patches=PLANTED)


def test_files_are_written_and_a_table_is_printed(ended, folder):
    done = ended["all"]
    assert done.code == 0, done.stderr
    document = json.loads((folder / "all/engines.json").read_text())
    assert document == json.loads((folder / "all.json").read_text())
    assert {path.name for path in (folder / "all").iterdir()} == {"engines.json", "engines.png"}
    rows = {row["name"]: row for row in document["engines"]}
    assert list(rows) == [name for name in ENGINES if name != "transformers-generate"]
    assert rows["floorline"].keys() >= {"version", "step_s", "tokens_per_s", "first_token_s"}
    # Floorline has the default of its devices, and the others what Floorline has.
    assert document["device_kind"] == "cpu" and document["dtype"] == "bfloat16"
    assert {row["dtype"] for row in rows.values() if row["status"] == "ok"} == {"bfloat16"}
    assert document["work"]["batch"] == 2 and document["work"]["rounds"] == 3
    ratio = next(each for each in document["ratios"] if each["name"] == "transformers")
    assert ratio["step"] == pytest.approx(2)
    assert "transformers  " in done.stdout and "2.00" in done.stdout
    words = " ".join(done.stdout.split())
    assert "missing: package a_package_that_is_not_there is missing; pip install" in words
    assert "llama.cpp failed in round 2: exit code of llama.cpp is 139" in words
    assert not done.jax_started  # devices are the engines' alone


def test_a_type_that_is_given_is_that_of_all_engines(ended, folder):
    assert ended["typed"].code == 0, ended["typed"].stderr
    document = json.loads((folder / "typed/engines.json").read_text())
    assert {row["dtype"] for row in document["engines"]} == {document["dtype"]} == {"float32"}


def test_a_comparison_without_any_peer_fails_and_keeps_its_file(ended, folder):
    done = ended["absent"]
    assert done.code == 1
    assert "number of engines measured is 1 of 2 (llama.cpp-quantized is missing" in done.error
    assert (folder / "absent/engines.json").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("types", "--dtype is float32,bfloat16; give one of them"),
        ("counted type", "--dtype is fp8, which is counted but does not run; use one of"),
        ("unknown", "--engines has 'vllm'; use some of floorline, transformers"),
        ("none", "--engines has no peer; use some of transformers"),
        ("threads", "--threads is 100000, more than the"),
        ("long", "prompt is 5 tokens and --max_new_tokens is 510, but max_context of tiny is 512"),
        ("text", "--prompt is text, but tiny has no tokenizer; give --prompt_length"),
        ("both", "--prompt_length is given beside --prompt; leave"),
        ("chat", "--chat is set, but no --prompt is given; pass"),
        ("tokens", "--max_new_tokens"),
    ],
)
def test_wrong_use_is_one_line(ended, name, message):
    assert ended[name].code == 2
    assert message in ended[name].error
