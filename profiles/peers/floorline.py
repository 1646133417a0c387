"""Floorline's own decode steps as an engine among others: see `serve`.

Prefill and the loop that `generate.py` runs, on one device. The clock of a round starts with an
empty cache and stops when the last token is on the host.
"""

import dataclasses
import time

import jax

from decode.engine import Engine
from decode.generate import Fed, Request, cache_slots, follow, pad
from decode.load import find_source
from model.dtypes import PLAIN_DTYPES, Dtypes, default_dtype
from profiles.peers.messages import About, Job, Round, Work
from profiles.peers.serve import Run, serve
from sharding.catalog import LAYOUTS
from sharding.devices import default_platform, devices
from sharding.mesh import parse_mesh, request_cpu_devices


def start(job: Job) -> tuple[Run, About]:
    """Loads the model on one device."""
    engine, about = load(job)
    return lambda work: _round(engine, work), about


def load(job: Job) -> tuple[Engine, About]:
    """The job's model on one device, and what is said of it."""
    request_cpu_devices(1)
    dtype = job.dtype or default_dtype()
    source = find_source(job.model, random_weights=job.form == "random")
    if job.max_context:
        config = dataclasses.replace(source.config, max_context=job.max_context)
        source = dataclasses.replace(source, config=config)
    dtypes = Dtypes(PLAIN_DTYPES[dtype], source.stored_quantization())
    engine = source.engine(LAYOUTS["weight_stationary_1d"], parse_mesh("1"), dtypes)
    about = About(
        version=f"jax {jax.__version__}",
        device=devices()[0].device_kind,
        dtype=dtypes.weights.name,
        platform=default_platform(),
    )
    return engine, about


def _round(engine: Engine, work: Work) -> Round:
    request = Request(prompts=work.prompts, max_new_tokens=work.new_tokens)
    request.check(engine.config)
    tokens, lengths = pad(request.prompts, len(work.prompts[0]))
    slots = cache_slots(tokens.shape[1], work.new_tokens, engine.config.max_context)
    cache = engine.new_cache(len(tokens), slots)
    begin = time.perf_counter()
    logits, cache = engine.prefill(cache, tokens, lengths)
    steps = follow(engine, cache, logits, lengths, request, Fed())
    times, completions = [], []
    for completions in steps:  # noqa: B007
        times.append(time.perf_counter())
    step = (times[-1] - times[0]) / (work.new_tokens - 1)
    return Round(times[0] - begin, step, [completion.tokens for completion in completions])


if __name__ == "__main__":
    serve(start)
