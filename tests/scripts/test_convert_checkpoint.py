"""`convert_checkpoint.py` as users run it: what it writes, and one line for whatever is wrong."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from model.weights.orbax_checkpoint import MANIFEST, OrbaxFolder
from tests.family_cases import FOLDER
from tests.gguf_samples import write_tiny_gguf
from tests.scripts.running import SCRIPTS, environment, run_many

PROMPT = ["--prompt=the end", "--max_new_tokens=8", "--json=-"]
LLAMA = str(FOLDER / "llama2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("convert")
    write_tiny_gguf(folder / "tiny.gguf")
    return folder


@pytest.fixture(scope="module")
def converted(folder):
    """How each conversion ended, by name."""
    cases = {
        "sharded": ["--model=tiny.gguf", "--output_dir=first", "--mesh=2x2x2", "--json=tiny.json"],
        "half": [f"--model={LLAMA}", "--output_dir=half", "--dtype=bfloat16", "--json=-"],
        "few bits": [f"--model={FOLDER / 'gpt_oss_mxfp4'}", "--output_dir=few", "--json=-"],
        "again": ["--model=./first", "--output_dir=half/../again"],
        "over": ["--model=tiny.gguf", "--output_dir=half"],
    }
    return run_many("convert_checkpoint.py", cases, folder=folder)


def test_the_converted_model_answers_as_its_source(folder, converted):
    assert all(ended.code == 0 for ended in converted.values()), converted
    models = {
        name: [f"--model={name}", *PROMPT] for name in ("tiny.gguf", "./first", "./again", "./half")
    }
    ended = run_many("generate.py", models, folder=folder)
    texts = [ended[name].document["text"] for name in models]
    assert texts == [texts[0]] * 4  # "half" was overwritten by the last conversion


def test_the_document_and_the_last_line_say_what_was_written(folder, converted):
    document = json.loads((folder / "tiny.json").read_text())
    assert document["model"] == "tiny" and document["dtype"] == "float32"
    assert document["bytes"] == OrbaxFolder(folder / "first").bytes
    assert document["load_s"] > 0 and document["save_s"] > 0
    assert document["checkpoint"] == "first"
    assert converted["half"].document["dtype"] == "bfloat16"
    assert converted["few bits"].document["weight_dtype"] == "mxfp4"
    assert "tiny in float32: " in converted["sharded"].stderr
    assert " MB/s)" in converted["sharded"].stderr
    assert converted["sharded"].stdout == ""
    lacking = "it takes token ids and no text, for llama2 has no tokenizer"
    assert lacking in converted["half"].stderr and "no text" not in converted["sharded"].stderr


REFUSED = {
    "no folder": ([f"--model={LLAMA}"], 2, "--output_dir is missing; name the folder"),
    "a folder of others": (
        [f"--model={LLAMA}", "--output_dir=others"],
        1,
        "folder ", "others holds 'thesis.tex'", "; name a new folder",
    ),
    "a file": ([f"--model={LLAMA}", "--output_dir=tiny.gguf"], 1, "tiny.gguf is no folder", "; "),
    "below a file": ([f"--model={LLAMA}", "--output_dir=tiny.gguf/x"], 1, "(Not a directory); "),
    "no model": (["--model=nothing/here", "--output_dir=new"], 1, "nothing/here", "; "),
    "damaged": (["--model=damaged", "--output_dir=new"], 1, "is 10000 bytes, not ", "; the file"),
    "mesh": (
        ["--model=tiny.gguf", "--output_dir=new", "--devices=7"],
        2,
        "d_ff is 64", "z=7", "; use",
    ),
    "for nothing": (
        ["--model=tiny.gguf", "--output_dir=new", "--attention=batch"],
        2,
        "--attention is given, but a checkpoint is the same for all steps; leave it out",
    ),
    "shapes alone": (["--model=llama3-8b", "--output_dir=new"], 2, "'llama3-8b', whose weights"),
    "dtype": (["--model=tiny.gguf", "--output_dir=new", "--dtype=int3"], 2, "'int3'", "; use one"),
}  # fmt: skip


@pytest.fixture(scope="module")
def refused(folder):
    (folder / "others").mkdir()
    (folder / "others" / "thesis.tex").write_text("x")
    shutil.copytree(FOLDER / "qwen2", folder / "damaged")
    os.truncate(folder / "damaged" / "model.safetensors", 10_000)
    cases = {name: case[0] for name, case in REFUSED.items()}
    return run_many("convert_checkpoint.py", cases, folder=folder)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_converted_is_one_line(refused, folder, name):
    _, code, *parts = REFUSED[name]
    ended = refused[name]
    assert ended.code == code and ended.stdout == ""
    assert ended.stderr == f"error: {ended.error}\n"
    assert all(part in ended.error for part in parts), ended.error
    assert not (folder / "new").exists()
    assert [path.name for path in (folder / "others").iterdir()] == ["thesis.tex"]


def test_a_full_disk_is_one_line_an_end_at_once_and_leaves_nothing(folder):
    """A limit on the size of files stands in for the disk: Orbax fails in threads of its own."""
    flags = f"--model={FOLDER / 'mixtral'} --output_dir=full --dtype=float32"
    line = f"ulimit -f 8; exec {sys.executable} {SCRIPTS / 'convert_checkpoint.py'} {flags}"
    done = subprocess.run(
        ["sh", "-c", line],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(
        "error: folder .*full cannot be written to .File too large.; .*\n", done.stderr
    )
    assert not (folder / "full").exists()


def test_a_checkpoint_that_lost_a_byte_is_refused_in_one_line(folder, converted):
    shutil.copytree(folder / "first", folder / "short")
    data = next(p for p in (folder / "short").rglob("*") if p.is_file() and p.name != MANIFEST)
    data.write_bytes(data.read_bytes()[:-1])
    ended = run_many("generate.py", {"short": ["--model=short", *PROMPT]}, folder=folder)["short"]
    assert ended.code == 1 and "the checkpoint is damaged" in ended.error
