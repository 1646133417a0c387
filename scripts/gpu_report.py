"""Measure all that this project measures on a machine with one GPU, with one command.

Runs the other scripts one after another, each in a process of its own and with a folder of its own
in --output_dir: kernels against the plain form, the microbenchmark, decode steps of a model's
shapes with random weights, with and without each kernel of --gpu_kernels, explained steps, a
compiled step of transformers beside Floorline's, and prompts. What decides most comes first, and a
kernel that is wrong is a part that failed. It needs no network, and takes less than --minutes: each
part has a share of the time, and one that needs more is ended; decode steps and prompts keep the
rows that were finished. A part that fails is named, and the rest goes on.

The same command goes on with what is not finished, also after it was killed; a folder of other
flags or versions is refused. report.md and report.json are there after every part, and hold all
that was printed and measured.

Examples:
  python scripts/gpu_report.py
  python scripts/gpu_report.py --model=llama3-8b --minutes=20 --output_dir=out/h200
  python scripts/gpu_report.py --model=tiny --batch=1,2 --context=16,32 --prompt_length=32
"""

import datetime
import json
import os
import sys
from pathlib import Path

import _common
from absl import flags

_BATCH = flags.DEFINE_list("batch", ["1", "8", "64", "256"], "Sequences per step, a list.")
_CONTEXT = flags.DEFINE_list(
    "context",
    ["512", "2048", "16384"],
    "Tokens in each sequence's cache, a list; steps are explained and compared at the middle one.",
)
_WEIGHT_DTYPE = flags.DEFINE_list(
    "weight_dtype", ["bfloat16", "int8", "int4"], "Dtypes of stored weights, a list."
)
_PROMPT_LENGTH = flags.DEFINE_list("prompt_length", ["512", "8192"], "Tokens of prompts, a list.")
_EXPLAINED_BATCH = flags.DEFINE_list(
    "explained_batch", ["1", "64"], "Sequences of steps that are explained, a list."
)
_MINUTES = flags.DEFINE_float("minutes", 9, "Time for all parts.", 0)
_OUTPUT_DIR = flags.DEFINE(_common.PATH, "output_dir", "out/gpu_report", "Folder for results.")
_SHOWN = (*_common.OF_RUNS, "model")

if __name__ == "__main__":
    for name in _SHOWN:
        flags.declare_key_flag(name)

with _common.importing(__name__):
    from model.catalog import find_model
    from profiles.report.document import document, read_document, versions
    from profiles.report.files import check_writable, write_atomically, write_json
    from profiles.report.parts import (
        CommandPart,
        State,
        read_state,
        report_markdown,
        run_parts,
    )
    from profiles.report.step_table import step_table
    from sharding.error_types import FloorlineError, UsageError
    from sharding.stored_types import KERNEL_TYPES, PLAIN_TYPES, QUANTIZED_TYPES

SCRIPTS = Path(__file__).resolve().parent
_SETTINGS = "model", "batch", "context", "weight_dtype", "prompt_length", "explained_batch"
_DOCUMENTS = "kernels.json", "profile.json", "explain.json", "engines.json", "microbenchmark.json"
_LAST_S = 20.0  # kept back for a part that needs seconds to stop
_NEW = 64  # tokens beyond the longest context or prompt


def main() -> None:
    """Runs the parts, and writes the report after each."""
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    output = Path(_OUTPUT_DIR.value).resolve()
    _check()
    settings = versions() | {name: flags.FLAGS[name].value for name in _SETTINGS}
    check_writable(output)
    _common.check_json()
    state, parts = read_state(output, settings), _parts(output)

    def report(state: State) -> None:
        _write(output, parts, state, started)

    # Programs are compiled once, however often the report goes on.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(output / "compiled"))
    seconds = max(_MINUTES.value * 60 - _LAST_S, _MINUTES.value * 30)
    run_parts(parts, output, state, seconds, _common.say, report)
    report(state)
    if _common.JSON.value:
        write_json(_common.JSON.value, json.loads((output / "report.json").read_text()))
    _common.say(f"wrote {output / 'report.json'}, {output / 'report.md'}")
    _common.show((output / "report.md").read_text(), end="")
    _refuse_unfinished(parts, state)


def _check() -> None:
    find_model(_common.MODEL.value)
    for flag in (_BATCH, _CONTEXT, _PROMPT_LENGTH, _EXPLAINED_BATCH):
        _common.integers(flag.name, flag.value)
    for name in _WEIGHT_DTYPE.value:
        if name not in (*PLAIN_TYPES, *QUANTIZED_TYPES):
            raise UsageError(
                f"--weight_dtype is {name}, which does not run; use "
                f"{', '.join((*PLAIN_TYPES, *QUANTIZED_TYPES))}"
            )
    if not 0 < _MINUTES.value < float("inf"):
        raise UsageError(f"--minutes is {_MINUTES.value}; use a positive number")


def _parts(output: Path) -> list[CommandPart]:
    """The project's own commands, in the order of their worth."""
    model = [f"--model={_common.MODEL.value}", "--random_weights", f"--max_context={_room()}"]
    joined = {flag.name: f"--{flag.name}={','.join(flag.value)}"
              for flag in (_BATCH, _CONTEXT, _WEIGHT_DTYPE, _PROMPT_LENGTH)}  # fmt: skip
    middle = _CONTEXT.value[len(_CONTEXT.value) // 2]
    # Documents keep these commands, and so no more of this machine's paths than need be.
    scripts, folder = Path(os.path.relpath(SCRIPTS)), Path(os.path.relpath(output))
    calibration = folder / "microbenchmark" / "calibration.json"
    expected = {calibration: f"--calibration={calibration}"}

    def part(name: str, script: str, *words: str, share: float = 1, **more) -> CommandPart:
        command = [sys.executable, str(scripts / script), *words, f"--output_dir={folder / name}"]
        return CommandPart(name, command, share, **more)

    steps = [*model, "--devices=1"]

    def sweep(name: str, contexts: list[str], *words: str, share: float) -> CommandPart:
        lengths = f"--context={','.join(contexts)}"
        return part(name, "profile_decode.py", *steps, joined["batch"], lengths, *words,
                    share=share, where_there=expected)  # fmt: skip

    explained = [
        part(f"explained-{batch}", "explain_step.py", *steps, f"--batch={batch}",
             f"--context={middle}", share=1)
        for batch in _EXPLAINED_BATCH.value
    ]  # fmt: skip
    types = joined["weight_dtype"]
    others = [context for context in _CONTEXT.value if context != middle]
    return [
        part("kernels", "check_kernels.py", f"--model={_common.MODEL.value}", joined["batch"],
             f"--context={middle}", share=2),
        part("microbenchmark", "microbenchmark.py", "--devices=1", "--seconds=6",
             "--dtype=bfloat16", joined["batch"].replace("batch", "rows"), share=2),
        sweep("decode", [middle], types, share=3),
        sweep("decode-no-kernels", [middle], types, "--gpu_kernels=", share=3),
        *(sweep(name, [middle], *words, share=1) for name, words in _by_kernel().items()),
        *explained,
        part("transformers", "compare_engines.py", *model, "--engines=transformers-compiled",
             f"--prompt_length={middle}", "--rounds=3", "--noone_at_a_time", share=2),
        part("prefill", "profile_decode.py", *steps, "--phase=prefill", joined["prompt_length"],
             "--seconds=10", share=1.5, where_there=expected),
        *([sweep("decode-contexts", others, types, share=3)] if others else []),
    ]  # fmt: skip


def _by_kernel() -> dict[str, list[str]]:
    """Flags of sweeps that tell kernels apart, beside those by default and none of them.

    Of one token the norm's is what is left of the difference between them.
    """
    common, plain = "attention_step,norm", [t for t in _WEIGHT_DTYPE.value if t in PLAIN_TYPES]
    kept = [t for t in _WEIGHT_DTYPE.value if t in KERNEL_TYPES and t != "int8"]
    found = {}
    if plain:
        found["decode-attention"] = ["--gpu_kernels=attention_step", f"--weight_dtype={plain[0]}"]
    if kept:
        found["decode-no-products"] = [f"--gpu_kernels={common}", f"--weight_dtype={kept[-1]}"]
    if "int8" in _WEIGHT_DTYPE.value:
        found["decode-int8"] = [f"--gpu_kernels={common},int8", "--weight_dtype=int8"]
    return found


def _room() -> int:
    """Tokens of the longest sequence: models of random weights go as far as they are told to."""
    longest = max(int(text) for text in (*_CONTEXT.value, *_PROMPT_LENGTH.value)) + _NEW
    return max(longest, find_model(_common.MODEL.value).max_context)


def _write(output: Path, parts: list[CommandPart], state: State, started: str) -> None:
    found = {}  # by part: its document
    for part in parts:
        for path in (output / part.name / name for name in _DOCUMENTS):
            if path.exists():
                found[part.name] = json.loads(path.read_text(encoding="utf-8"))
    kind = next((each["device_kind"] for each in found.values()), "")
    whole = document(
        sys.argv,
        [{**point, "part": name} for name, each in found.items() for point in each["points"]],
        device_kind=kind,
        started=started,
        bandwidth=None,
        parts=[{"name": name, **what} for name, what in state.parts.items()],
        documents={name: f"{name}/{_name(output / name)}" for name in found},
        engines=found.get("transformers", {}).get("engines", []),
    )
    write_json(output / "report.json", whole)
    title = f"{_common.MODEL.value} with random weights on {kind or 'these devices'}"
    page = report_markdown(title, parts, state, output, _table_so_far)
    write_atomically(output / "report.md", page.encode())


def _name(folder: Path) -> str:
    return next(name for name in _DOCUMENTS if (folder / name).exists())


def _table_so_far(folder: Path) -> str:
    """The table of a sweep that was ended before it printed one."""
    path = folder / "profile.json"
    if not path.exists():
        return ""
    run = read_document(path)
    return step_table(run["points"], run["bandwidth"], run.get("calibration"))


def _refuse_unfinished(parts: list[CommandPart], state: State) -> None:
    unfinished = [part.name for part in parts if not state.done(part.name)]
    if unfinished:
        words = ", ".join(f"{name} is {state.parts[name]['status']}" for name in unfinished)
        raise FloorlineError(
            f"number of parts finished is {len(parts) - len(unfinished)} of {len(parts)} "
            f"({words}); the same command goes on with the others"
        )


if __name__ == "__main__":
    _common.start(main, _SHOWN)
