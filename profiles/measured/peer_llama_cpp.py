"""Decode-step time of llama.cpp on this processor, in a process of its own.

The peer reads a GGUF file of float32 weights, which `write_float32` makes, and keeps a float32
cache. It is the server of llama.cpp inside a Python process, as the package xllamacpp wraps it: a
request with a prompt of random tokens, which is not cached, and greedy sampling that may not stop
early. The server times the tokens after the first itself, so prefill is left out. With a batch of
B, B requests go at the same time, each in a slot of its own. Steps read a cache that grows from
`context` to `context + N` tokens.

    python -m profiles.measured.peer_llama_cpp --gguf=float32.gguf --context=128 --batch=1

prints one line of JSON; `measure` starts that process and returns the parsed line.
"""

import importlib
import importlib.util
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gguf as gguf_library
import numpy as np

from model.weights.gguf_file import GGUFFile
from profiles.measured.peer_process import print_times, run_peer, summary
from sharding.error_types import FloorlineError, UsageError

_REMEDY = "pip install -e '.[peers]'"


def write_float32(source: Path, target: Path) -> None:
    """Writes a GGUF file of the same model with every tensor in float32."""
    file, fields = GGUFFile(source), gguf_library.GGUFReader(source).fields
    writer = gguf_library.GGUFWriter(target, file.metadata["general.architecture"])
    for key, field in fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            value = 0 if key == "general.file_type" else field.contents()
            writer.add_key_value(key, value, *field.types[:2])
    for name in file.tensors:
        writer.add_tensor(name, file.read(name))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def measure(
    gguf: Path,
    *,
    context: int,
    batch: int,
    new_tokens: int = 32,
    threads: int = 2,
    repeats: int = 7,
    python: str = sys.executable,
    timeout_s: float = 1800.0,
) -> dict[str, Any]:
    """Times llama.cpp's decode step in a fresh process; arguments as `peer_transformers.measure`.

    Returns:
      The result of `time_decode`, which the process printed.

    Raises:
      FloorlineError: the process failed, ran out of time or printed no JSON.
    """
    sizes = dict(
        context=context, batch=batch, new_tokens=new_tokens, threads=threads, repeats=repeats
    )
    return run_peer("peer_llama_cpp", "llama.cpp", gguf, sizes, python, timeout_s)


def time_decode(
    gguf: Path, *, context: int, batch: int, new_tokens: int, threads: int, repeats: int
) -> dict[str, Any]:
    """Times decode steps of llama.cpp in this process, as the module's docstring says.

    Returns:
      `samples_s` (seconds per step, one per repeat), `median_s`, `p10_s` and `p90_s`; the sizes
      asked for, the version and the processor's instructions that llama.cpp uses.

    Raises:
      UsageError: the file or the package is missing.
      FloorlineError: the server stopped early.
    """
    if not gguf.is_file():
        raise UsageError(f"--gguf is {gguf}, which is not a file; give the path of a GGUF file")
    if importlib.util.find_spec("xllamacpp") is None:
        raise UsageError(f"package xllamacpp is missing; {_REMEDY}")
    library = importlib.import_module("xllamacpp")
    server = _server(library, gguf, (context + new_tokens + 1) * batch, batch, threads)
    random = np.random.default_rng(0)
    samples = [
        _step(server, random.integers(1000, 40_000, (batch, context)).tolist(), new_tokens)
        for _ in range(repeats + 1)
    ]
    report = summary(samples[1:])  # the first warms up
    report |= dict(
        gguf=gguf.name, dtype="float32", context=context, batch=batch, new_tokens=new_tokens
    )
    report |= dict(threads=threads, repeats=repeats, version=library.__version__)
    return report | dict(system=library.get_system_info())


def _server(library: Any, gguf: Path, slots: int, batch: int, threads: int) -> Any:
    parameters = library.CommonParams()
    parameters.model.path = str(gguf)
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    parameters.n_ctx, parameters.n_parallel = slots, batch
    parameters.cache_type_k = parameters.cache_type_v = library.ggml_type.GGML_TYPE_F32
    parameters.verbosity = -1
    return library.Server(parameters)


def _step(server: Any, prompts: list[list[int]], new_tokens: int) -> float:
    """Seconds per step of requests that run together; the slowest counts."""

    def seconds(prompt: list[int]) -> float:
        answer = server.handle_completions(
            {
                "prompt": prompt,
                "n_predict": new_tokens + 1,  # the first comes of the prompt
                "temperature": 0,
                "top_k": 1,
                "samplers": ["top_k"],
                "ignore_eos": True,
                "cache_prompt": False,
            }
        )
        times = (answer if isinstance(answer, dict) else json.loads(answer))["timings"]
        if times["predicted_n"] != new_tokens + 1:
            raise FloorlineError(
                f"tokens from llama.cpp is {times['predicted_n']}, not {new_tokens + 1}; "
                "report this"
            )
        return times["predicted_ms"] / 1000 / new_tokens

    with ThreadPoolExecutor(len(prompts)) as pool:
        return max(pool.map(seconds, prompts))


if __name__ == "__main__":
    print_times(time_decode)
