"""Decode-step and prompt time of Hugging Face transformers here, in a process of its own.

The peer runs as its users run it: float32 weights, a KV cache, `torch.inference_mode`, and
`model.generate` with greedy sampling that may not stop early. A step's time is

    (time to generate N + 1 tokens  -  time to generate 1 token) / N,

so prefill cancels. `generate` carries bookkeeping that a careful user can leave out, so the same
steps are also timed as a plain loop over `model(input_ids, past_key_values=...)`; the faster of
the two is the fair peer, and both are reported. Steps read a cache that grows from `context` to
`context + N` tokens. With N = 0 the prompt itself is timed, as one call of the model that fills a
cache and gives the logits of the last position.

Torch must not share its threads or its memory with JAX, hence the separate process:

    python -m profiles.measured.peer_transformers --gguf=model.gguf --context=128 --batch=1

prints one line of JSON; `measure` starts that process and returns the parsed line.
"""

import importlib
import importlib.util
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from profiles.measured.peer_process import print_times, run_peer, summary
from sharding.error_types import FloorlineError, UsageError

_REMEDY = "pip install -e '.[parity]'"


def load(gguf: Path, attention: str = "sdpa") -> tuple[Any, Any]:
    """Import torch and load a GGUF file with transformers, dequantized to float32.

    Args:
      gguf: the checkpoint; its blocks are dequantized exactly, nothing is quantized again.
      attention: `sdpa`, the default of transformers, or `eager`, the plain einsum.

    Returns:
      (the torch module, the model in evaluation mode).

    Raises:
      UsageError: the file is missing, or transformers or one of its needs is not installed.
    """
    if not gguf.is_file():
        raise UsageError(f"--gguf is {gguf}, which is not a file; give the path of a GGUF file")
    for package in ("torch", "transformers", "gguf"):
        if importlib.util.find_spec(package) is None:
            raise UsageError(f"package {package} is missing; {_REMEDY}")
    # Progress bars and warnings of a load would hide the one line of an error; tqdm reads this
    # variable when it is first imported.
    os.environ.setdefault("TQDM_DISABLE", "1")
    torch = importlib.import_module("torch")
    transformers = importlib.import_module("transformers")
    transformers.logging.set_verbosity_error()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, attn_implementation=attention
    )
    return torch, model.eval()


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
    """Time transformers' decode step in a fresh process.

    Args:
      gguf: the checkpoint that Floorline is timed with, too.
      context: tokens in the cache before the first timed step.
      batch: sequences decoded together.
      new_tokens: N, the number of steps that a sample is averaged over; 0 times the prompt.
      threads: torch's threads.
      repeats: number of samples of each way.
      python: interpreter with the `parity` extra installed.
      timeout_s: seconds after which the process is killed.

    Returns:
      The result of `time_decode`, which the process printed.

    Raises:
      FloorlineError: the process failed, ran out of time or printed no JSON.
    """
    sizes = dict(
        context=context, batch=batch, new_tokens=new_tokens, threads=threads, repeats=repeats
    )
    return run_peer("peer_transformers", "transformers", gguf, sizes, python, timeout_s)


def time_decode(
    gguf: Path, *, context: int, batch: int, new_tokens: int, threads: int, repeats: int
) -> dict[str, Any]:
    """Time decode steps of transformers in this process, as the module's docstring says.

    Returns:
      `generate` and `manual_loop`, or `prompt` where `new_tokens` is 0, each with `samples_s`
      (seconds per step or prompt, one per repeat, in the order taken), `median_s`, `p10_s` and
      `p90_s`; `fastest`, the name of the one with the smallest median; the sizes asked for and
      the versions used.
    """
    torch, model = load(gguf)
    torch.set_num_threads(threads)
    prompt = _random_prompt(torch, model.config.vocab_size, batch, context)
    ways: dict[str, Callable[[], float]] = {
        "generate": lambda: _generate_step(torch, model, prompt, new_tokens),
        "manual_loop": lambda: _manual_step(torch, model, prompt, new_tokens),
    }
    if not new_tokens:
        ways = {"prompt": lambda: _prompt(torch, model, prompt)}
    samples: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        # Both take turns, so that a slow minute of the machine affects both alike.
        for name in sorted(ways, reverse=bool(repeat % 2)):
            seconds = ways[name]()
            if repeat:  # the first round warms up the allocator and the kernels
                samples[name].append(seconds)
    report: dict[str, Any] = {name: summary(values) for name, values in samples.items()}
    report["fastest"] = min(samples, key=lambda name: report[name]["median_s"])
    report |= dict(
        gguf=gguf.name, dtype="float32", context=context, batch=batch, new_tokens=new_tokens
    )
    report |= dict(threads=threads, repeats=repeats, attention=model.config._attn_implementation)
    names = ("torch", "transformers")
    report["versions"] = {name: importlib.import_module(name).__version__ for name in names}
    report["versions"]["python"] = platform.python_version()
    return report


def _random_prompt(torch: Any, vocabulary: int, batch: int, context: int) -> Any:
    """Random token ids, [batch, context]; a step's time does not depend on them."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, vocabulary, (batch, context), generator=generator)


def _generate_step(torch: Any, model: Any, prompt: Any, new_tokens: int) -> float:
    """Seconds per step of `model.generate`, without its prefill and set-up."""

    def seconds(count: int) -> float:
        with torch.inference_mode():
            start = time.perf_counter()
            output = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                do_sample=False,
                min_new_tokens=count,
                max_new_tokens=count,
            )
            elapsed = time.perf_counter() - start
        made = output.shape[1] - prompt.shape[1]
        if made != count:
            raise FloorlineError(f"tokens from transformers is {made}, not {count}; report this")
        return elapsed

    short = seconds(1)
    return (seconds(new_tokens + 1) - short) / new_tokens


def _manual_step(torch: Any, model: Any, prompt: Any, new_tokens: int) -> float:
    """Seconds per step of a bare loop over the model and its cache; prefill is not timed."""
    with torch.inference_mode():
        output = model(prompt, use_cache=True, logits_to_keep=1)
        token = output.logits[:, -1].argmax(-1, keepdim=True)
        start = time.perf_counter()
        for _ in range(new_tokens):
            output = model(token, past_key_values=output.past_key_values, use_cache=True)
            token = output.logits[:, -1].argmax(-1, keepdim=True)
        return (time.perf_counter() - start) / new_tokens


def _prompt(torch: Any, model: Any, prompt: Any) -> float:
    """Seconds that the model takes for a prompt."""
    with torch.inference_mode():
        start = time.perf_counter()
        model(prompt, use_cache=True, logits_to_keep=1)
        return time.perf_counter() - start


if __name__ == "__main__":
    print_times(time_decode)
