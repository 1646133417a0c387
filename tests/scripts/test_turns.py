"""`generate.py --turns`: a conversation line by line, what is reused of it, and how it ends."""

import json
import os
import pty
import subprocess
import sys

import pytest

from decode.generate import Request, generate
from decode.load import find_source
from model.dtypes import FLOAT32
from sharding.catalog import LAYOUTS
from sharding.mesh import parse_mesh
from tests.gguf_samples import write_tiny_gguf
from tests.scripts.running import QUICK, SCRIPTS, environment, run_many

NEW_TOKENS = 6
TURNS = ["--model=tiny.gguf", f"--max_new_tokens={NEW_TOKENS}", "--chat", "--turns"]
TYPED = "Hi\n\n  there  \nand"  # three messages


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("turns")
    write_tiny_gguf(folder / "tiny.gguf", layers=1, tied=False, seed=3)
    return folder


@pytest.fixture(scope="module")
def talks(folder):
    """Conversations, by name."""
    cases = {
        "lines": [*TURNS, "--json=lines.json"],
        "prompt and lines": [*TURNS, "--prompt=Hi", "--json=-"],
        "chunks": [*TURNS, "--chunk=16", "--json=-"],
        "full": [*TURNS, "--max_context=80", "--json=full.json"],
    }
    typed = dict.fromkeys(cases, TYPED) | {"prompt and lines": "there\nand\n"}
    return run_many("generate.py", cases, folder=folder, typed=typed)


@pytest.fixture(scope="module")
def document(talks, folder):
    assert talks["lines"].code == 0, talks["lines"].stderr
    return json.loads((folder / "lines.json").read_text())


def test_each_line_that_is_not_empty_is_a_message_and_has_an_answer(talks, document):
    assert len(document["text"]) == len(document["tokens"]) == 3
    assert talks["lines"].stdout == "".join(f"{text}\n" for text in document["text"])
    assert "18 tokens in 3 turns; first after" in talks["lines"].stderr


def test_each_turn_is_the_whole_conversation_run_anew(document, folder):
    source = find_source(str(folder / "tiny.gguf"))
    engine = source.engine(LAYOUTS["weight_stationary_1d"], parse_mesh("1"), FLOAT32)
    stop = frozenset(source.tokenizer.stop_ids)
    for prompt, tokens in zip(document["prompt_tokens"], document["tokens"], strict=True):
        request = Request(prompts=[prompt], max_new_tokens=NEW_TOKENS, stop_ids=stop)
        *_, (anew,) = generate(engine, request)
        assert anew.tokens == tokens


def test_what_was_said_is_reused_and_counted(document):
    lengths = [len(prompt) for prompt in document["prompt_tokens"]]
    first, *later = document["reused_tokens"]
    assert first == 0
    for reused, before, now in zip(later, lengths, lengths[1:], strict=False):
        assert before <= reused < now


def test_the_first_message_may_be_a_prompt_and_chunks_change_no_token(talks, document):
    for name in ("prompt and lines", "chunks"):
        assert talks[name].document["tokens"] == document["tokens"]


def test_a_document_has_each_turns_time_to_the_first_token_and_what_of_it_compiled(document):
    assert len(document["turns"]) == 3
    for turn in document["turns"]:
        assert 0 <= turn["compile_s"] <= turn["first_token_s"]
    first = {"first_token_s": document["first_token_s"], "compile_s": document["compile_s"]}
    assert document["turns"][0] == first and first["compile_s"] > 0


def test_a_conversation_that_has_become_too_long_ends_in_one_line_with_its_answers(talks, folder):
    ended = talks["full"]
    document = json.loads((folder / "full.json").read_text())
    answered = len(document["text"])
    assert 0 < answered < 3
    assert ended.stdout == "".join(f"{text}\n" for text in document["text"])
    assert ended.code == 2
    assert ended.error.startswith("conversation is ")
    assert "max_context of tiny is 80; begin a new one, or let answers be shorter" in ended.error


def test_a_terminal_is_asked_for_each_message_until_the_end_of_input(folder):
    master, slave = pty.openpty()
    os.write(master, b"Hi\n\x04")
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "generate.py"), *TURNS],
        cwd=folder,
        env=environment(**QUICK),
        stdin=slave,
        capture_output=True,
        timeout=300,
    )
    os.close(master), os.close(slave)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(b"> > \n6 tokens; first after ")
    assert done.stdout and b">" not in done.stdout[:1]
