"""Answer prompts with a sharded decoder, as streamed text.

The model is loaded onto a mesh of JAX devices (on a CPU, as many fake ones as asked for), prompts
of any lengths run as one batch, and text appears as it is decoded. What the layout replicates, the
time of a step and the size of the KV cache are printed on standard error.

Examples:
  python scripts/generate.py --chat --prompt="Why is the sky blue?"
  python scripts/generate.py --devices=4 --prompt="Once upon a time" --max_new_tokens=40
  python scripts/generate.py --model=a.gguf --prompt=One --prompt=Two --temperature=0.8 --top_p=0.9
  python scripts/generate.py --prompt="Once upon" --no_cache      shows what a KV cache saves
  python scripts/generate.py --model=tiny --random_weights --prompt_tokens=1,2,3 --json=-
"""

import datetime
import re
import sys
import time
from collections.abc import Callable, Iterator

import _array_flags
import _common
from absl import flags

_PROMPT = flags.DEFINE_multi_string("prompt", [], "Text to continue; repeat for a batch.")
_PROMPT_TOKENS = flags.DEFINE_multi_string(
    "prompt_tokens", [], "Token ids joined by commas, in place of text; repeat for a batch."
)
_CHAT = flags.DEFINE_bool("chat", False, "Put each prompt into the model's chat template.")
_DEVICES = flags.DEFINE_integer(
    "devices",
    None,
    "Number of devices, with the mesh of the lowest floor. Default: one on a CPU, elsewhere all "
    "that the layout can divide.",
    1,
)
_MESH = flags.DEFINE_string("mesh", None, "Sizes of mesh axes x, y and z, such as 2x2x2.")
_MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 128, "Limit for each prompt.")
_IGNORE_EOS = flags.DEFINE_bool("ignore_eos", False, "Go on past the end-of-sequence token.")
_STOP = flags.DEFINE_multi_string("stop", [], "End at this token: its text or its id; repeatable.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of sampling, and of random weights.", 0, 2**32 - 1)
_TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "0 takes the most likely token.")
_TOP_K = flags.DEFINE_integer("top_k", None, "Draw from the k most likely tokens.")
_TOP_P = flags.DEFINE_float("top_p", None, "Draw from the likeliest tokens of probability p.")
_MIN_P = flags.DEFINE_float("min_p", None, "Draw from tokens p times as likely as the likeliest.")
_NO_CACHE = flags.DEFINE_bool(
    "no_cache", False, "Generate again without a KV cache, by recomputing every prefix; compare."
)
_WEIGHT_LAYOUT = _array_flags.define_weight_layout(
    "auto lets the compiler choose the memory layout of weights, for these prompts."
)
_array_flags.define_step_flags()

if __name__ == "__main__":
    for module in (_common, _array_flags):
        flags.adopt_module_key_flags(module)

with _common.importing(__name__):
    import _dtypes
    import _layouts
    import jax
    import numpy as np

    from decode.engine import Engine
    from decode.generate import (
        Completion,
        Request,
        cache_sizes,
        generate,
        generate_without_cache,
    )
    from decode.load import ModelSource
    from decode.sampling import make_sampler
    from model.dtypes import Dtypes
    from profiles.floor.memory_needed import check_room, need_of
    from profiles.floor.passes import Pass
    from profiles.measured.step_record import describe_step
    from profiles.report.document import document, summarise
    from profiles.report.files import not_taken, write_json
    from profiles.report.numbers import byte_size, ms, number, several
    from profiles.report.progress import byte_progress
    from profiles.report.record import Record
    from profiles.report.titles import field_text
    from sharding import processes
    from sharding.error_types import FloorlineError, UsageError
    from sharding.placement import Placement


def main() -> None:
    """Loads the model, generates, and reports."""
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    sampler = make_sampler(_TEMPERATURE.value, _TOP_K.value, _TOP_P.value, _MIN_P.value)
    _dtypes.check()
    meshes = _layouts.meshes(_DEVICES.value, _MESH.value)
    source = _common.source()
    request = Request(
        prompts=_prompts(source),
        max_new_tokens=_MAX_NEW_TOKENS.value,
        sampler=sampler,
        seed=_SEED.value,
        stop_ids=_stop_ids(source),
    )
    request.check(source.config)
    longest = max(map(len, request.prompts))

    def dtypes() -> Dtypes:
        return _dtypes.dtypes(source.stored_quantization())

    _layouts.check(source.config, meshes)
    _common.check_json()
    step = Pass(len(request.prompts), context=longest)
    layout, shape = _layouts.layout(source.config, meshes, dtypes, [step])
    placement = Placement.of(layout, source.config.sizes, shape)
    _layouts.state_choices(source.config, placement, dtypes(), len(request.prompts))
    batch, slots = cache_sizes(source.config, placement, request)
    check_room(need_of(source.config, placement, dtypes(), batch=batch, slots=slots))
    engine = source.engine(layout, shape, dtypes(), _SEED.value, byte_progress)
    if _WEIGHT_LAYOUT.value == "auto":
        _common.say(engine.optimize_weight_layout(batch, slots))
    to_json = _common.JSON.value == "-"
    run = _Run(source, request, show=not to_json)
    run.take(generate(engine, request))
    record = describe_step(engine, batch=len(request.prompts), context=run.context())
    if run.step_seconds:
        record |= Record(step_s=summarise(run.step_seconds))
    if _common.JSON.value and processes.is_first():
        write_json(_common.JSON.value, _document(run, record, started))
    _common.say(_speed(run, engine))
    if _NO_CACHE.value:
        slow = _Run(source, request, show=False)
        slow.take(generate_without_cache(engine, request))
        _common.say(_comparison(run, slow, engine))


class _Run:
    """One generation: its completions, and the time at which each step's tokens arrived."""

    def __init__(self, source: ModelSource, request: Request, show: bool):
        self.source, self.request, self.show = source, request, show
        self.completions: list[Completion] = []
        self.first_seconds, self.first_tokens = 0.0, 0
        self.step_seconds: list[float] = []

    def take(self, steps: Iterator[list[Completion]]) -> None:
        """Runs to the end, printing as tokens arrive."""
        try:
            self._follow(steps)
        except (FloorlineError, KeyboardInterrupt):
            if self.show and self.completions and len(self.request.prompts) == 1:
                _common.show("")  # ends the line of text, so that an error begins a new one
            raise

    def _follow(self, steps: Iterator[list[Completion]]) -> None:
        write = _streamer(self.source, len(self.request.prompts)) if self.show else None
        last = time.perf_counter()
        for step, completions in enumerate(steps):
            now = time.perf_counter()
            if step:
                self.step_seconds.append(now - last)
            else:
                self.first_seconds = now - last
                self.first_tokens = sum(len(completion.tokens) for completion in completions)
            last = now
            self.completions = completions
            try:
                if write:
                    write(completions)
            except OSError as error:
                if not _common.JSON.value:
                    raise not_taken(error) from error
                write = _common.fail_when_done(error)  # None, so that nothing more is shown

    def tokens(self) -> int:
        """Tokens generated for all prompts together."""
        return sum(len(completion.tokens) for completion in self.completions)

    def tokens_per_s(self) -> float:
        """Tokens per second in the steps after the first, of sequences that had not ended."""
        return (self.tokens() - self.first_tokens) / sum(self.step_seconds)

    def context(self) -> int:
        """Tokens in the longest sequence halfway through."""
        longest = max(map(len, self.request.prompts))
        return longest + len(self.step_seconds) // 2

    def texts(self) -> list[str]:
        """Generated text of each prompt, or token ids if the model has no tokenizer."""
        return [_text(self.source, completion.tokens) for completion in self.completions]


def _streamer(source: ModelSource, prompts: int) -> Callable[[list[Completion]], None]:
    """A function that prints one prompt's text as it comes, or several texts as each one ends."""
    stream = source.tokenizer.stream() if source.tokenizer else None
    printed: set[int] = set()
    shown = 0

    def as_it_comes(completions: list[Completion]) -> None:
        nonlocal shown
        (completion,) = completions
        for token in completion.tokens[shown:]:
            print(stream.push(token) if stream else f"{token} ", end="", flush=True)
        shown = len(completion.tokens)
        if completion.finish_reason:
            print(stream.flush() if stream else "", flush=True)

    def as_each_ends(completions: list[Completion]) -> None:
        for prompt, completion in enumerate(completions):
            if completion.finish_reason and prompt not in printed:
                printed.add(prompt)
                print(f"[{prompt}] {_text(source, completion.tokens)}", flush=True)

    return as_it_comes if prompts == 1 else as_each_ends


def _text(source: ModelSource, tokens: list[int]) -> str:
    if source.tokenizer is None:
        return " ".join(map(str, tokens))
    return source.tokenizer.decode(tokens)


def _prompts(source: ModelSource) -> list[list[int]]:
    if not _PROMPT.value and not _PROMPT_TOKENS.value:
        raise UsageError("--prompt is not given; pass --prompt=TEXT or --prompt_tokens=1,2,3")
    if _CHAT.value and not _PROMPT.value:
        raise UsageError("--chat is set, but no --prompt is text; pass --prompt=TEXT")
    prompts = [_token_ids(text) for text in _PROMPT_TOKENS.value]
    if _PROMPT.value and source.tokenizer is None:
        why, remedies = source.without_tokenizer()
        remedies.append("pass --prompt_tokens=1,2,3")
        raise UsageError(f"--prompt is text, but {why}; {', or '.join(remedies)}")
    for text in _PROMPT.value:
        if not text:
            raise UsageError("--prompt is empty; give at least one character")
        if _CHAT.value:
            rendered = source.tokenizer.chat([{"role": "user", "content": text}])
            prompts.append(source.tokenizer.encode(rendered, special=True))
        else:
            prompts.append(source.tokenizer.encode(text))
    return prompts


def _token_ids(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch("[0-9]{1,18}", part) for part in parts):
        raise UsageError(f"--prompt_tokens is {text!r}; use token ids joined by commas, as 1,2,3")
    return [int(part) for part in parts]


def _stop_ids(source: ModelSource) -> frozenset[int]:
    tokenizer = source.tokenizer
    ids = set() if _IGNORE_EOS.value or tokenizer is None else set(tokenizer.stop_ids)
    for stop in _STOP.value:
        if re.fullmatch("[0-9]{1,18}", stop):
            encoded = [int(stop)]
        else:
            encoded = tokenizer.encode(stop, special=True) if tokenizer else []
        if len(encoded) != 1 or encoded[0] >= source.config.vocabulary:
            raise UsageError(
                f"--stop is {stop!r}, which is not one token of {source.config.name}; "
                "give a token's text or its id"
            )
        ids.add(encoded[0])
    return frozenset(ids)


def _speed(run: _Run, engine: Engine) -> str:
    text = f"{run.tokens()} tokens; first after {run.first_seconds:.2f} s, compilation included"
    if run.step_seconds:
        median = float(np.median(run.step_seconds))
        text += f"; then {ms(median)} ms per step (measured median)"
        text += f", {number(run.tokens_per_s())} tokens/s over all of them"
    mesh, kind = field_text(dict(engine.mesh.shape)), engine.mesh.devices.flat[0].device_kind
    return f"{text} on {several(engine.mesh.size, f'{kind} device')}, mesh {mesh}"


def _comparison(fast: _Run, slow: _Run, engine: Engine) -> str:
    same = "the same" if fast.texts() == slow.texts() else "NOT the same"
    longest = max(map(len, fast.request.prompts)) + len(fast.step_seconds) + 1
    size = engine.cache_bytes(*cache_sizes(engine.config, engine.placement, fast.request))
    if not fast.step_seconds:
        return f"KV cache: {same} text without it; three tokens or more are needed to compare times"
    times = [float(np.median(run.step_seconds)) for run in (fast, slow)]
    return (
        f"KV cache: {ms(times[0])} ms per step and {byte_size(size)} of cache; "
        f"without it: {ms(times[1])} ms per step and none, every step recomputing up to {longest} "
        f"tokens per sequence (measured medians): {number(times[1] / times[0])} times slower, "
        f"{same} text"
    )


def _document(run: _Run, record: Record, started: str) -> dict:
    return document(
        sys.argv,
        [record],
        device_kind=jax.devices()[0].device_kind,
        started=started,
        bandwidth=None,
        prompt_tokens=[list(prompt) for prompt in run.request.prompts],
        tokens=[completion.tokens for completion in run.completions],
        text=run.texts(),
        logprobs=[completion.logprobs for completion in run.completions],
        finish_reasons=[completion.finish_reason for completion in run.completions],
        first_token_s=run.first_seconds,
    )


if __name__ == "__main__":
    _common.start(main)
