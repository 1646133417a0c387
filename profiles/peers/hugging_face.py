"""Decode steps of Hugging Face transformers as an engine: see `serve`.

Three ways to run the same model, on the GPU if torch has one:

- `transformers`: a plain loop over the model and a cache that grows, greedy, as a careful user
  writes it. Tokens stay on the device until the last.
- `transformers-generate`: `model.generate`. A step's time is (time of N tokens - time of one token)
  / (N - 1), so that prefill and set-up cancel.
- `transformers-compiled`: the loop with a static cache, its step compiled by `torch.compile`, which
  needs a C++ compiler on a CPU; the prompt runs uncompiled.
"""

import importlib
import inspect
import os
import time
from pathlib import Path
from typing import Any

from profiles.peers.messages import About, Job, Round, Work
from profiles.peers.serve import MissingPackageError, Run, need, serve
from sharding.error_types import FloorlineError, UsageError


def start(job: Job) -> tuple[Run, About]:
    """Loads the model in the job's dtype."""
    torch, model = load(job)
    torch.set_num_threads(job.threads)
    versions = (torch, importlib.import_module("transformers"))
    about = About(
        version=", ".join(f"{each.__name__} {each.__version__}" for each in versions),
        device=torch.cuda.get_device_name() if model.device.type == "cuda" else "cpu",
        dtype=str(model.dtype).removeprefix("torch."),
    )
    if job.engine == "transformers-generate":
        return lambda work: _generate(torch, model, work), about
    return _naming_the_compiler(_Loop(torch, model, job).run), about


def load(job: Job, attention: str = "sdpa") -> tuple[Any, Any]:
    """Imports torch and loads a model, dequantized.

    Args:
      job: says where the weights are, or which shapes random ones have.
      attention: `sdpa`, the default of transformers, or `eager`, the plain einsum.

    Returns:
      (the torch module, the model in evaluation mode).

    Raises:
      UsageError: transformers or one of its needs is not installed, or does not read the model.
    """
    need("torch", "transformers", *(["gguf", "accelerate"] if job.form == "gguf" else []))
    if job.form == "orbax" or (job.form == "random" and job.config is None):
        what = "an Orbax folder" if job.form == "orbax" else "shapes that are no Llama's"
        raise UsageError(f"model is {what}, which this engine does not take; compare another model")
    # Progress bars and warnings of a load would hide the one line of an error; tqdm reads this
    # variable when it is first imported.
    os.environ.setdefault("TQDM_DISABLE", "1")
    torch = importlib.import_module("torch")
    transformers = importlib.import_module("transformers")
    transformers.logging.set_verbosity_error()
    device = "cuda" if torch.cuda.is_available() and job.platform != "cpu" else "cpu"
    if job.platform not in ("", "cpu") and device == "cpu":
        raise UsageError(f"device is {job.platform} for Floorline, which this torch lacks; "
                         "install torch for it")  # fmt: skip
    classes, path = transformers.AutoModelForCausalLM, Path(job.model)
    how = dict(dtype=getattr(torch, job.dtype), attn_implementation=attention)
    if job.form == "random":
        with torch.device(device):
            config = transformers.LlamaConfig(**job.config)
            model = classes.from_config(config, **how)
    elif job.form == "gguf":
        refuse_parts(path)
        model = classes.from_pretrained(path.parent, gguf_file=path.name, **how)
    else:
        model = classes.from_pretrained(path, **how)
    return torch, model.to(device).eval()


def refuse_parts(path: Path) -> None:
    """Refuses a GGUF model in several files: transformers reads one, and makes up the rest.

    Raises:
      UsageError: the path is the first of several files.
    """
    from model.weights.gguf_parts import open_model

    if (count := len(open_model(path).paths)) > 1:
        raise UsageError(
            f"model is a GGUF file in {count} parts, of which transformers reads one; join them "
            "with llama-gguf-split --merge, or compare with llama.cpp alone"
        )


def _naming_the_compiler(run: Run) -> Run:
    """The same, where a missing C++ compiler is told apart from other failures."""

    def named(work: Work) -> Round:
        try:
            return run(work)
        except Exception as error:
            if any(words in str(error) for words in ("CxxCompiler", "C compiler")):
                raise MissingPackageError(
                    "C or C++ compiler is missing, which torch.compile needs; install g++, or "
                    "leave transformers-compiled out of --engines"
                ) from error
            raise

    return named


class _Loop:
    """The loop over the model's steps, with its cache."""

    def __init__(self, torch: Any, model: Any, job: Job):
        self.torch, self.model = torch, model
        self.transformers = importlib.import_module("transformers")
        names = inspect.signature(model.forward).parameters
        self.name = "cache" if "cache" in names else "past_key_values"  # the older name
        self.cuda = model.device.type == "cuda"
        self.step, self.static = model, None
        if job.engine == "transformers-compiled":
            self.static = self.transformers.StaticCache(
                config=model.config, max_cache_len=job.slots
            )
            mode = "reduce-overhead" if self.cuda else "default"
            self.step = torch.compile(model.forward, mode=mode, dynamic=False)

    def run(self, work: Work) -> Round:
        """Runs one round."""
        torch, prompt = self.torch, _prompt(self.torch, self.model, work)
        # Compiled steps write into a cache that they know as their own, as under `generate`.
        with torch.inference_mode() if self.static is None else torch.no_grad():
            cache = self._cache()
            self._wait()
            begin = time.perf_counter()
            token = self._next(self.model, prompt, cache)
            self._wait()
            first, tokens = time.perf_counter(), [token]
            for _ in range(work.new_tokens - 1):
                token = self._next(self.step, token, cache)
                tokens.append(token)
            found = torch.cat(tokens, 1).tolist()  # waits for the last
            end = time.perf_counter()
        return Round(first - begin, (end - first) / (work.new_tokens - 1), found)

    def _cache(self) -> Any:
        if self.static is None:
            return self.transformers.DynamicCache(config=self.model.config)
        self.static.reset()
        return self.static

    def _next(self, step: Any, tokens: Any, cache: Any) -> Any:
        """The most likely token after the last one of each sequence, [B, 1]."""
        if self.cuda and self.static is not None:
            self.torch.compiler.cudagraph_mark_step_begin()
        output = step(tokens, use_cache=True, logits_to_keep=1, **{self.name: cache})
        return output.logits[:, -1].argmax(-1, keepdim=True)

    def _wait(self) -> None:
        if self.cuda:
            self.torch.cuda.synchronize()


def _prompt(torch: Any, model: Any, work: Work) -> Any:
    return torch.tensor(work.prompts, device=model.device)  # [B, T]


def _generate(torch: Any, model: Any, work: Work) -> Round:
    prompt = _prompt(torch, model, work)

    def timed(count: int) -> tuple[float, list[list[int]]]:
        with torch.inference_mode():
            begin = time.perf_counter()
            output = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                do_sample=False,
                min_new_tokens=count,
                max_new_tokens=count,
            )
            made = output[:, prompt.shape[1] :].tolist()
            seconds = time.perf_counter() - begin
        if len(made[0]) != count:
            raise FloorlineError(
                f"tokens from transformers is {len(made[0])}, not {count}; report this"
            )
        return seconds, made

    first, _ = timed(1)
    whole, tokens = timed(work.new_tokens)
    return Round(first, (whole - first) / (work.new_tokens - 1), tokens)


if __name__ == "__main__":
    serve(start)
