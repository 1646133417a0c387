"""Many requests at once on this machine's cores, in turns with other engines; `-m speed -n 0`.

32 requests of 128 tokens and 64 new ones come at the same time. What counts is the wall time until
the last token of the last one, prompts included.
"""

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from profiles.peers.comparison import random_prompts
from profiles.peers.engine_process import ENGINES, EngineError, EngineProcess
from profiles.peers.messages import Job, Work

ROOT = Path(__file__).parents[2]
REQUESTS, PROMPT, NEW, ROUNDS = 32, 128, 64, 3
OWN = "floorline-batching"
MODULES = ENGINES | {OWN: "profiles.peers.floorline_batching"}
GROUPS = {OWN: 32, "transformers": 8, "llama.cpp": 32}
"""Requests that an engine is given together: static batches of 8 for one that cannot take more."""
FASTER_THAN = {"transformers": 2.0, "llama.cpp": 1.2}
NEEDED = "transformers", "torch", "xllamacpp"

pytestmark = pytest.mark.speed


def seconds(process: EngineProcess, group: int, prompts: list[list[int]]) -> float:
    """Wall time of all requests."""
    begin = time.perf_counter()
    for first in range(0, len(prompts), group):
        process.round(Work(prompts[first : first + group], NEW))
    return time.perf_counter() - begin


@pytest.mark.skipif(not all(map(importlib.util.find_spec, NEEDED)), reason="needs extra `compare`")
def test_all_requests_are_answered_sooner_than_by_peers_with_the_same_weights(smollm2, tmp_path):
    prompts = random_prompts(smollm2.config.vocabulary, REQUESTS, PROMPT)
    threads, found = len(os.sched_getaffinity(0)), {}
    processes = {}
    try:
        for name, group in GROUPS.items():
            job = Job(name, str(smollm2.file.path), "gguf", "float32", batch=group,
                      slots=PROMPT + NEW, threads=threads, platform="cpu",
                      scratch=str(tmp_path))  # fmt: skip
            processes[name] = EngineProcess(job, MODULES)
            seconds(processes[name], group, prompts)  # compiles and warms up
        for number in range(ROUNDS):
            for name in list(GROUPS)[:: -1 if number % 2 else 1]:
                time.sleep(0.1)
                found.setdefault(name, []).append(seconds(processes[name], GROUPS[name], prompts))
    except EngineError as error:
        pytest.fail(str(error))
    finally:
        for process in processes.values():
            process.close()
    for name, samples in found.items():
        rate = REQUESTS * NEW / statistics.median(samples)
        print(f"\n{name}: {rate:.1f} tokens/s, {samples}")
    own = found[OWN]
    for name, bar in FASTER_THAN.items():
        ratio = statistics.median(its / mine for its, mine in zip(found[name], own, strict=True))
        print(f"{name} over {OWN}: {ratio:.2f}")
        assert ratio >= bar, (name, found)


def test_requests_at_once_are_answered_at_most_of_the_rate_of_full_steps(tmp_path):
    """Tokens of prompts count, since they take time: full steps of the ideal have none."""
    lengths = [f"--prompt_length={PROMPT}", f"--generated_tokens={NEW}"]
    command = [sys.executable, str(ROOT / "scripts/profile_serving.py"), *lengths]
    command += [f"--concurrency={REQUESTS}", f"--output_dir={tmp_path}"]
    subprocess.run(command, check=True, timeout=900)
    (load,) = json.loads((tmp_path / "serving.json").read_text())["load"]
    rate = (load["generated_tokens"] + load["prompt_tokens"]) / load["wall_s"]
    share = rate / load["ideal"]["tokens_per_s"]
    print(f"\n{share:.2f} of the ideal; of answers alone {load['fraction_of_ideal']:.2f}")
    assert share >= 0.8, load
