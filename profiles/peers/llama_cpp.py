"""Decode steps of llama.cpp on this processor as an engine: see `serve`.

It is the server of llama.cpp inside a Python process, as the package xllamacpp wraps it. A request
with a prompt that is not cached is continued greedily and may not stop early: the server then never
takes a token that ends a text. It times the prompt and the tokens after the first itself. With a
batch of B, B requests go at the same time, each in a slot of its own, and the slowest counts. Token
ids are told with their probabilities alone, which take time, so they are asked for where a `Work`
comes first: in the round that warms up.

`llama.cpp` reads a GGUF file that `write_plain` makes, all matrices in one plain type, and keeps a
cache of that type; `llama.cpp-quantized` reads the file as it is, and keeps its usual cache.
"""

import importlib
import json
import math
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from profiles.peers.messages import About, Job, Round, Work
from profiles.peers.serve import Run, need, serve
from sharding.error_types import FloorlineError, UsageError

_FILE_TYPES = {"float32": 0, "bfloat16": 32}  # `general.file_type` of a GGUF file


def start(job: Job) -> tuple[Run, About]:
    """Starts the server on the job's file."""
    need("gguf", "xllamacpp")
    if job.form != "gguf":
        raise UsageError("model is no GGUF file, which llama.cpp needs; give --model=FILE.gguf")
    if job.platform not in ("", "cpu"):
        raise UsageError(
            f"device is {job.platform} for Floorline and cpu for this engine; leave it out"
        )
    library = importlib.import_module("xllamacpp")
    path, plain = Path(job.model), job.engine == "llama.cpp"
    dtype = job.dtype if plain else _stored(path)
    if plain:
        path = write_plain(path, Path(job.scratch) / f"{job.dtype}.gguf", job.dtype)
    server = _server(library, path, job, plain)
    about = About(version=f"xllamacpp {library.__version__}", device="cpu", dtype=dtype)
    known: dict[str, list[list[int]]] = {}
    return lambda work: _round(server, work, known), about


def write_plain(source: Path, target: Path, dtype: str) -> Path:
    """Writes one GGUF file of the same model, every matrix in a plain type, unless it is there.

    Vectors are in float32 always, as llama.cpp wants them.

    Args:
      source: the file, or the first of several parts.
      target: the file that is made.
      dtype: ``float32`` or ``bfloat16``.

    Returns:
      `target`.
    """
    if target.exists():
        return target
    import gguf

    from model.weights.gguf_parts import open_model

    file, fields = open_model(source), gguf.GGUFReader(source).fields
    unfinished = target.with_suffix(".unfinished")
    writer = gguf.GGUFWriter(unfinished, file.metadata["general.architecture"])
    for key, field in fields.items():
        if not key.startswith(("GGUF.", "split.")) and key != "general.architecture":
            value = _FILE_TYPES[dtype] if key == "general.file_type" else field.contents()
            writer.add_key_value(key, value, *field.types[:2])
    for name in file.tensors:
        values, kind = file.read(name), gguf.GGMLQuantizationType.F32
        if dtype == "bfloat16" and values.ndim > 1:
            kind = gguf.GGMLQuantizationType.BF16
            values = gguf.quants.quantize(values, kind)
        writer.add_tensor(name, values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(unfinished, target)
    return target


def _stored(path: Path) -> str:
    """The type that most of a file's numbers are in."""
    from model.weights.gguf_parts import open_model

    counts: dict[str, int] = {}
    for tensor in open_model(path).tensors.values():
        name = tensor.type.name
        counts[name] = counts.get(name, 0) + math.prod(tensor.shape)
    return max(counts, key=counts.get)


def _server(library: Any, path: Path, job: Job, plain: bool) -> Any:
    parameters = library.CommonParams()
    parameters.model.path = str(path)
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = job.threads
    parameters.n_ctx, parameters.n_parallel = job.slots * job.batch, job.batch
    if plain:
        types = library.ggml_type
        kinds = {"float32": types.GGML_TYPE_F32, "bfloat16": types.GGML_TYPE_BF16}
        parameters.cache_type_k = parameters.cache_type_v = kinds[job.dtype]
    parameters.verbosity = -1
    return library.Server(parameters)


def _round(server: Any, work: Work, known: dict[str, list[list[int]]]) -> Round:
    """Runs a round; `known` holds the tokens of works that came before."""
    key = repr(work)
    with ThreadPoolExecutor(len(work.prompts)) as pool:
        ask = lambda prompt: _answer(server, prompt, work.new_tokens, key not in known)  # noqa: E731
        answers = list(pool.map(ask, work.prompts))
    if key not in known:
        known[key] = [_tokens(answer, work.new_tokens) for answer in answers]
    first, others = (
        max(answer["timings"][part] for answer in answers) / 1e3
        for part in ("prompt_ms", "predicted_ms")
    )
    return Round(first, others / (work.new_tokens - 1), known[key])


def _answer(server: Any, prompt: list[int], new_tokens: int, with_tokens: bool) -> dict:
    answer = server.handle_completions(
        {
            "prompt": prompt,
            "n_predict": new_tokens,  # the first comes of the prompt
            "temperature": 0,
            "top_k": 1,
            "samplers": ["top_k"],
            "ignore_eos": True,
            "cache_prompt": False,
            "n_probs": int(with_tokens),
        }
    )
    answer = answer if isinstance(answer, dict) else json.loads(answer)
    if "timings" not in answer:
        raise FloorlineError(f"answer of llama.cpp is {json.dumps(answer)[:200]}; report this")
    made = answer["timings"]["predicted_n"]
    if made != new_tokens:
        raise FloorlineError(f"tokens from llama.cpp is {made}, not {new_tokens}; report this")
    return answer


def _tokens(answer: dict, new_tokens: int) -> list[int]:
    """Token ids of an answer; none where some are not told: those that end within a letter."""
    told = [token["id"] for token in answer["choices"][0]["logprobs"]["content"]]
    return told if len(told) == new_tokens else []


if __name__ == "__main__":
    serve(start)
