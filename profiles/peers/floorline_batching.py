"""Floorline's batching engine as an engine among others: see `serve`.

All prompts of a round come at once, and join the running batch between steps. The clock of a round
stops when the last token is on the host.
"""

import time

from decode.batching.batcher import Batcher
from decode.batching.events import Ticket, Token
from decode.batching.request import Request
from profiles.peers.floorline import load
from profiles.peers.messages import About, Job, Round, Work
from profiles.peers.serve import Run, serve


def start(job: Job) -> tuple[Run, About]:
    """Loads the model on one device, and compiles a batch of the job's size."""
    engine, about = load(job)
    batcher = Batcher(engine, job.batch, job.slots, shares_prefixes=False)
    batcher.warm_up()
    return lambda work: _round(batcher, work), about


def _round(batcher: Batcher, work: Work) -> Round:
    begin, first = time.perf_counter(), None
    tokens: dict[Ticket, list[int]] = {
        batcher.submit(Request(prompt=prompt, max_new_tokens=work.new_tokens)): []
        for prompt in work.prompts
    }
    while not batcher.idle:
        for event in batcher.step():
            if isinstance(event, Token):
                tokens[event.ticket].append(event.token)
        if first is None and all(tokens.values()):  # the last sequence has its first token
            first = time.perf_counter() - begin
    step = (time.perf_counter() - begin - first) / (work.new_tokens - 1)
    return Round(first, step, list(tokens.values()))


if __name__ == "__main__":
    serve(start)
