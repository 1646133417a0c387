"""What the scripts share: flags of the same meaning, and how a run starts, fails and ends."""

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

if TYPE_CHECKING:
    from decode.load import ModelSource

_INTERRUPTED = "run is interrupted; nothing more was written"


def _on_interrupt(handler: Callable) -> None:
    """Sets what Ctrl-C does, unless whoever started this wants it ignored."""
    heeded = signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
    if heeded and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, handler)


def _end_at_once(*_: object) -> None:
    """Where nothing would turn an exception into a line: in imports, and as Python ends."""
    with contextlib.suppress(OSError):
        os.write(sys.stderr.fileno(), f"error: {_INTERRUPTED}\n".encode())
    os._exit(130)


def _open_output() -> None:
    """Lets every run have a standard output and error that take any letter.

    One that is closed becomes the null device: nobody reads it, and no file that is opened later
    may get its number, which libraries in C write to. A letter that the encoding lacks is escaped.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free, this one
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # as standard error has it


@contextlib.contextmanager
def importing(name: str = "") -> Iterator[None]:
    """Around imports of packages, of which one that fails ends the run as one line.

    Args:
      name: ``__name__`` of a script that has defined all its flags. Where it is the one that runs,
        they are parsed first: neither ``--help`` nor a wrong flag waits for JAX to be imported.
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
    """Why a module cannot be had: nothing is installed, or another one has its name."""
    said = f"import of {error.name!r} is failing ({error})"
    package = (error.name or "").partition(".")[0]
    found = sys.modules.get(package)
    file = getattr(found, "__file__", None) or next(iter(getattr(found, "__path__", [])), "")
    remedy = "run `pip install -e .` in the clone first"
    ours = Path(__file__).resolve().parents[1] in Path(file).resolve().parents
    if package in ("model", "sharding", "decode", "profiles") and file and not ours:
        remedy = f"{file} is another {package!r}: take it off PYTHONPATH, or {remedy}"
    return f"{said}; {remedy}"


_on_interrupt(_end_at_once)
_open_output()
_parsed: list[list[str]] = []  # what is no flag, once the flags are parsed
with importing():
    from absl import app, flags, logging

    from model.config import ModelConfig, check_length
    from profiles.report.files import check_file, not_taken
    from sharding import processes
    from sharding.error_types import FloorlineError, UsageError


class _PathParser(flags.ArgumentParser):
    """Of a path, whose ``~`` is the home folder: no shell expands it behind ``--flag=``."""

    def parse(self, argument: str) -> str:
        found = os.path.expanduser(argument)
        if found.startswith("~"):
            raise ValueError(f"no home folder is known for it; ./{found} is a file of that name")
        return found


PATH = _PathParser()
"""Of `flags.DEFINE`, for every flag that names a file or a folder."""
MODEL = flags.DEFINE(
    PATH,
    "model",
    "smollm2-135m",
    "Catalogue name, GGUF file, or folder in the form of Hugging Face or of convert_checkpoint.py. "
    "Fetched once: smollm2-135m (93 MB), gemma3-270m (238 MB, under terms of its own).",
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
    "Tokens that the model goes to, prompt and answer together, in place of the length that it was "
    "trained for.",
    1,
)
COORDINATOR = flags.DEFINE_string(
    "coordinator",
    None,
    "HOST:PORT of process 0, where many run this command together. On TPU VMs and under Slurm this "
    "and the two flags below are found without being given.",
)
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many run it together.", 1)
PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "The number of this one, from 0. Process 0 prints and writes for all.", 0
)
PEER_TIMEOUT = flags.DEFINE_integer(
    "peer_timeout",
    processes.PEER_TIMEOUT,
    "If one of many processes does not come, or dies, the others end with exit code 1 within so "
    "many seconds, and up to ten more.",
    2,
    24 * 3600,
)
JSON = flags.DEFINE(PATH, "json", None, "Write the run's document here; - is standard output.")
VERBOSE = flags.DEFINE_bool("verbose", False, "Show stack traces of errors.")


_unshown: list[Exception] = []


def start(main: Callable[[], None]) -> None:
    """Parses flags and runs `main`; every failure ends as one line and an exit code.

    Exit codes: 0, 1 for failed work, 2 for wrong use, 130 for an interrupt.
    """
    _unshown.clear()
    with _failing_in_one_line():
        app.run(
            lambda rest: _run(main, rest),
            flags_parser=lambda argv: _parsed.pop() if _parsed else _parse(argv),
        )


def say(text: str) -> None:
    """Tells a person what goes on, beside the results on standard output."""
    if processes.first():
        with contextlib.suppress(OSError):  # no result is lost where nobody can be told
            print(text, file=sys.stderr, flush=True)


def show(text: str, end: str = "\n") -> None:
    """Shows results on standard output, or beside it where that takes the document.

    An output that does not take them ends the run when all is done, see `fail_when_done`.
    """
    if JSON.value == "-":
        return say(text)
    try:
        print(text, end=end, flush=True)
    except OSError as error:
        fail_when_done(error)


def fail_when_done(error: OSError) -> None:
    """Ends the run with an error, but not before its files are written.

    Args:
      error: of an output that is full or whose reader has gone.
    """
    _unshown.append(not_taken(error))


def source() -> "ModelSource":
    """The model that the flags name."""
    with importing():
        from decode.load import find_source
    found = find_source(
        MODEL.value,
        random_weights=RANDOM_WEIGHTS.value,
        report=say,
        accept_terms=ACCEPT_TERMS.value,
    )
    return dataclasses.replace(found, config=lengthened(found.config))


def lengthened(config: ModelConfig) -> ModelConfig:
    """A model that goes as far as ``--max_context`` says, or as it was trained for."""
    if MAX_CONTEXT.value is None:
        return config
    return dataclasses.replace(config, max_context=MAX_CONTEXT.value)


def lengths(
    flag: flags.FlagHolder, model: object, prefill: bool = False, cached: int = 0
) -> list[int]:
    """Tokens of ``--context``, one number or a list, as positive integers that a model goes to.

    Args:
      flag: whose default, where it is not given, is cut to what the model goes to.
      model: with `max_context`, or without.
      prefill: they are of prompts; else in the cache before a decode step's new token.
      cached: tokens before prompts.

    Raises:
      UsageError: a value is no positive integer, or beyond the model.
    """
    values = flag.value if isinstance(flag.value, list) else [flag.value]
    found, more = integers(flag.name, list(map(str, values))), cached if prefill else 1
    return within(model, flag, found, more)


def within(model: object, flag: flags.FlagHolder, values: Iterable[int], more: int) -> list[int]:
    """Tokens, and `more` beside them, as a model goes to: a flag's default cut, others refused."""
    most = getattr(model, "max_context", None)
    if most and not flag.present:
        return list(dict.fromkeys(min(value, max(most - more, 1)) for value in values))
    for value in values:
        check_length(model, f"--{flag.name}", value, more)
    return list(values)


def refuse(names: Iterable[str], why: str) -> None:
    """Refuses flags of these names in a script where they would change nothing.

    Raises:
      UsageError: one is given.
    """
    for name in names:
        if flags.FLAGS[name].present:
            raise UsageError(f"--{name} is given, but {why}; leave it out")


def integers(name: str, values: Sequence[str]) -> list[int]:
    """A list flag as positive integers, each once.

    Raises:
      UsageError: a value is not one.
    """
    if not values or not all(re.fullmatch(r"\s*0*[1-9][0-9]{0,17}\s*", value) for value in values):
        joined = ",".join(values)
        raise UsageError(f"--{name} is {joined!r}; use positive integers joined by commas")
    return list(dict.fromkeys(int(value) for value in values))


def check_json() -> None:
    """Refuses a ``--json`` that cannot be written before the work, not after it.

    Raises:
      OutputError: it is a folder or a device, its name is none, or its folder cannot be written to.
    """
    if JSON.value not in (None, "", "-"):
        processes.agree(lambda: str(check_file(JSON.value, "--json")))


def _run(main: Callable[[], None], rest: Sequence[str]) -> None:
    if len(rest) > 1:
        raise UsageError(f"argument is {rest[1]!r}, which is no flag; see --help")
    if not VERBOSE.value:
        logging.set_verbosity(logging.WARNING)  # JAX tells which accelerators are not there
    processes.start(_membership(), PEER_TIMEOUT.value, VERBOSE.value)
    if processes.count() > 1:
        logging.get_absl_handler().python_handler.stream = sys.stderr  # which is another one now
        _check_same_flags()
    main()
    for error in _unshown[:1]:
        raise error
    _flush()
    processes.finish()


def _membership() -> processes.Membership | None:
    """Which of many processes the flags say that this is, None if they say nothing."""
    given = [flag for flag in (COORDINATOR, NUM_PROCESSES, PROCESS_ID) if flag.value is not None]
    if not given:
        return None
    if len(given) < 3:
        raise UsageError(
            f"--{given[0].name} is {given[0].value}, but --coordinator, --num_processes and "
            "--process_id go together; give all three, or none"
        )
    found = processes.Membership(NUM_PROCESSES.value, PROCESS_ID.value, COORDINATOR.value)
    found.check()
    return found


def _check_same_flags() -> None:
    """Refuses flags that differ from process 0's: the processes would wait for each other."""
    own = ("coordinator", "process_id", "json", "output_dir", "verbose")
    mine = flags.FLAGS.flag_values_dict()
    theirs = processes.agree(lambda: mine)
    for name in sorted(mine.keys() - set(own)):
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
    """absl's message in the form of all others: WHAT is VALUE."""
    text = _one_line(error)
    if isinstance(error, flags.UnrecognizedFlagError):
        near = text.removesuffix(" ?").partition("Did you mean: ")[2]
        return f"flag is --{error.flagname}, which is unknown" + f" (near {near})" * bool(near)
    found = re.fullmatch(r"flag --(\w+)=(.*?): (.*)", text)
    return "--{} is {!r} ({})".format(*found.groups()) if found else text


@contextlib.contextmanager
def _failing_in_one_line() -> Iterator[None]:
    try:
        try:
            _on_interrupt(signal.default_int_handler)
            yield
        finally:
            _on_interrupt(_end_at_once)
            _flush()  # what cannot be written is noticed here, not as Python ends
    except KeyboardInterrupt as interrupt:  # which may say what is kept
        _fail(f"run is interrupted; {interrupt}" if str(interrupt) else _INTERRUPTED, 130)
    except BrokenPipeError:  # whoever read the output has gone
        processes.leave(1)
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
    """Writes what standard output still holds; an output that does not take it is given up."""
    try:
        sys.stdout.flush()
    except OSError as error:
        # Python would try again as it ends, and say so in its own words.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise not_taken(error) from error


def _trace() -> None:
    if flags.FLAGS.is_parsed() and VERBOSE.value:
        traceback.print_exc()


def _fail(message: str, code: int) -> None:
    with contextlib.suppress(OSError):
        print(f"error: {message}", file=sys.stderr)
    processes.leave(code)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
