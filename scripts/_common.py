"""What the scripts share: flags of the same meaning, and how a run starts, fails and ends."""

import contextlib
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

try:
    from absl import app, flags, logging

    from decode.load import DTYPES, ModelSource, default_dtype, find_source
    from model.config import ModelConfig
    from model.parameters import Form
    from profiles.choice import AUTO, Wish, Work, pick
    from profiles.files import OutputError, check_writable
    from profiles.traffic import experts_per_device, replication_cost
    from sharding import processes
    from sharding.errors import FloorlineError, UsageError
    from sharding.layout import (
        ATTENTION,
        COLLECTIVES,
        LAYOUTS,
        divide_experts,
        find_layout,
        schedule_by,
    )
    from sharding.mesh import MeshShape, parse_mesh, request_cpu_devices, whole_mesh
    from sharding.placement import Layout, Placement
    from sharding.scaled import SCHEMES
except ImportError as error:
    print(
        f"error: import of {error.name!r} is failing ({error}); "
        "run `pip install -e .` in the clone first",
        file=sys.stderr,
    )
    sys.exit(2)

MODEL = flags.DEFINE_string(
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
LAYOUT = flags.DEFINE_string(
    "layout",
    "weight_stationary_1d",
    "Partitioning; auto picks by predicted time and says why. "
    + "; ".join(f"{name}: {LAYOUTS[name].summary}" for name in LAYOUTS),
)
PREFILL_LAYOUT = flags.DEFINE_string(
    "prefill_layout",
    None,
    "Partitioning of prompts, over the same stored weights; auto picks. As --layout.",
)
ATTENTION_BY = flags.DEFINE_enum(
    "attention", "heads", [*ATTENTION, AUTO], "What divides attention and the KV cache."
)
COLLECTIVES_BY = flags.DEFINE_enum(
    "collectives",
    "compiler",
    list(COLLECTIVES),
    "Who schedules those beside matmuls: the compiler, or loops that overlap them with products.",
)
EXPERT_PARALLEL = flags.DEFINE_bool(
    "expert_parallel", False, "Divide experts over the chips instead of each expert's d_ff."
)
DTYPE = flags.DEFINE_enum(
    "dtype", None, list(DTYPES), "Of weights, cache and arithmetic. float32 on CPU, else bfloat16."
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
JSON = flags.DEFINE_string("json", None, "Write the run's document here; - is standard output.")
VERBOSE = flags.DEFINE_bool("verbose", False, "Show stack traces of errors.")


def start(main: Callable[[], None]) -> None:
    """Parses flags and runs `main`; every failure ends as one line and an exit code.

    Exit codes: 0, 1 for failed work, 2 for wrong use, 130 for an interrupt.
    """
    with _failing_in_one_line():
        app.run(lambda rest: _run(main, rest), flags_parser=_parse)


def say(text: str) -> None:
    """Tells a person what goes on, beside the results on standard output."""
    if processes.first():
        print(text, file=sys.stderr, flush=True)


def source() -> ModelSource:
    """The model that the flags name.

    Raises:
      UsageError: experts are to be divided, and it has none.
    """
    found = find_source(
        MODEL.value,
        random_weights=RANDOM_WEIGHTS.value,
        report=say,
        accept_terms=ACCEPT_TERMS.value,
    )
    check_experts(found.config)
    return found


def check_experts(config: ModelConfig) -> None:
    """Refuses to divide experts of a model that has none.

    Raises:
      UsageError: it has none.
    """
    if EXPERT_PARALLEL.value and not config.experts:
        raise UsageError(
            f"--expert_parallel is true, but {config.name} has no experts; leave it out"
        )


def dtype():
    """The arithmetic that the flags name."""
    return DTYPES[DTYPE.value or default_dtype()]


def define_weight_dtype() -> flags.FlagHolder:
    """The flag of scripts that store weights otherwise than their file does."""
    return flags.DEFINE_list(
        "weight_dtype",
        None,
        f"What weights are stored in: {', '.join(DTYPES)}; or matrices of attention and MLPs in "
        f"{', '.join(SCHEMES)}, all else in --dtype. profile_decode.py takes a list.",
    )


def forms(names: Sequence[str] | None) -> list[Form]:
    """How weights are stored, by the names of ``--weight_dtype``.

    Raises:
      UsageError: there is no such form.
    """
    found = []
    for name in names or [None]:
        if name in DTYPES:
            found.append(Form(DTYPES[name]))
        elif name is None or name in SCHEMES:
            found.append(Form(dtype(), SCHEMES.get(name)))
        else:
            raise UsageError(
                f"--weight_dtype is {name!r}; use one of {', '.join((*DTYPES, *SCHEMES))}"
            )
    return found


def layout(
    config: ModelConfig, mesh: MeshShape, batches: Sequence[int], contexts: Sequence[int]
) -> Layout:
    """The layout that the flags name, or that ``auto`` picks for this work, saying why.

    Args:
      config: the model.
      mesh: sizes of the mesh axes.
      batches: sequences per step.
      contexts: tokens in the cache; the longest is taken as the length of prompts.

    Raises:
      LayoutError: none goes with the model and the mesh.
    """
    return _layout(LAYOUT.value, config, mesh, batches, contexts)


def layouts(
    config: ModelConfig, mesh: MeshShape, batches: Sequence[int], contexts: Sequence[int]
) -> list[Layout]:
    """The layouts that the flags name, of a script that compares several; else as `layout`."""
    names = dict.fromkeys(LAYOUT.value.split(","))
    return [_layout(name, config, mesh, batches, contexts) for name in names]


def check_layouts() -> None:
    """Refuses layouts that there are none of, before JAX starts.

    Raises:
      UsageError: an unknown name.
    """
    for name in (*LAYOUT.value.split(","), PREFILL_LAYOUT.value):
        if name not in (AUTO, None):
            find_layout(name)


def _layout(name: str, config: ModelConfig, mesh: MeshShape, *sizes: Sequence[int]) -> Layout:
    wish = Wish(name, ATTENTION_BY.value, PREFILL_LAYOUT.value, _finish)
    return pick(wish, config, mesh, lambda: Work(config, mesh, dtype(), *sizes), say)


def _finish(layout: Layout) -> Layout:
    """The layout with everything else that the flags say of it."""
    if EXPERT_PARALLEL.value:
        layout = divide_experts(layout)
    return schedule_by(layout, COLLECTIVES_BY.value)


def integers(name: str, values: Sequence[str]) -> list[int]:
    """A list flag as positive integers.

    Raises:
      UsageError: a value is not one.
    """
    if not values or not all(re.fullmatch(r"\s*0*[1-9][0-9]{0,17}\s*", value) for value in values):
        joined = ",".join(values)
        raise UsageError(f"--{name} is {joined!r}; use positive integers joined by commas")
    return [int(value) for value in values]


def meshes(devices: Sequence[str] | None, mesh: str | None) -> list[dict[str, int]] | None:
    """The meshes of ``--devices`` or ``--mesh``, None if neither is given.

    Asks for as many fake CPU devices as the largest needs; call it before JAX starts.

    Raises:
      UsageError: both are given, or a size is not positive.
    """
    if devices and mesh:
        raise UsageError(f"--mesh is {mesh}, beside --devices; give one of them")
    shapes = None
    if mesh:
        shapes = [parse_mesh(mesh)]
    elif devices:
        shapes = [{"x": 1, "y": 1, "z": count} for count in integers("devices", devices)]
    for shape in shapes or ():
        request_cpu_devices(shape["x"] * shape["y"] * shape["z"])
    return shapes


def mesh(devices: int | None, mesh: str | None) -> dict[str, int]:
    """The one mesh of ``--devices`` or ``--mesh``; by default one device, of many processes all.

    Raises:
      UsageError: both are given, or a size is not positive.
    """
    shapes = meshes([str(devices)] if devices else None, mesh)
    if shapes:
        return shapes[0]
    if processes.count() == 1:
        return {"x": 1, "y": 1, "z": 1}
    request_cpu_devices(processes.count())
    return whole_mesh()


def check_json() -> None:
    """Refuses a ``--json`` that cannot be written before the work, not after it.

    Raises:
      OutputError: it is a folder or a device, or its folder cannot be written to.
    """
    processes.agree(_check_json)


def _check_json() -> None:
    if JSON.value in (None, "", "-"):
        return
    if os.path.exists(JSON.value) and not os.path.isfile(JSON.value):
        # The file is renamed into its place, which would put it where a device was.
        raise OutputError(f"--json is {JSON.value}, not a regular file; name one, or - for stdout")
    check_writable(Path(JSON.value).parent)


def state_choices(
    config: ModelConfig, placement: Placement, form: Form, batch: int | None = None
) -> None:
    """Says how this layout divides experts, what it copies and what that costs, what it pads."""
    sizes = "x".join(str(size) for size in placement.mesh.values())
    for line in (
        *experts_per_device(config, placement),
        *replication_cost(config, placement, form.dtype, form.scheme),
    ):
        say(f"layout {placement.layout.name} on {sizes}: {line}")
    parts = placement.multiple("B")
    if batch is not None and batch % parts:
        padded = -(-batch // parts) * parts
        say(f"layout {placement.layout.name} on {sizes}: batch {batch} is padded to {padded}")


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
    sys.stdout.flush()
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
            yield
        finally:
            sys.stdout.flush()  # what cannot be written is noticed here, not as Python ends
    except KeyboardInterrupt:
        _fail("run is interrupted; nothing more was written", 130)
    except BrokenPipeError:  # whoever read the output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        processes.leave(1)
    except FloorlineError as error:
        _trace()
        _fail(_one_line(error), 2 if isinstance(error, UsageError) else 1)
    except Exception as error:
        _trace()
        name, others = type(error).__name__, "see what the other processes said, or "
        remedy = others * (processes.count() > 1) + "run again with --verbose to see where"
        _fail(f"{name} is {_one_line(error)!r}; {remedy}", 1)


def _trace() -> None:
    if flags.FLAGS.is_parsed() and VERBOSE.value:
        traceback.print_exc()


def _fail(message: str, code: int) -> None:
    print(f"error: {message}", file=sys.stderr)
    processes.leave(code)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
