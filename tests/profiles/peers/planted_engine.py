"""An engine that does nothing, as the engine's name says: a process of tests."""

import os
import sys
import time

from profiles.peers.messages import About, Job, Round, Work
from profiles.peers.serve import Run, need, serve

STEPS = {"transformers": 0.004}
AS = {
    "llama.cpp": "dying", "llama.cpp-quantized": "missing", "transformers-compiled": "other",
    "transformers-generate": "hanging",
}  # fmt: skip
"""What becomes of engines of these names; the others are fine."""


def start(job: Job) -> tuple[Run, About]:
    print("a library's words")
    kind = AS.get(job.engine, "")
    if kind == "missing":
        need("a_package_that_is_not_there")
    done = []

    def run(work: Work) -> Round:
        done.append(work)
        if kind == "dying" and len(done) == 3:
            print("Segmentation fault of a peer", file=sys.stderr, flush=True)
            os._exit(139)
        if kind == "hanging":
            time.sleep(600)
        step = STEPS.get(job.engine, 0.002)
        token = 9 if kind == "other" else 5
        tokens = [[5, token] + [5] * (work.new_tokens - 2) for _ in work.prompts]
        return Round(10 * step, step, tokens)

    about = About("1.0", "cpu", job.dtype or "bfloat16", "cpu" if job.engine == "floorline" else "")
    return run, about


if __name__ == "__main__":
    serve(start)
