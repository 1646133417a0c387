"""Flags that all scripts share, and the code that starts and ends their runs."""

import contextlib
import dataclasses
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import _streams

if TYPE_CHECKING:
    from decode.load import ModelSource

_INTERRUPTED = "run is interrupted; nothing more was written"


def _on_interrupt(handler: Callable) -> None:
    """Sets the handler of Ctrl-C, unless the parent process made this one ignore it."""
    heeded = signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
    if heeded and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, handler)


def _end_at_once(*_: object) -> None:
    """Handler of Ctrl-C during imports and as Python ends, when no exception can be reported."""
    with contextlib.suppress(OSError):
        os.write(sys.stderr.fileno(), f"error: {_INTERRUPTED}\n".encode())
    os._exit(130)


@contextlib.contextmanager
def importing(name: str = "") -> Iterator[None]:
    """Wraps imports of packages: if one fails, the run ends with a one-line error.

    Args:
      name: ``__name__`` of a script that has defined all its flags. If it is the main module, they
        are parsed first, so that ``--help`` or a wrong flag need not wait for JAX to be imported.
    """
    if name == "__main__":
        with _failing_in_one_line():
            app.define_help_flags()
            _parsed[:] = [_parse(sys.argv)]
    try:
        yield
    except ImportError as error:
        print(f"error: {_import_failure(error)}", file=sys.stderr)
        sys.exit(2)


def _import_failure(error: ImportError) -> str:
    """Why a module cannot be imported: it is not installed, or another one has its name."""
    said = f"import of {error.name!r} is failing ({error})"
    package = (error.name or "").partition(".")[0]
    module = sys.modules.get(package)
    file = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", [])), "")
    extra = "'.[serve]'" if package in ("starlette", "uvicorn") else "."
    remedy = f"run `pip install -e {extra}` in the clone first"
    ours = Path(__file__).resolve().parents[1] in Path(file).resolve().parents
    if package in ("model", "sharding", "decode", "profiles") and file and not ours:
        remedy = f"{file} is another {package!r}: take it off PYTHONPATH, or {remedy}"
    return f"{said}; {remedy}"


_on_interrupt(_end_at_once)
_streams.open_output()
_parsed: list[list[str]] = []  # holds the arguments that are no flags, if flags are parsed already
with importing():
    from absl import app, flags, logging

    from model.config import ModelConfig
    from model.lengths import check_length
    from profiles.report.files import check_file, not_taken
    from sharding import processes
    from sharding.error_types import FloorlineError, UsageError


class _PathParser(flags.ArgumentParser):
    """Parses a path and expands ``~``, because shells do not expand it in ``--flag=~``."""

    def parse(self, argument: str) -> str:
        path = os.path.expanduser(argument)
        if path.startswith("~"):
            raise ValueError(f"no home folder is known for it; ./{path} is a file of that name")
        return path


PATH = _PathParser()
"""The parser for `flags.DEFINE` of every flag that names a file or a folder."""
MODEL = flags.DEFINE(
    PATH,
    "model",
    "smollm2-135m",
    "Catalogue name, GGUF file (of several parts the first), or folder as Hugging Face or "
    "convert_checkpoint.py writes it. Scripts that read weights fetch those of smollm2-135m "
    "(93 MB) and gemma3-270m (238 MB, under terms of its own) once; of other names they take "
    "--random_weights.",
)
ACCEPT_TERMS = flags.DEFINE_bool(
    "accept_terms", False, "Accept the terms of the model to be fetched; without it they are shown."
)
RANDOM_WEIGHTS = flags.DEFINE_bool(
    "random_weights", False, "Use a catalogue model's shapes with random weights; no download."
)
MAX_CONTEXT = flags.DEFINE_integer(
    "max_context",
    None,
    "Longest sequence in tokens, prompt and answer together, in place of the length that the model "
    "was trained for.",
    1,
)
COORDINATOR = flags.DEFINE_string(
    "coordinator",
    None,
    "HOST:PORT of process 0, if several processes run this command together. On TPU VMs and under "
    "Slurm this and the two flags below are set automatically.",
)
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of these processes.", 1)
PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "Index of this process, from 0. Process 0 prints and writes for all.", 0
)
PEER_TIMEOUT = flags.DEFINE_integer(
    "peer_timeout",
    processes.PEER_TIMEOUT,
    "If one of several processes does not start, or dies, the others end with exit code 1 within "
    "so many seconds, and up to ten more.",
    2,
    24 * 3600,
)
JSON = flags.DEFINE(PATH, "json", None, "Write the run's document here; - is standard output.")
VERBOSE = flags.DEFINE_bool("verbose", False, "Show stack traces of errors.")

OF_RUNS = ("json", "verbose")
"""The flags above of every script, ..."""
OF_PROCESSES = ("coordinator", "num_processes", "process_id", "peer_timeout")
"""... of those that many processes may run together, ..."""
OF_SHAPES = (*OF_RUNS, "model", "max_context")
"""... of those that need a model's shapes, ..."""
ALL = (*OF_SHAPES, *OF_PROCESSES, "accept_terms", "random_weights")
"""... and of those that read its weights."""
_UNUSED = {
    **dict.fromkeys(OF_PROCESSES, "no other process takes part"),
    **dict.fromkeys(("accept_terms", "random_weights"), "no weights are read"),
    "model": "no model is asked for",
    "max_context": "no model's length limits this",
}

_unshown: list[Exception] = []


def start(main: Callable[[], None], shown: Iterable[str] = ALL) -> None:
    """Parses flags and runs `main`; every failure ends as one line and an exit code.

    Args:
      main: what the script does.
      shown: the flags of this module that its help shows; the others are refused.

    Exit codes: 0, 1 for failed work, 2 for wrong use, 130 for an interrupt.
    """
    _unshown.clear()
    with _failing_in_one_line():
        app.run(
            lambda rest: _run(main, rest, shown),
            flags_parser=lambda argv: _parsed.pop() if _parsed else _parse(argv),
        )


def say(text: str) -> None:
    """Prints a line for the user on standard error, apart from results on standard output."""
    if processes.is_first():
        with contextlib.suppress(OSError):  # without a reader no result is lost
            print(text, file=sys.stderr, flush=True)


def show(text: str, end: str = "\n") -> None:
    """Prints results on standard output, or on standard error if the document goes to the former.

    If the output cannot be written, the run fails at its end: see `fail_when_done`.
    """
    if JSON.value == "-":
        return say(text)
    try:
        print(text, end=end, flush=True)
    except OSError as error:
        fail_when_done(error)


def fail_when_done(error: OSError) -> None:
    """Makes the run fail at its end, after its files are written.

    Args:
      error: the error of an output that is full or whose reader has gone.
    """
    _unshown.append(not_taken(error))


def source() -> "ModelSource":
    """The model that the flags name."""
    with importing():
        from decode.load import find_source
    loaded = find_source(
        MODEL.value,
        random_weights=RANDOM_WEIGHTS.value,
        report=say,
        accept_terms=ACCEPT_TERMS.value,
    )
    return dataclasses.replace(loaded, config=lengthened(loaded.config))


def lengthened(config: ModelConfig) -> ModelConfig:
    """The model with the longest sequence that ``--max_context`` says, if it is given."""
    if MAX_CONTEXT.value is None:
        return config
    return dataclasses.replace(config, max_context=MAX_CONTEXT.value)


def lengths(
    flag: flags.FlagHolder, model: object, prefill: bool = False, cached: int = 0
) -> list[int]:
    """The lengths in tokens of ``--context``, one or several, up to a model's longest sequence.

    Args:
      flag: the flag; its default is reduced to the model's longest sequence.
      model: may have `max_context`; without that attribute, any length is allowed.
      prefill: whether these are lengths of prompts, or contexts of decode steps.
      cached: tokens in the cache before the prompts.

    Raises:
      UsageError: a value is no positive integer, or too long for the model.
    """
    values = flag.value if isinstance(flag.value, list) else [flag.value]
    tokens, more = integers(flag.name, list(map(str, values))), cached if prefill else 1
    return within(model, flag, tokens, more)


def within(model: object, flag: flags.FlagHolder, values: Iterable[int], more: int) -> list[int]:
    """These lengths, each checked with `more` tokens; a flag's default is reduced to fit."""
    longest = getattr(model, "max_context", None)
    if longest and not flag.present:
        return list(dict.fromkeys(min(value, max(longest - more, 1)) for value in values))
    for value in values:
        check_length(model, f"--{flag.name}", value, more)
    return list(values)


def refuse(names: Iterable[str], why: str) -> None:
    """Refuses flags that would change nothing in a script.

    Raises:
      UsageError: one of them is given.
    """
    for name in names:
        if flags.FLAGS[name].present:
            raise UsageError(f"--{name} is given, but {why}; leave it out")


def integers(name: str, values: Sequence[str]) -> list[int]:
    """The values of a list flag as positive integers, without duplicates.

    Raises:
      UsageError: a value is not a positive integer.
    """
    if not values or not all(re.fullmatch(r"\s*0*[1-9][0-9]{0,17}\s*", value) for value in values):
        joined = ",".join(values)
        raise UsageError(f"--{name} is {joined!r}; use positive integers joined by commas")
    return list(dict.fromkeys(int(value) for value in values))


def check_json() -> None:
    """Refuses a ``--json`` that cannot be written, before the work begins.

    Raises:
      OutputError: it is a folder or a device, no valid name, or in a folder that is not writable.
    """
    written = JSON.value not in (None, "", "-")
    # The first process alone writes; the others may not have been given the flag.
    processes.from_first_process(lambda: written and str(check_file(JSON.value, "--json")))


def _run(main: Callable[[], None], rest: Sequence[str], shown: Iterable[str]) -> None:
    if len(rest) > 1:
        raise UsageError(f"argument is {rest[1]!r}, which is no flag; see --help")
    for name in ALL:
        if name not in shown:
            refuse([name], _UNUSED[name])
    if not VERBOSE.value:
        logging.set_verbosity(logging.WARNING)  # JAX logs which accelerators are missing
    processes.start(_membership(), PEER_TIMEOUT.value, VERBOSE.value)
    if processes.count() > 1:
        logging.get_absl_handler().python_handler.stream = sys.stderr  # `processes` replaced it
        _check_same_flags()
    main()
    for error in _unshown[:1]:
        raise error
    _flush()
    processes.wait_for_all()


def _membership() -> processes.Membership | None:
    """This process's membership in a group of processes, from the flags; None without them."""
    given = [flag for flag in (COORDINATOR, NUM_PROCESSES, PROCESS_ID) if flag.value is not None]
    if not given:
        return None
    if len(given) < 3:
        raise UsageError(
            f"--{given[0].name} is {given[0].value}, but --coordinator, --num_processes and "
            "--process_id go together; give all three, or none"
        )
    membership = processes.Membership(NUM_PROCESSES.value, PROCESS_ID.value, COORDINATOR.value)
    membership.check()
    return membership


def _check_same_flags() -> None:
    """Refuses flags that differ from process 0's, because then processes wait for each other."""
    own = {"coordinator", "process_id", "json", "output_dir", "verbose", "api_key"}
    mine = {n: v for n, v in flags.FLAGS.flag_values_dict().items() if n not in own}
    theirs = processes.from_first_process(lambda: mine)
    for name in sorted(mine):
        if mine[name] != theirs[name]:
            raise UsageError(
                f"--{name} is {mine[name]} here and {theirs[name]} in process 0; "
                "give every process the same flags"
            )


def _parse(argv: Sequence[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        _fail(f"{_flag_error(error)}; see --help", 2)
    except SystemExit:  # absl ends --help with 1
        sys.exit(0)


def _flag_error(error: flags.Error) -> str:
    """absl's message in the form of all other errors: WHAT is VALUE."""
    text = _one_line(error)
    if isinstance(error, flags.UnrecognizedFlagError):
        near = text.removesuffix(" ?").partition("Did you mean: ")[2]
        return f"flag is --{error.flagname}, which is unknown" + f" (near {near})" * bool(near)
    match = re.fullmatch(r"flag --(\w+)=(.*?): (.*)", text)
    return "--{} is {!r} ({})".format(*match.groups()) if match else text


@contextlib.contextmanager
def _failing_in_one_line() -> Iterator[None]:
    try:
        try:
            _on_interrupt(signal.default_int_handler)
            yield
        finally:
            _on_interrupt(_end_at_once)
            _flush()  # raises here if output cannot be written, before Python ends
    except KeyboardInterrupt as interrupt:  # its message may say which results are kept
        _fail(f"run is interrupted; {interrupt}" if str(interrupt) else _INTERRUPTED, 130)
    except BrokenPipeError:  # the reader of the output has gone
        processes.exit_failed(1)
    except FloorlineError as error:
        _trace()
        _fail(_one_line(error), error.exit_code)
    except Exception as error:
        _trace()
        name, others = type(error).__name__, "see what the other processes said, or "
        said = f"is {_one_line(error)!r}" if str(error).strip() else "is raised without a word"
        remedy = others * (processes.count() > 1) + "run again with --verbose to see where"
        _fail(f"{name} {said}; {remedy}", 1)


def _flush() -> None:
    """Writes the rest of standard output; if that fails, replaces it by the null device."""
    try:
        sys.stdout.flush()
    except OSError as error:
        # Otherwise Python would try again as it ends, and print an error of its own.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise not_taken(error) from error


def _trace() -> None:
    if flags.FLAGS.is_parsed() and VERBOSE.value:
        traceback.print_exc()


def _fail(message: str, code: int) -> None:
    with contextlib.suppress(OSError):
        print(f"error: {message}", file=sys.stderr)
    processes.exit_failed(code)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
