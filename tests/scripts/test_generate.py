"""`generate.py` as users run it: its text, its document, and one line for whatever is wrong."""

import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from decode.generate import cache_slots
from decode.tokenizer import Tokenizer
from model.catalog import find_model
from model.dtypes import FLOAT32
from model.weights.gguf_file import GGUFFile
from profiles.floor.memory_needed import need_of
from profiles.report.numbers import byte_size
from sharding.catalog import LAYOUTS
from sharding.mesh import parse_mesh
from sharding.placement import Placement
from tests.family_cases import FOLDER
from tests.gguf_families import write_gguf
from tests.gguf_samples import CHAT_TEMPLATE, write_tiny_gguf
from tests.scripts.refused_runs import REFUSED, TOKENS
from tests.scripts.running import QUICK, SCRIPTS, environment, run, run_many

TINY = {"layers": 1, "tied": False, "seed": 3}
PROMPT = "the end of a story"
NEW_TOKENS = 24
IDS = ["--prompt_tokens=5,6,7", "--max_new_tokens=6", "--json=-"]
RANDOM = ["--model=tiny", "--random_weights"]
OF_OLLAMA = f"models/blobs/sha256-{'0123456789abcdef' * 4}"  # as its store names files
IN_PARTS = "--model=tiny-00001-of-00003.gguf"
LISTS = ("prompt_tokens", "tokens", "text", "logprobs", "finish_reasons")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where models are and scripts run: tiny.gguf, and damaged copies of it."""
    folder = tmp_path_factory.mktemp("generate")
    write_tiny_gguf(folder / "tiny.gguf", **TINY)
    write_tiny_gguf(folder / "tiny.gguf", **TINY, tensors_per_part=4)
    write_tiny_gguf(folder / "half.gguf", **TINY, tensors_per_part=6)
    (folder / "half-00002-of-00002.gguf").unlink()
    (folder / OF_OLLAMA).parent.mkdir(parents=True)
    shutil.copy(folder / "tiny.gguf", folder / OF_OLLAMA)
    write_tiny_gguf(folder / "long.gguf", max_context=200_000)
    write_gguf(FOLDER / "mixtral", folder / "wordless.gguf")
    write_folders(folder)
    whole = (folder / "tiny.gguf").read_bytes()
    (folder / "truncated.gguf").write_bytes(whole[: len(whole) // 2])
    (folder / "corrupt.gguf").write_bytes(whole[:8] + b"\xff" * 8 + whole[16:])
    (folder / "text.gguf").write_text("GG, which is no GGUF")
    (folder / "empty.gguf").touch()
    changes = {
        "architecture": {"metadata": {"general.architecture": "gptneox"}},
        "untemplated": {"metadata": {"tokenizer.chat_template": None}},
        "lacking": {"tensors": {"blk.1.ffn_up.weight": None}},
        "crowded": {"tensors": {"blk.0.attn_q_norm.weight": np.zeros(16, np.float32)}},
        "misshapen": {"tensors": {"blk.0.ffn_down.weight": np.zeros((32, 65), np.float32)}},
        "infinite": {"tensors": {"output_norm.weight": np.full(32, np.inf, np.float32)}},
    }
    for name, change in changes.items():
        write_tiny_gguf(folder / f"{name}.gguf", **change)
    return folder


def write_folders(folder):
    """Hugging Face folders in which one thing is wrong."""
    for name in ("shardless", "family", "field", "quantized"):
        shutil.copytree(FOLDER / "llama2", folder / name)
    (folder / "shardless" / "model-00002-of-00005.safetensors").unlink()
    for name, change in {
        "family": {"model_type": "mamba"},
        "field": {"logits_scaling": 2.0},
        "quantized": {"quantization_config": {"quant_method": "gptq"}},
    }.items():
        path = folder / name / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))


# What works --------------------------------------------------------------------------------------

PLAIN = ["--model=tiny.gguf", f"--prompt={PROMPT}", f"--max_new_tokens={NEW_TOKENS}"]
SAMPLED = [*PLAIN, "--temperature=1.5", "--top_k=60", "--top_p=0.98", "--min_p=0.001", "--json=-"]


@pytest.fixture(scope="module")
def alone(folder):
    """One prompt on one device: how it ended and its document, which went to a file."""
    ended = run("generate.py", *PLAIN, "--json=results/alone.json", folder=folder, **QUICK)
    assert ended.code == 0, ended.stderr
    return ended, json.loads((folder / "results" / "alone.json").read_text())


@pytest.fixture(scope="module")
def more(folder, alone):
    """Further runs, by name."""
    end, stop = two_ends(alone[1]["tokens"][0])
    write_tiny_gguf(folder / "ends.gguf", **TINY, metadata={"tokenizer.ggml.eos_token_id": end})
    ends = ["--model=ends.gguf", *PLAIN[1:]]
    cases = {
        "batch": [IN_PARTS, *PLAIN[1:], "--prompt=He", "--no_cache", "--json=results/batch.json"],
        "first seed": [*SAMPLED, "--seed=1"],
        "first seed again": [*SAMPLED, "--seed=1"],
        "second seed": [*SAMPLED, "--seed=2"],
        "stop": [*ends, "--ignore_eos", f"--stop={stop}", "--json=-"],
        "uneven": [*ends, "--prompt=He", "--json=results/uneven.json"],
        "chat": [*PLAIN, "--chat", "--max_new_tokens=1", "--no_cache", "--json=-"],
        "ids in a folder": [f"--model={FOLDER / 'mixtral'}", *IDS],
        "ids in a file": ["--model=wordless.gguf", *IDS],
        "weights anyhow": [
            *PLAIN,
            "--weight_layout=auto",
            f"--stop={stop_text(alone[1])}",
            "--json=results/stop.json",
        ],
        "draft": [
            f"--model={OF_OLLAMA}",
            *PLAIN[1:],
            "--draft=tiny.gguf",
            "--draft_tokens=3",
            "--json=results/draft.json",
        ],
        "damaged values": ["--model=infinite.gguf", *PLAIN[1:], "--json=damaged.json"],
    }
    return run_many("generate.py", cases, folder=folder)


def stop_text(document):
    """Letters of several tokens of an answer."""
    return document["text"][0][5:9]


def two_ends(tokens):
    """Two tokens that come late for the first time, the end of a text and what comes behind it."""
    late = [token for token in dict.fromkeys(tokens) if tokens.index(token) > 2]
    assert len(late) > 1
    return late[0], late[-1]


def test_standard_output_is_the_text_and_nothing_else(alone):
    ended, document = alone
    assert ended.stdout == document["text"][0] + "\n"
    assert f"{NEW_TOKENS} tokens; first after" in ended.stderr


def test_the_document_holds_the_run_and_a_list_for_each_prompt(alone, folder):
    document = alone[1]
    assert document["schema"] == 1
    assert document["command"] == [
        str(SCRIPTS / "generate.py"), *PLAIN, "--json=results/alone.json"
    ]  # fmt: skip
    assert {"python", "jax", "jaxlib", "flax"} <= document["versions"].keys()
    assert document["device_kind"] == "cpu"
    assert document["started"][:2] == "20"
    assert [len(document[name]) for name in LISTS] == [1] * len(LISTS)
    tokenizer = Tokenizer.from_gguf(GGUFFile(folder / "tiny.gguf").metadata)
    assert document["prompt_tokens"][0] == tokenizer.encode(PROMPT)
    assert document["text"][0] == tokenizer.decode(document["tokens"][0])
    assert len(document["tokens"][0]) == len(document["logprobs"][0]) == NEW_TOKENS
    assert all(logprob <= 0 for logprob in document["logprobs"][0])
    assert document["finish_reasons"] == ["length"]
    (record,) = document["points"]
    assert (record["batch"], record["devices"], record["dtype"]) == (1, 1, "float32")


@pytest.mark.parametrize("run_of_it", ["batch", "draft"])
def test_a_file_in_parts_or_of_any_name_gives_the_same_tokens(more, alone, folder, run_of_it):
    assert more[run_of_it].code == 0, more[run_of_it].stderr
    document = json.loads((folder / "results" / f"{run_of_it}.json").read_text())
    assert document["command"][1] in (IN_PARTS, f"--model={OF_OLLAMA}")
    assert document["prompt_tokens"][0] == alone[1]["prompt_tokens"][0]
    assert document["tokens"][0] == alone[1]["tokens"][0]


def test_two_devices_give_the_same_tokens_and_json_alone_on_standard_output(alone, folder):
    two = {"": [*PLAIN, "--devices=2", "--json=-"]}
    document = run_many("generate.py", two, folder=folder)[""].document
    assert document["points"][0]["mesh"] == {"x": 1, "y": 1, "z": 2}
    assert document["tokens"] == alone[1]["tokens"]
    np.testing.assert_allclose(document["logprobs"], alone[1]["logprobs"], atol=1e-4)


def test_divided_experts_give_the_same_tokens_and_are_stated(more, folder):
    divided = [
        f"--model={FOLDER / 'mixtral'}", *IDS, "--mesh=2x1x2", "--expert_parallel",
        "--layout=weight_stationary_2d", "--prefill_layout=weight_gathered_xyz",
    ]  # fmt: skip
    ended = run_many("generate.py", {"divided": divided}, folder=folder)["divided"]
    found, expected = ended.document, more["ids in a folder"].document
    assert found["tokens"] == expected["tokens"]
    assert "layout weight_stationary_2d on 2x1x2: 1 of 4 experts on each device" in ended.stderr
    assert found["points"][0]["expert_parallel"] is True
    assert "expert_parallel" not in expected["points"][0]


def test_a_batch_of_two_prompts_is_printed_with_numbers(more, folder):
    ended = more["batch"]
    document = json.loads((folder / "results" / "batch.json").read_text())
    assert [len(document[name]) for name in LISTS] == [2] * len(LISTS)
    texts = document["text"]
    assert ended.stdout == f"[0] {texts[0]}\n[1] {texts[1]}\n"


def test_weights_as_the_compiler_wants_them_are_stated_and_give_the_same_text(more, alone):
    text = alone[1]["text"][0].split(stop_text(alone[1]))[0]
    assert more["weights anyhow"].stdout == text + "\n"
    assert "as the compiler would have them for batch 1: 0 of " in more["weights anyhow"].stderr


def test_a_draft_changes_no_token_and_what_it_came_to_is_told(more, alone, folder):
    document = json.loads((folder / "results" / "draft.json").read_text())
    assert document["tokens"] == alone[1]["tokens"]
    found, left = document["speculation"], len(document["tokens"][0]) - 1
    assert found["accepted"] == found["drafted"] == left - found["steps"]  # its own draft
    (record,) = document["points"]
    assert record["tokens_per_sequence"] == 4
    (prompt,) = document["prompt_tokens"]
    assert record["context"] == len(prompt) + (left + 1) // 2  # halfway, of steps of many tokens
    said = rf"draft: 100% of {found['drafted']} tokens accepted, \S+ tokens a step; no floor of "
    said += r"such a step \(cache_resident: its \S+ .B per device are less than 4 times the cache "
    said += r".*\); measured \S+ ms a step, \S+ ms per token"
    assert re.search(said, more["draft"].stderr)


def test_a_seed_repeats_its_tokens_and_another_changes_them(more):
    first, again, second = (
        more[name].document for name in ("first seed", "first seed again", "second seed")
    )
    assert first["tokens"] == again["tokens"]
    assert first["logprobs"] == again["logprobs"]
    assert first["tokens"] != second["tokens"]


def test_without_a_cache_the_text_is_said_to_be_the_same(more):
    assert "times slower, the same text" in more["batch"].stderr


def test_the_cache_that_is_told_is_the_one_that_is_allocated(more, alone):
    """Layers x keys and values x heads x their size x slots x bytes, of two sequences."""
    prompt = len(alone[1]["prompt_tokens"][0])
    slots = cache_slots(prompt, NEW_TOKENS, 256)
    assert slots == 64 > prompt + NEW_TOKENS
    kilobytes = 1 * 2 * 2 * 16 * slots * 4 * 2 / 1e3
    assert f" {kilobytes:.1f} kB of cache" in more["batch"].stderr


def test_tokens_a_second_are_those_that_were_made_after_the_first_step(more, folder):
    document = json.loads((folder / "results" / "uneven.json").read_text())
    counts = [len(tokens) for tokens in document["tokens"]]
    assert min(counts) < max(counts)  # one ends before the other
    seconds = sum(document["points"][0]["step_s"]["samples"])
    rate = re.search(r"median\), ([\d,.]+) tokens/s", more["uneven"].stderr)[1].replace(",", "")
    assert float(rate) == pytest.approx((sum(counts) - 2) / seconds, rel=0.006)


def test_a_document_has_the_time_to_the_first_token(alone):
    said = re.search(r"first after ([\d.]+) s", alone[0].stderr)[1]
    assert alone[1]["first_token_s"] == pytest.approx(float(said), abs=0.006)


def test_one_token_is_too_few_to_compare_times(more):
    assert "KV cache: the same text without it; three tokens" in more["chat"].stderr


def test_the_end_token_ends_the_text_and_is_not_in_it(more, alone, folder):
    tokens = alone[1]["tokens"][0]
    document = json.loads((folder / "results" / "uneven.json").read_text())
    assert document["tokens"][0] == tokens[: tokens.index(two_ends(tokens)[0])]
    assert document["finish_reasons"][0] == "stop"


def test_the_end_token_can_be_ignored_and_another_id_end_the_text(more, alone):
    tokens = alone[1]["tokens"][0]
    document = more["stop"].document
    assert document["tokens"] == [tokens[: tokens.index(two_ends(tokens)[1])]]
    assert document["finish_reasons"] == ["stop"]


def test_a_text_of_several_tokens_ends_an_answer_before_it(more, alone, folder):
    ended, (whole,) = more["weights anyhow"], alone[1]["text"]
    document = json.loads((folder / "results" / "stop.json").read_text())
    assert document["text"] == [whole.split(stop_text(alone[1]))[0]]
    assert document["finish_reasons"] == ["stop"] and "is cut" not in ended.stderr
    assert f"answer is cut at {NEW_TOKENS} tokens, the limit of --max_new_tokens" in alone[0].stderr


def test_a_chat_prompt_goes_through_the_models_template(more, folder):
    assert "<|im_start|>assistant" in CHAT_TEMPLATE
    rendered = f"<|im_start|>user\n{PROMPT}<|im_end|>\n<|im_start|>assistant\n"
    tokenizer = Tokenizer.from_gguf(GGUFFile(folder / "tiny.gguf").metadata)
    expected = tokenizer.encode(rendered, special=True)
    assert more["chat"].document["prompt_tokens"] == [expected]


def test_without_a_tokenizer_ids_go_in_and_come_out(more):
    folder, file = more["ids in a folder"].document, more["ids in a file"].document
    assert folder["tokens"] == file["tokens"] and len(file["tokens"][0]) == 6
    assert folder["text"] == [" ".join(map(str, folder["tokens"][0]))]


def test_values_found_damaged_while_loading_are_one_line_and_no_document(more, folder):
    ended = more["damaged values"]
    assert ended.code == 1
    assert ended.error.startswith("tensor 'output_norm.weight' of infinite.gguf is not finite")
    assert not (folder / "damaged.json").exists()


def next_piece(pipe):
    """Some of what a process has written, once there is anything."""
    assert select.select([pipe], [], [], 300)[0], "no text arrived in five minutes"
    return os.read(pipe.fileno(), 100)


def test_text_arrives_while_it_is_decoded_and_an_interrupt_is_one_line(folder):
    # A pipe holds 64 KB of what is not read, so that the script cannot come to the end of so many
    # tokens: what arrives before an interrupt was not held back to that.
    flags = ["--model=long.gguf", "--prompt=the", "--max_new_tokens=190000", "--ignore_eos"]
    # Where the tests run in the background, interrupts may be ignored from birth.
    heed = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); "
    heed += "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    process = subprocess.Popen(
        [sys.executable, "-c", heed, str(SCRIPTS / "generate.py"), *flags],
        cwd=folder,
        env=environment(**QUICK),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        pieces = [next_piece(process.stdout) for _ in range(8)]
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        rest, said = process.communicate(timeout=300)
    finally:
        process.kill()
    assert all(pieces)
    assert len(rest) < 100_000 and rest.endswith(b"\n")  # the error has a line of its own
    assert process.returncode == 130
    assert said.decode().splitlines() == ["error: run is interrupted; nothing more was written"]


# What does not -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def refused(folder):
    # The last of two flags counts: a case may name another file.
    cases = {name: ["--json=refused/a.json", *case[0]] for name, case in REFUSED.items()}
    cases["with --verbose"] = [*TOKENS, "--devices=5", "--verbose"]
    return run_many("generate.py", cases, folder=folder)


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_refused_in_one_line_before_any_work(refused, name):
    _, code, *parts = REFUSED[name]
    ended = refused[name]
    assert ended.stderr == f"error: {ended.error}\n"
    assert ended.code == code
    assert ended.stdout == ""
    assert not ended.jax_started
    at = 0
    for part in parts:
        assert part in ended.error[at:]
        at = ended.error.index(part, at) + len(part)


def test_a_refused_run_leaves_no_document(refused, folder):
    assert not (folder / "refused").exists()


def test_a_prompt_with_no_room_is_refused_before_loading_and_a_chunk_that_fits_is_named(folder):
    config = find_model("tiny")
    placement = Placement.of(LAYOUTS["weight_stationary_1d"], config.sizes, parse_mesh("1"))
    sizes = {"batch": 1, "slots": 512}
    whole, fits = (need_of(config, placement, FLOAT32, **sizes, prompt=(200, n)) for n in (256, 64))
    (folder / "memory.max").write_text(f"{fits.bytes:.0f}")
    (folder / "memory.stat").write_text("anon 0")
    ids = ",".join(["1"] * 200)
    arguments = [*RANDOM, f"--prompt_tokens={ids}", "--max_new_tokens=300", "--chunk=256"]
    group = {"profiles.floor.memory_needed.GROUP": str(folder)}
    cases = {"refused": arguments, "taken": [*arguments, "--chunk=64", "--max_new_tokens=249"]}
    ended = run_many("generate.py", cases, folder=folder, patches=group)
    assert ended["refused"].code == 1
    assert "prompt is 200 tokens in chunks of 256: batch 1 needs " in ended["refused"].error
    assert f"batch 1 needs {byte_size(whole.bytes)}, " in ended["refused"].error
    assert ended["refused"].error.endswith(", or --chunk=64 at most")
    assert ended["taken"].code == 0, ended["taken"].stderr


def test_verbose_shows_where_and_still_ends_in_the_line(refused):
    ended = refused["with --verbose"]
    assert ended.code == 2
    lines = ended.stderr.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1].startswith("error: d_ff is 128")
