"""Compare decode steps with other engines here: the same weights, prompts, batch and threads.

Floorline on one device beside Hugging Face transformers (a plain loop; a static cache compiled by
torch.compile) and llama.cpp (the same weights in one plain type; its own quantized file). Each runs
in a process of its own, which is loaded once and waits; rounds go through the engines in turns.
A round continues all prompts greedily: the time to the first token is the prompt's, and a step's is
the mean over the others. Texts are compared token by token, up to one that ends Floorline's.

An engine that is not installed, does not take the model or fails has a row that says so. All get
the same processors, as many as --threads, and as many threads. On a GPU transformers runs on it
too, and llama.cpp is left out. With --random_weights each engine draws its own, in shapes of
Llama, and texts are not compared.

Writes engines.json and engines.png to --output_dir, then prints. Needs pip install -e '.[compare]'.

Examples:
  python scripts/compare_engines.py
  python scripts/compare_engines.py --chat --prompt="Why is the sky blue?" --max_new_tokens=64
  python scripts/compare_engines.py --batch=8 --prompt_length=128 --engines=llama.cpp,transformers
  python scripts/compare_engines.py --model=llama3-8b --random_weights --prompt_length=2048 \\
      --engines=transformers-compiled --json=-
"""

import datetime
import os
import sys
import tempfile
from pathlib import Path

import _array_flags
import _common
from absl import flags

_PROMPT = flags.DEFINE_string("prompt", None, "Text that every sequence continues.")
_CHAT = flags.DEFINE_bool("chat", False, "Put the prompt into the model's chat template.")
_PROMPT_LENGTH = flags.DEFINE_integer(
    "prompt_length", 128, "Tokens of prompts that are drawn at random, where --prompt is absent.", 1
)
_BATCH = flags.DEFINE_integer("batch", 1, "Sequences decoded together.", 1)
_MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 32, "Tokens that each gets.", 2)
_ROUNDS = flags.DEFINE_integer("rounds", 7, "Rounds that count.", 1)
_THREADS = flags.DEFINE_integer(
    "threads", None, "Processors and threads of each engine. Default: all that are here.", 1
)
_ENGINES = flags.DEFINE_list(
    "engines",
    None,
    "Peers of Floorline, a list: transformers, transformers-compiled, transformers-generate (its "
    "own loop), llama.cpp, llama.cpp-quantized. Default: all but its own loop.",
)
_ONE_AT_A_TIME = flags.DEFINE_bool(
    "one_at_a_time",
    None,
    "Load an engine anew for each of its rounds. Default: where weights of all would not fit.",
)
_OUTPUT_DIR = flags.DEFINE(_common.PATH, "output_dir", "out/engines", "Folder for results.")
_ROOM = 1.5  # bytes of an engine over those of its weights
_SHOWN = (*_common.OF_SHAPES, "accept_terms", "random_weights")

if __name__ == "__main__":
    for name in (*_SHOWN, "dtype"):
        flags.declare_key_flag(name)

with _common.importing(__name__):
    import _dtypes

    from decode.generate import PromptError
    from decode.load import ModelSource
    from model.declarations import total_bytes
    from model.dtypes import PLAIN_DTYPES, Dtypes
    from model.transformer import Transformer
    from model.weights.gguf_file import GGUFFile
    from model.weights.orbax_checkpoint import OrbaxFolder
    from profiles.figures.engines import engine_bars
    from profiles.floor.memory_needed import free_memory
    from profiles.peers.comparison import Outcome, compare, engine_rows, random_prompts, ratios
    from profiles.peers.comparison_table import engine_table, notes
    from profiles.peers.engine_process import DEFAULT, ENGINES, OWN
    from profiles.peers.messages import Job, Work
    from profiles.peers.shapes import llama_fields
    from profiles.report.document import document
    from profiles.report.files import check_writable, write_json
    from profiles.report.numbers import exact
    from profiles.report.table import wrap
    from sharding.error_types import FloorlineError, UsageError


def main() -> None:
    """Runs the engines, and writes and prints the results."""
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    output = Path(_OUTPUT_DIR.value)
    threads, names = _threads(), _names()
    _dtypes.check()
    source = _common.source()
    work = Work(_prompts(source), _MAX_NEW_TOKENS.value)
    check_writable(output)
    _common.check_json()
    with tempfile.TemporaryDirectory(dir=output) as scratch:
        jobs = [_job(source, name, threads, work, scratch) for name in names]
        together = _together(source, len(jobs))
        outcomes = compare(jobs, work, _ROUNDS.value, together=together, say=_common.say)
    results = _document(source, outcomes, work, started, together)
    write_json(output / "engines.json", results)
    engine_bars(results, output / "engines.png")
    if _common.JSON.value:
        write_json(_common.JSON.value, results)
    _common.say(f"wrote {output / 'engines.json'}, {output / 'engines.png'}")
    _common.show(wrap(_title(results), 2) + "\n")
    _common.show(engine_table(results["engines"], results["ratios"]).terminal())
    for note in notes(results["engines"]):
        _common.show("\n" + wrap(note, 2))
    _refuse_too_few(outcomes)


def _names() -> list[str]:
    """The engines, Floorline first."""
    names = DEFAULT if _ENGINES.value is None else _ENGINES.value
    for name in names:
        if name not in ENGINES:
            raise UsageError(f"--engines has {name!r}; use some of {', '.join(ENGINES)}")
    names = list(dict.fromkeys([OWN, *names]))
    if len(names) < 2:
        raise UsageError(f"--engines has no peer; use some of {', '.join(list(ENGINES)[1:])}")
    return names


def _threads() -> int:
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if (_THREADS.value or 1) > here:
        raise UsageError(
            f"--threads is {_THREADS.value}, more than the {here} processors here; use {here}"
        )
    return _THREADS.value or here


def _prompts(source: ModelSource) -> list[list[int]]:
    config, new = source.config, _MAX_NEW_TOKENS.value
    if _PROMPT.value is None:
        if _CHAT.value:
            raise UsageError("--chat is set, but no --prompt is given; pass --prompt=TEXT")
        prompts = random_prompts(config.vocabulary, _BATCH.value, _PROMPT_LENGTH.value)
    else:
        prompts = [_encoded(source)] * _BATCH.value
    if len(prompts[0]) + new > config.max_context:
        raise PromptError(
            f"prompt is {len(prompts[0])} tokens and --max_new_tokens is {new}, but max_context of "
            f"{config.name} is {config.max_context}; shorten one of them"
        )
    return prompts


def _encoded(source: ModelSource) -> list[int]:
    """The tokens of --prompt."""
    if _PROMPT_LENGTH.present:
        raise UsageError("--prompt_length is given beside --prompt; leave one of them out")
    if not _PROMPT.value:
        raise UsageError("--prompt is empty; give at least one character")
    if source.tokenizer is None:
        why, remedies = source.without_tokenizer()
        remedies.append("give --prompt_length")
        raise UsageError(f"--prompt is text, but {why}; {', or '.join(remedies)}")
    if not _CHAT.value:
        return source.tokenizer.encode(_PROMPT.value)
    rendered = source.tokenizer.chat([{"role": "user", "content": _PROMPT.value}])
    return source.tokenizer.encode(rendered, special=True)


def _job(source: ModelSource, name: str, threads: int, work: Work, scratch: str) -> Job:
    file = source.file
    form = "huggingface"
    if file is None:
        form = "random"
    elif isinstance(file, GGUFFile):
        form = "gguf"
    elif isinstance(file, OrbaxFolder):
        form = "orbax"
    return Job(
        engine=name,
        model=_common.MODEL.value if file is None else str(Path(file.path).absolute()),
        form=form,
        dtype=_dtypes.only(_array_flags.DTYPE) or "",
        max_context=_common.MAX_CONTEXT.value,
        batch=_BATCH.value,
        slots=len(work.prompts[0]) + work.new_tokens,
        threads=threads,
        scratch=str(Path(scratch).resolve()),
        config=llama_fields(source.config) if file is None else None,
    )


def _together(source: ModelSource, engines: int) -> bool:
    """Whether all engines are loaded at once: if asked for, else if the host's memory allows."""
    if _ONE_AT_A_TIME.value is not None:
        return not _ONE_AT_A_TIME.value
    dtypes = Dtypes(PLAIN_DTYPES[_dtypes.only(_array_flags.DTYPE) or "float32"])
    needed = _ROOM * engines * total_bytes(Transformer(source.config, dtypes))
    free = free_memory()
    if free is None or needed <= free:
        return True
    _common.say(
        f"memory that is free is {exact(round(free / 1e9, 1))} GB, less than {engines} engines may "
        "take; each is loaded anew for each of its rounds"
    )
    return False


def _document(
    source: ModelSource, outcomes: list[Outcome], work: Work, started: str, together: bool
) -> dict:
    own = outcomes[0]
    end_ids = frozenset(source.tokenizer.stop_ids if source.tokenizer else ())
    rows = engine_rows(outcomes, len(work.prompts), end_ids)
    if source.tokenizer is not None:
        for row, outcome in zip(rows, outcomes, strict=True):
            if outcome.ran and outcome.rounds[0].tokens[0]:
                row["text"] = source.tokenizer.decode(outcome.rounds[0].tokens[0])
    return document(
        sys.argv,
        [],
        device_kind=own.about.device if own.about else "",
        started=started,
        bandwidth=None,
        model=source.config.name,
        dtype=own.about.dtype if own.about else own.job.dtype,
        work={
            "batch": len(work.prompts),
            "prompt_length": len(work.prompts[0]),
            "new_tokens": work.new_tokens,
            "rounds": _ROUNDS.value,
            "threads": own.job.threads,
            "together": together,
        },
        engines=rows,
        ratios=ratios(outcomes),
    )


def _title(results: dict) -> str:
    work = results["work"]
    return (
        f"{results['model']}, {results['dtype']}, on {results['device_kind']}, batch "
        f"{work['batch']}, prompts of {exact(work['prompt_length'])} tokens and "
        f"{exact(work['new_tokens'])} new ones, {work['threads']} threads each; medians of "
        f"{work['rounds']} rounds in turns, all measured"
    )


def _refuse_too_few(outcomes: list[Outcome]) -> None:
    """Fails a comparison of fewer than two: without Floorline, or without any peer."""
    own, *peers = outcomes
    lacking = [own] if not own.ran else ([] if any(peer.ran for peer in peers) else peers)
    if lacking:
        first = lacking[0]
        raise FloorlineError(
            f"number of engines measured is {sum(each.ran for each in outcomes)} of "
            f"{len(outcomes)} ({first.job.engine} is {first.status}: {first.message})"
        )


if __name__ == "__main__":
    _common.start(main, _SHOWN)
