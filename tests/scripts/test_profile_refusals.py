"""What `profile_decode.py` refuses, each in one line and before any measurement."""

import pytest

from tests.gguf_samples import write_tiny_gguf
from tests.scripts.profile_cases import PROMPTS, TINY, write_calibration
from tests.scripts.running import run_many

REFUSED = {
    "batch 0": (["--batch=0"], 2, "--batch is '0'; use positive integers joined by commas"),
    "a batch in words": (["--batch=1,two"], 2, "--batch is '1,two'; use positive integers"),
    "no batch": (["--batch="], 2, "--batch is ''; use positive integers"),
    "negative context": (["--context=-1"], 2, "--context is '-1'; use positive integers"),
    "no context": (["--context="], 2, "--context is ''; use positive integers"),
    "devices in words": (["--devices=two"], 2, "--devices is 'two'; use positive integers"),
    "superscript": (["--devices=²"], 2, "--devices is '²'; use positive integers"),
    "devices and mesh": (["--devices=2,4", "--mesh=2"], 2, "--mesh is 2, of 2 devices, beside"),
    "mesh of nothing": (["--mesh=2x0"], 2, "mesh is '2x0'; write sizes of x, y and z"),
    "one of two counts": (["--devices=1,3"], 2, "d_ff is 128, which mesh axes z=3"),
    "long context": (
        ["--context=16,512"],
        2,
        "--context is 512 and 1 more token, beyond the 512 tokens",
    ),
    "no bandwidth": (["--hbm_bandwidth=0"], 2, "--hbm_bandwidth is 0.0; use a positive number"),
    "NaN FLOP/s": (["--peak_flops=nan"], 2, "--peak_flops is nan; use a positive number"),
    "free of charge": (["--price_per_chip_hour=-2"], 2, "--price_per_chip_hour is -2.0; use"),
    "no phase": (["--phase=serving"], 2, "--phase is 'serving'; use decode, prefill or decode,"),
    "no phases": (["--phase="], 2, "--phase is ''; use decode, prefill or decode,prefill"),
    "no dtype": (["--dtype=float8"], 2, "--dtype is 'float8'; use one of float32, bfloat16"),
    "no seconds": (["--seconds=-1"], 2, "--seconds is '-1'"),
    "NaN seconds": (["--seconds=nan"], 2, "--seconds is nan; use a number of seconds, 0 or more"),
    "no layout": (["--layout=none"], 2, "layout is 'none'; use one of"),
    "no model": (["--model=none"], 2, "model is 'none', which random weights have no shapes for"),
    "no calibration": (
        ["--calibration=gone.json"],
        2,
        "--calibration is 'gone.json', which cannot",
    ),
    "no flag": (["--prompt=a"], 2, "flag is --prompt, which is unknown"),
    "a stray argument": (["stray"], 2, "argument is 'stray', which is no flag; see --help"),
    "context of prompts": (["--phase=prefill"], 2, "--context is given, but --phase is prefill"),
    "prompts of steps": (["--prompt_length=9"], 2, "--prompt_length is given, but --phase is dec"),
    "chunk of steps": (["--chunk=64"], 2, "--chunk is given, but --phase is decode; leave it out"),
    "few slots": (["--slots=16"], 2, "slots is 16, fewer than the 17 tokens of context 16 and"),
    # Last, for what comes behind it in this process asks for no fewer devices.
    "absurd devices": (["--devices=1000000"], 2, "d_ff is 128, which mesh axes z=1000000"),
}
REFUSED_PROMPTS = {
    "an odd chunk": (["--chunk=24"], 2, "chunk is 24 tokens, which is no positive multiple of 16"),
    "no prompt": (["--prompt_length=0"], 2, "--prompt_length is '0'; use positive integers"),
    "a long prompt": (["--prompt_length=513"], 2, "--prompt_length is 513, beyond the 512 tokens"),
    "few slots of prompts": (["--prompt_length=99", "--slots=98"], 2, "slots is 98, fewer than"),
}
# Here JAX has to start first, to say what it runs on.
REFUSED_LATER = {
    "folder below a file": (["--output_dir=file/a"], 1, "output path is file/a (Not a directory)"),
    "json on a folder": (["--json=."], 1, "--json is ., not a regular file; name one"),
    "a calibration of another device": (
        ["--calibration=h200.json"],
        2,
        "calibration slow is measured on h200, not on cpu, ",
    ),
    "a calibration of another processor": (
        ["--calibration=other.json"],
        2,
        "calibration slow is measured on cpu, Some Processor, 512 cores, not on cpu, ",
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the script runs."""
    folder = tmp_path_factory.mktemp("refused")
    (folder / "file").touch()
    write_calibration(folder / "h200.json", "h200")
    write_calibration(folder / "other.json", "cpu, Some Processor, 512 cores")
    write_tiny_gguf(folder / "tiny.gguf")
    return folder


@pytest.fixture(scope="module")
def refused(folder):
    found = {}
    prompts = ["--model=tiny", *PROMPTS]
    for table, base in ((REFUSED_PROMPTS, prompts), (REFUSED, TINY), (REFUSED_LATER, TINY)):
        cases = {name: [*base, "--output_dir=no", *case[0]] for name, case in table.items()}
        found |= run_many("profile_decode.py", cases, folder=folder)
    return found


@pytest.mark.parametrize("name", [*REFUSED, *REFUSED_PROMPTS, *REFUSED_LATER])
def test_bad_input_is_refused_in_one_line_before_any_measurement(refused, folder, name):
    _, code, message = (REFUSED | REFUSED_PROMPTS | REFUSED_LATER)[name]
    ended = refused[name]
    assert ended.stderr == f"error: {ended.error}\n"
    assert ended.error.startswith(message)
    assert "; " in ended.error
    assert ended.code == code
    assert ended.stdout == ""
    assert not (ended.jax_started and name not in REFUSED_LATER)
    assert list(folder.glob("no/*")) == []
