"""Measure a service as requests arrive: latencies and the cost of a token, beside ideal and floor.

Requests join and leave a running batch of --rows, in this process or in many that run together, of
which the first measures. They come in a closed loop, so
many at once (--concurrency, a list), at random times (--rate, requests per second, a list), or as
--trace_file says, a file of lines such as

  {"prompt_length": 128, "generated_tokens": 64, "arrival_s": 0.5}

whose lengths are taken for --concurrency and --rate too, where it has no arrival times. Prompts are
random tokens, and no answer ends before its limit.

The ideal is a fixed batch of as many sequences as are in flight, or of all rows where requests come
by themselves, timed in the same run: every step full, prompts for nothing. The floor is that of its
step. What is lost from the floor to the measured cost is told by cause, in time for each token:
empty slots, prompts, padding, the host, and steps over their floor; the causes add up to the whole.
Without --price_per_chip_hour costs are milliseconds of wall time for each token.

--departure_ms also answers loads that have arrival times by a train on a fixed schedule: requests
wait for the next departure, and a batch runs whole before another departs.

--draft=ngram verifies drafts in every step. The floor is then that of such a step, over the tokens
that it gave; the ideal is still a fixed batch without drafts.

--url measures a server elsewhere over OpenAI's streaming completions, as its clients see it:
without ideal and floor, which are not known there.

Writes serving.json, serving.csv and serving_cost.png to --output_dir, then prints. The first two
are complete after every load.

Examples:
  python scripts/profile_serving.py
  python scripts/profile_serving.py --concurrency=1,2,4,8,16,32 --prompt_length=128
  python scripts/profile_serving.py --rate=0.5,2 --rows=16 --departure_ms=2000
  python scripts/profile_serving.py --trace_file=requests.jsonl --context=2048
  python scripts/profile_serving.py --concurrency=1,4 --draft=ngram --draft_tokens=3
  python scripts/profile_serving.py --url=http://127.0.0.1:8000 --concurrency=1,8,32
"""

import datetime
import functools
import itertools
import sys
from pathlib import Path

import _array_flags
import _common
import _draft_flags
import _here_flags
import _peak_flags
from absl import flags

_CONCURRENCY = flags.DEFINE_list(
    "concurrency", None, "Requests in flight, a list. Default: 1,4,16, unless --rate or times are "
    "given."
)  # fmt: skip
_RATE = flags.DEFINE_list("rate", None, "Requests per second that come at random times, a list.")
_TRACE_FILE = flags.DEFINE(
    _common.PATH, "trace_file", None, "A file of requests, a JSON object in each line."
)
_PROMPT_LENGTH = flags.DEFINE_integer("prompt_length", 128, "Tokens of each prompt.", 1)
_GENERATED_TOKENS = flags.DEFINE_integer("generated_tokens", 64, "Tokens of each answer.", 1)
_REQUESTS = flags.DEFINE_integer(
    "requests",
    None,
    "Requests of each load, those of a trace from the beginning again and again. Default: as many "
    "as are in flight, and four at least; twice the rows where they come at random times.",
    1,
)
_ROWS = flags.DEFINE_integer(
    "rows", None, "Requests that run at once. Default: the largest --concurrency, or 16.", 1
)
_CONTEXT = flags.DEFINE_integer(
    "context", None, "Tokens that each row has room for. Default: those of the longest request.", 2
)
_TOKEN_BUDGET = flags.DEFINE_integer(
    "token_budget", 512, "Tokens of prompts that run between two decode steps, at most.", 1
)
_DEPARTURE_MS = flags.DEFINE_float(
    "departure_ms", None, "Time between departures of a train that is compared."
)
_URL = flags.DEFINE_string("url", None, "Address of a server, such as http://127.0.0.1:8000.")
_API_KEY = flags.DEFINE_string("api_key", None, "With --url: the key that the server wants.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of prompts and of arrivals.", 0)
_SECONDS = flags.DEFINE_float(
    "seconds", 10, "Time for samples of the fixed batches; at least six bursts of each.", 0
)
_PRICE = flags.DEFINE_float("price_per_chip_hour", None, "USD; costs are then in USD.")
_draft_flags.define()
_OUTPUT_DIR = flags.DEFINE(_common.PATH, "output_dir", "out/serving", "Folder for results.")

if __name__ == "__main__":
    for module in (_common, _array_flags, _here_flags, _peak_flags, _draft_flags):
        flags.adopt_module_key_flags(module)

with _common.importing(__name__):
    import _dtypes
    import _engines
    import _layouts
    import jax

    from model.lengths import check_length
    from profiles.chips.chip import DEAREST
    from profiles.figures.serving import serving_cost
    from profiles.floor.memory_needed import check_room
    from profiles.floor.passes import Pass
    from profiles.measured.rows import load as load_engine
    from profiles.measured.sweep_settings import Sweep
    from profiles.report.document import document
    from profiles.report.files import check_writable, remove, write_csv, write_json
    from profiles.report.numbers import milliseconds
    from profiles.report.progress import counted
    from profiles.report.table import wrap
    from profiles.serving import elsewhere
    from profiles.serving.arrivals import Asked, Load, check_lengths, closed, poisson, read_trace
    from profiles.serving.here import Asking, Measured, measure
    from profiles.serving.load_rows import load_row
    from profiles.serving.load_table import (
        cost_table,
        departure_table,
        latency_table,
        notes,
        title,
    )
    from sharding import processes
    from sharding.error_types import FloorlineError, UsageError

_PICTURE = "serving_cost.png"
DEFAULT = 1, 4, 16  # requests at once


def main() -> None:
    """Measures, and writes and prints the results."""
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    output = Path(_OUTPUT_DIR.value)
    _peak_flags.check(_SECONDS, (_PRICE, (1e-6, DEAREST)), (_DEPARTURE_MS, (1e-3, 1e9)))
    loads = _loads()
    work = _elsewhere if _URL.value else _here
    for results in work(loads, output, started):
        _write(output, results)
    if not processes.is_first():
        return
    picture = serving_cost(results, output / _PICTURE)
    wrote = [output / "serving.json", *([output / _PICTURE] if picture else [])]
    _common.say(f"wrote {', '.join(map(str, wrote))}")
    if _common.JSON.value == "-":
        write_json("-", results)
    _show(results)
    _refuse_impossible(results)


def _here(loads: list[Load], output: Path, started: str):
    """Yields the document after each load, answered here; of many processes, in the first."""
    _common.refuse(["api_key"], "no --url is given")
    sweep, asking = _sweep(loads)
    sweep.check()
    _check_output(output)
    (placing,) = sweep.placings()
    placed = _engines.Placed(sweep.source, *placing)
    check_room(placed.need(asking.rows, asking.context, **_draft_flags.room()))
    engine, failure = load_engine(
        sweep.source, placing, [(asking.context, asking.rows)], None, False, _common.say
    )
    if failure:
        raise FloorlineError(f"model is not loaded ({failure.status}: {failure.message})")
    measured = Measured(sweep, engine, asking)
    with counted(sum(len(load.asked) for load in loads), "requests") as done:
        for _ in measure(measured, _common.say, done):
            if not processes.is_first():
                continue
            rows, departures = measured.load(), measured.departures()
            yield document(
                sys.argv,
                measured.points(),
                device_kind=jax.devices()[0].device_kind,
                started=started,
                bandwidth=measured.bandwidth,
                load=rows,
                **({"departures": departures} if departures else {}),
            )


def _elsewhere(loads: list[Load], output: Path, started: str):
    """Yields the document after each load, answered by the server at --url."""
    unknown = ["rows", "context", "token_budget", "departure_ms", "seconds", "hbm_bandwidth"]
    unknown += ["peak_flops", "devices", "mesh", "layout", "dtype", "weight_dtype", "kv_dtype"]
    unknown += ["attention", "collectives", "prefill_layout", "expert_parallel", "gpu_kernels"]
    unknown += ["round_activations", "random_weights", "max_context", "draft", "draft_tokens"]
    _common.refuse(unknown, "--url names a server, which has its own")
    named = _common.MODEL.value if _common.flags.FLAGS["model"].present else None
    server = elsewhere.Server(_URL.value, named, _API_KEY.value)
    if processes.count() > 1:
        raise UsageError(
            f"--url is given to {processes.count()} processes, but one is all that a server's "
            "clients need; leave out --coordinator, --num_processes and --process_id"
        )
    _check_output(output)
    rows, price = [], _PRICE.value
    with counted(sum(len(load.asked) for load in loads), "requests") as done:
        for load in loads:
            _common.say(f"{load}: {len(load.asked)} requests to {_URL.value}")
            tell = functools.partial(done, str(load))
            traffic = elsewhere.answer(server, load, _SEED.value, tell)
            rows.append(load_row(traffic, usd_per_s=price and price / 3600))
            yield document(
                sys.argv,
                [],
                device_kind="",
                started=started,
                bandwidth=None,
                subject=f"{server.model} at {_URL.value}, as its clients see it",
                load=list(rows),
            )


def _loads() -> list[Load]:
    """The loads that the flags ask for."""
    trace = read_trace(_TRACE_FILE.value) if _TRACE_FILE.value else None
    if trace:
        _common.refuse(["prompt_length", "generated_tokens"], "--trace_file has the lengths")
    timed = trace is not None and trace[0].arrival_s is not None
    if timed:
        _common.refuse(["concurrency", "rate", "requests"], "--trace_file has arrival times")
        return [Load("trace", trace)]
    rates = _rates()
    given = _CONCURRENCY.present
    several = _common.integers("concurrency", _CONCURRENCY.value) if given else []
    if not (given or rates):
        several = [count for count in DEFAULT if count <= (_ROWS.value or count)]
    if several and _ROWS.value and max(several) > _ROWS.value:
        raise UsageError(
            f"--concurrency is {max(several)}, more than --rows={_ROWS.value} can run at once; "
            "give as many rows"
        )
    if _DEPARTURE_MS.value is not None and not rates:
        raise UsageError(
            f"--departure_ms is {_DEPARTURE_MS.value:g}, but no request has an arrival time; give "
            "--rate, or a --trace_file with them"
        )
    rows = _rows(several)
    lengths = trace or [Asked(_PROMPT_LENGTH.value, _GENERATED_TOKENS.value)]

    def asked(default: int) -> list[Asked]:
        return list(itertools.islice(itertools.cycle(lengths), _REQUESTS.value or default))

    least = len(trace) if trace else 4
    loads = [closed(asked(max(count, least)), count) for count in several]
    return loads + [poisson(asked(max(2 * rows, least)), rate, _SEED.value) for rate in rates]


def _rows(concurrencies: list[int]) -> int:
    """Rows of the service; a default for requests that come by themselves."""
    return _ROWS.value or max(concurrencies, default=16)


def _rates() -> list[float]:
    found = []
    for text in _RATE.value or []:
        try:
            found.append(float(text))
        except ValueError:
            raise UsageError(f"--rate is {text!r}; use numbers of requests per second") from None
        poisson([], found[-1])  # refuses what is no rate
    if _RATE.value == []:
        raise UsageError("--rate is ''; use numbers of requests per second")
    return list(dict.fromkeys(found))


def _sweep(loads: list[Load]) -> tuple[Sweep, Asking]:
    """The model and its fixed batches, and the service that is measured beside them."""
    meshes = _engines.meshes()
    _layouts.check_layouts()
    _dtypes.check()
    source = _common.source()
    _draft_flags.check(source.config)
    everything = [each for load in loads for each in load.asked]
    longest = max(each.prompt_length + each.generated_tokens for each in everything)
    context = _CONTEXT.value or longest
    check_lengths(everything, context)
    check_length(source.config, "--context" if _CONTEXT.value else "longest request", context, 0)
    rows = _rows([load.concurrency for load in loads if load.concurrency])
    contexts = list(dict.fromkeys(load.mean_context for load in loads))
    placed = _engines.place(source, meshes, [Pass(rows, each) for each in contexts])
    sweep = Sweep(
        source=source,
        layouts=[placed.layout],
        shapes=[placed.shape],
        batches=[rows],
        contexts=contexts,
        slots=context,
        dtype_sets=[placed.dtypes],
        seconds=_SECONDS.value,
        bandwidth=_peak_flags.BANDWIDTH.value,
        peak_flops=_peak_flags.FLOPS.value,
        price=_PRICE.value,
    )
    departure = None if _DEPARTURE_MS.value is None else _DEPARTURE_MS.value / 1e3
    sizes = {"rows": rows, "context": context, "token_budget": _TOKEN_BUDGET.value}
    sizes["draft_tokens"] = _draft_flags.draft_tokens()
    return sweep, Asking(loads, **sizes, departure_s=departure, seed=_SEED.value)


def _check_output(output: Path) -> None:
    """Refuses what cannot be written, and removes the picture of an earlier run."""

    def check() -> None:
        check_writable(output)
        remove(output / _PICTURE)

    processes.from_first_process(check)
    _common.check_json()


def _write(output: Path, results: dict) -> None:
    write_json(output / "serving.json", results)
    write_csv(output / "serving.csv", results["load"])
    if _common.JSON.value not in (None, "", "-"):
        write_json(_common.JSON.value, results)


def _show(results: dict) -> None:
    _common.show("\n".join(wrap(line, 2) for line in title(results)))
    for table in (latency_table, cost_table):
        _common.show("\n" + table(results["load"]).terminal())
    if "departures" in results:
        _common.show("\n" + departure_table(results["departures"]).terminal())
    for note in notes(results):
        _common.show("\n" + wrap(note, 2))


def _refuse_impossible(results: dict) -> None:
    """Fails a run with a fixed batch below its floor, whose figures stand in the files."""
    for point in results["points"]:
        if (point.fraction_of_floor or 0) > 1:
            raise FloorlineError(
                f"measured step of batch {point.batch} is {milliseconds(point.step_s['median'])}, "
                f"below its floor of {milliseconds(point.floor_s)}; the rates that the floor was "
                "taken at must be wrong: measure on quiet cores"
            )


if __name__ == "__main__":
    _common.start(main)
