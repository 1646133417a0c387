"""Serve a model to many users at once, in the form of OpenAI's HTTP interface.

Requests join and leave one running batch; each gets the tokens that generate.py gives for the same
prompt, seed and sampling. Paths: /v1/completions, /v1/chat/completions, /v1/models, /health and
/metrics. Of many processes, process 0 listens and decides, and the others run the same steps. Needs
the extra `serve`: pip install -e '.[serve]'.

Examples:
  python scripts/serve.py
  python scripts/serve.py --model=path/to/Qwen3-8B --batch=64 --context=8192
  python scripts/serve.py --host=0.0.0.0 --port=80 --api_key=SECRET --max_waiting=200
  python scripts/serve.py --devices=4 --layout=auto --attention=auto --batch=16
  python scripts/serve.py --batch=2 --draft=ngram    several tokens a step, exactly
"""

import os
import re
import signal
import socket
import time

import _array_flags
import _chat_template
import _common
import _draft_flags
import _here_flags
from absl import flags

_HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen at; 0.0.0.0 is all.")
_PORT = flags.DEFINE_integer("port", 8000, "Port to listen at; 0 is a free one.", 0, 2**16 - 1)
_API_KEY = flags.DEFINE_string(
    "api_key",
    None,
    "What clients must send as their bearer token. Default: $FLOORLINE_API_KEY, which a list of "
    "processes does not show; without either, everybody may ask.",
)
_BATCH = flags.DEFINE_integer(
    "batch", None, "Requests that run at once. Default: 8, or what the layout divides.", 1
)
_CONTEXT = flags.DEFINE_integer(
    "context",
    2048,
    "Tokens of a request, prompt and answer together; so many are reserved for each of --batch.",
    1,
)
_TOKEN_BUDGET = flags.DEFINE_integer(
    "token_budget", 512, "Tokens of prompts that run between two decode steps, at most.", 1
)
_TOP_LOGPROBS = flags.DEFINE_integer(
    "top_logprobs", 5, "Alternatives to each token that a request may ask for, at most.", 0, 20
)
_SHARE_PREFIXES = flags.DEFINE_bool(
    "share_prefixes", True, "Start prompts from what others' rows hold of the same beginnings."
)
_MAX_WAITING = flags.DEFINE_integer(
    "max_waiting", 1024, "Requests that may wait beside those that run; more get status 429.", 0
)
_MAX_BODY_BYTES = flags.DEFINE_integer(
    "max_body_bytes", None, "Bytes of a request. Default: 1e6, or 32 for each of --context.", 1
)
_MAX_CONNECTIONS = flags.DEFINE_integer(
    "max_connections", 4096, "Connections at once; more get status 503, but for /health.", 1
)
_STALL_SECONDS = flags.DEFINE_float(
    "stall_seconds", 30.0, "A client that sends or takes nothing for so long is given up.", 0.1
)
_DRAIN_SECONDS = flags.DEFINE_float(
    "drain_seconds", 60.0, "After SIGTERM, requests that have come may run for so long.", 0.0
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of random weights.", 0, 2**32 - 1)
_draft_flags.define()
_CHUNK = _array_flags.define_chunk(
    "Tokens of a prompt that run at once, a multiple of 16, up to --token_budget."
)

if __name__ == "__main__":
    for module in (_common, _array_flags, _here_flags, _chat_template, _draft_flags):
        flags.adopt_module_key_flags(module)

with _common.importing(__name__):
    import _dtypes
    import _engines

    from decode.batching.batcher import Batcher
    from decode.chunks import check_chunk
    from decode.compiling import keep_compiled
    from decode.load import ModelSource
    from decode.serving.app import make_app
    from decode.serving.asked import Served
    from decode.serving.server import HttpServer, listen, url
    from decode.serving.service import Service
    from decode.serving.together import LeadingBatcher, follow
    from profiles.floor.passes import Pass
    from profiles.report.numbers import byte_size, several
    from sharding import processes
    from sharding.error_types import UsageError
    from sharding.placement import Placement


def main() -> None:
    """Loads the model, compiles, and answers until it is told to end."""
    _dtypes.check()
    _common.refuse(["json"], "a server writes no document")
    if _CHUNK.value is not None:
        check_chunk(_CHUNK.value)
    meshes, sockets = _engines.meshes(), []
    source = _chat_template.with_template(_common.source())
    _draft_flags.check(source.config)
    processes.from_first_process(lambda: sockets.append(_listen()))
    step = Pass(_BATCH.value or 8, context=_context(source) - 1)
    placed = _engines.place(source, meshes, [step])
    keep_compiled()  # after the CPU devices are asked for, because it starts them
    batcher, reserved = _batcher(placed)
    _warm_up(batcher)
    if not processes.is_first():
        for number in (signal.SIGTERM, signal.SIGINT):  # process 0 finishes what runs, and tells
            signal.signal(number, signal.SIG_IGN)
        return follow(batcher)
    leading = LeadingBatcher(batcher)
    ended_by = _serve(leading, placed, reserved, *sockets)
    leading.end()
    if ended_by == signal.SIGINT:
        raise KeyboardInterrupt("what ran has ended")


def _listen() -> socket.socket:
    """Where clients come, in the one process that answers them."""
    _key()  # refuses one that is none before the long work
    return listen(_HOST.value, _PORT.value, _STALL_SECONDS.value)


def _key() -> str | None:
    """What clients must send; None lets everybody in.

    Raises:
      UsageError: it cannot stand in a header.
    """
    key = os.environ.get("FLOORLINE_API_KEY") if _API_KEY.value is None else _API_KEY.value
    if key is not None and not re.fullmatch("[!-~]+", key):
        raise UsageError("--api_key is empty or no plain text; give letters and digits")
    return key


def _batcher(placed: _engines.Placed) -> tuple[Batcher, str]:
    """The batching engine of the model, if it fits, and the memory that is reserved."""
    rows, context = _rows(placed.placement), _context(placed.source)
    placed.placement.check_batch(rows)
    placed.state_choices()
    chunk = min(_engines.chunk(_CHUNK), _TOKEN_BUDGET.value)
    room = _draft_flags.room()
    engine = placed.load(rows, context, context, chunk, _SEED.value, **room)
    batcher = Batcher(
        engine,
        rows,
        context,
        _TOKEN_BUDGET.value,
        tokenizer=placed.source.tokenizer,
        top_logprobs=_TOP_LOGPROBS.value,
        shares_prefixes=_SHARE_PREFIXES.value,
        draft_tokens=_draft_flags.draft_tokens(),
    )
    weights = placed.need(rows, context).weights
    cache = engine.cache_bytes(rows, context, room["spare"])
    return batcher, f"{byte_size(weights)} of weights and {byte_size(cache)} of cache are reserved"


def _warm_up(batcher: Batcher) -> None:
    begun = time.perf_counter()
    _common.say("compiling all programs; clients can come when the address is told")
    batcher.warm_up(lambda name, seconds: _common.say(f"{name} is ready after {seconds:.1f} s"))
    _common.say(f"all programs are compiled, in {time.perf_counter() - begun:.1f} s")


def _serve(
    batcher: LeadingBatcher, placed: _engines.Placed, reserved: str, listening: socket.socket
) -> int | None:
    """Answers until it is told to end; returns the signal that has told it, if one has."""
    source, rows, key = placed.source, _rows(placed.placement), _key()
    served = Served(
        name=source.config.name,
        config=source.config,
        tokenizer=source.tokenizer,
        context=_context(source),
        top_logprobs=_TOP_LOGPROBS.value,
        answers=min(rows + _MAX_WAITING.value, 128),
        created=int(time.time()),
    )
    service = Service(batcher, served, rows, _MAX_WAITING.value)
    app = make_app(
        service,
        key=key,
        most_bytes=_MAX_BODY_BYTES.value or max(1_000_000, 32 * served.context),
        stall=_STALL_SECONDS.value,
        say=_common.say if _common.VERBOSE.value else None,
    )
    server = HttpServer(
        app,
        service,
        listening,
        connections=_MAX_CONNECTIONS.value,
        stall=_STALL_SECONDS.value,
        drain=_DRAIN_SECONDS.value,
        ready=lambda: _common.say(
            f"{url(listening)}/v1 serves {served.name}: {several(rows, 'request')} at once of up "
            f"to {served.context:,} tokens each; {reserved}" + _open_to_all(key)
        ),
    )
    server.run()
    if service.failure:
        raise service.failure
    return server.signal


def _rows(placement: Placement) -> int:
    """Requests that run at once."""
    parts = placement.multiple("B")
    return _BATCH.value or -(-8 // parts) * parts


def _context(source: ModelSource) -> int:
    return _common.within(source.config, _CONTEXT, [_CONTEXT.value], 0)[0]


def _open_to_all(key: str | None) -> str:
    """A warning, where other machines can ask without a key."""
    local = _HOST.value in ("localhost", "::1") or _HOST.value.startswith("127.")
    return "" if key or local else "; open to all who reach it: give --api_key"


if __name__ == "__main__":
    _common.start(main)
