"""Answer prompts with a sharded decoder, as streamed text.

The model is loaded onto a mesh of JAX devices (on a CPU, as many fake ones as asked for), prompts
of any lengths run as one batch, and text appears as it is decoded. What the layout replicates, the
time of a step and the size of the KV cache are printed on standard error.

Examples:
  python scripts/generate.py --chat --prompt="Why is the sky blue?"
  python scripts/generate.py --devices=4 --prompt="Once upon a time" --max_new_tokens=40
  python scripts/generate.py --model=a.gguf --prompt=One --prompt=Two --temperature=0.8 --top_p=0.9
  python scripts/generate.py --chat --turns      talks: each line of standard input is a message
  python scripts/generate.py --prompt="Once upon" --no_cache      shows what a KV cache saves
  python scripts/generate.py --prompt="Once upon" --draft=ngram   several tokens a step, exactly
  python scripts/generate.py --model=tiny --random_weights --prompt_tokens=1,2,3 --json=-
"""

import dataclasses
import datetime
import re
import sys

import _array_flags
import _chat_template
import _common
import _draft_flags
import _here_flags
from absl import flags

_PROMPT = flags.DEFINE_multi_string("prompt", [], "Text to continue; repeat for a batch.")
_PROMPT_TOKENS = flags.DEFINE_multi_string(
    "prompt_tokens", [], "Token ids joined by commas, in place of text; repeat for a batch."
)
_CHAT = flags.DEFINE_bool("chat", False, "Put each prompt into the model's chat template.")
_TURNS = flags.DEFINE_bool(
    "turns",
    False,
    "With --chat: go on with the conversation. Each line of standard input is a message, after "
    "--prompt if there is one; what the cache holds of the conversation is not run again.",
)
_MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 128, "Limit for each prompt.")
_TOKENS_PER_DISPATCH = _array_flags.define_tokens_per_dispatch(
    "Decode steps that one program runs; text then comes so many tokens at a time."
)
_IGNORE_EOS = flags.DEFINE_bool("ignore_eos", False, "Go on past the end-of-sequence token.")
_STOP = flags.DEFINE_multi_string(
    "stop", [], "End before this text, or at the token of this name or id; repeatable."
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of sampling, and of random weights.", 0, 2**32 - 1)
_TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "0 takes the most likely token.")
_TOP_K = flags.DEFINE_integer("top_k", None, "Draw from the k most likely tokens.")
_TOP_P = flags.DEFINE_float("top_p", None, "Draw from the likeliest tokens of probability p.")
_MIN_P = flags.DEFINE_float("min_p", None, "Draw from tokens p times as likely as the likeliest.")
_CHUNK = _array_flags.define_chunk(
    "Tokens of a prompt that run at once, a multiple of 16; more take more memory. Default: 512 on "
    "a CPU, else 2048."
)
_NO_CACHE = flags.DEFINE_bool(
    "no_cache", False, "Generate again without a KV cache, by recomputing every prefix; compare."
)
_DRAFT = _draft_flags.define(models=True)
_WEIGHT_LAYOUT = _array_flags.define_weight_layout(
    "auto lets the compiler choose the memory layout of weights, for these prompts."
)

if __name__ == "__main__":
    for module in (_common, _array_flags, _here_flags, _chat_template, _draft_flags):
        flags.adopt_module_key_flags(module)

with _common.importing(__name__):
    import _dtypes
    import _engines
    import _layouts
    import jax
    import numpy as np
    from _generation import Run, Talk, messages
    from _speculation import draft_source, gain, make_draft

    from decode.chunks import check_chunk
    from decode.conversation import first_slots
    from decode.engine import Engine
    from decode.generate import Request, cache_sizes, generate, generate_without_cache
    from decode.load import ModelSource
    from decode.sampling import make_sampler
    from decode.speculation import Tally, speculate
    from decode.tokenizer import Tokenizer
    from profiles.floor.passes import Pass
    from profiles.measured.step_record import describe_step
    from profiles.report.document import document, summarise
    from profiles.report.files import write_json
    from profiles.report.numbers import byte_size, ms, number, several
    from profiles.report.record import Record
    from profiles.report.titles import field_text
    from sharding import processes
    from sharding.error_types import UsageError


def main() -> None:
    """Loads the model, generates, and reports."""
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    sampler = make_sampler(_TEMPERATURE.value, _TOP_K.value, _TOP_P.value, _MIN_P.value)
    _dtypes.check()
    _check_flags()
    meshes = _engines.meshes()
    source = _chat_template.with_template(_common.source())
    stop_ids, stop = _stops(source)
    talk = _talk(source) if _TURNS.value else None
    request = Request(
        prompts=[talk.prompt] if talk else _prompts(source),
        max_new_tokens=_MAX_NEW_TOKENS.value,
        sampler=sampler,
        seed=_SEED.value,
        stop_ids=stop_ids,
        stop=stop,
        stream=source.tokenizer.stream if source.tokenizer else None,
        tokens_per_dispatch=_TOKENS_PER_DISPATCH.value,
    )
    request.check(source.config)
    small = draft_source(_DRAFT.value, source, request) if _DRAFT.value else None
    _layouts.check(source.config, meshes)
    _common.check_json()  # makes a folder, which no refused run may leave
    step = Pass(len(request.prompts), context=max(map(len, request.prompts)))
    engine = _engine(_engines.place(source, meshes, [step]), request)
    draft, tally = None, Tally()
    if _DRAFT.value:
        draft = make_draft(small, _draft_flags.draft_tokens(), engine, request, _SEED.value)
    show = _common.JSON.value != "-"
    if talk:
        runs = talk.answer(engine, request, show)
    else:
        runs = [Run(source, request, show)]
        steps = speculate(engine, draft, request, tally) if draft else generate(engine, request)
        runs[0].take(steps)
    run = runs[-1]
    sizes = {"batch": len(request.prompts), "context": run.context()}
    record = describe_step(engine, **sizes, tokens=_draft_flags.draft_tokens() + 1)
    if run.step_seconds:
        record |= Record(step_s=summarise(run.step_seconds))
    if request.tokens_per_dispatch > 1:
        record |= Record(tokens_per_dispatch=request.tokens_per_dispatch)
    if _common.JSON.value and processes.is_first():
        found = {"speculation": dataclasses.asdict(tally)} if draft else {}
        write_json(_common.JSON.value, _document(runs, record, started) | found)
    _common.say(_speed(runs, engine))
    if not _IGNORE_EOS.value and (cut := run.cut()):
        _common.say(f"{cut}, the limit of --max_new_tokens")
    if draft:
        _common.say(gain(run, tally, draft, engine))
    if talk and talk.refused:
        raise talk.refused
    if _NO_CACHE.value:
        one_by_one = dataclasses.replace(request, tokens_per_dispatch=1)
        slow = Run(source, one_by_one, show=False)
        slow.take(generate_without_cache(engine, one_by_one))
        _common.say(_comparison(run, slow, engine))


def _check_flags() -> None:
    if _CHUNK.value is not None:
        check_chunk(_CHUNK.value)
    _draft_flags.check_tokens()
    if not _CHAT.value:
        _common.refuse(["chat_template"], "--chat is not")
    if not _TURNS.value:
        return
    _common.refuse(["draft"], "a conversation with --turns has no drafts")
    if not _CHAT.value:
        raise UsageError("--turns is set without --chat; pass both, to put messages in a template")
    if len(_PROMPT.value) > 1 or _PROMPT_TOKENS.value or _NO_CACHE.value:
        raise UsageError(
            "--turns is one conversation; pass one --prompt at most, no --prompt_tokens and no "
            "--no_cache"
        )


def _engine(placed: _engines.Placed, request: Request) -> Engine:
    """The model in its layout, if it fits."""
    placed.state_choices(len(request.prompts))
    config, longest = placed.source.config, max(map(len, request.prompts))
    batch, slots = cache_sizes(config, placed.placement, request)
    if _TURNS.value:
        longest = slots = first_slots(request, config)
    drafted = _draft_flags.draft_tokens()
    more = {"tokens": drafted + 1, "spare": drafted}
    engine = placed.load(batch, slots, longest, _engines.chunk(_CHUNK), _SEED.value, **more)
    if _WEIGHT_LAYOUT.value == "auto":
        _common.say(engine.optimize_weight_layout(batch, slots))
    return engine


def _talk(source: ModelSource) -> Talk:
    """A conversation with its first message."""
    _tokenizer(source)  # refuses a model that has none before a message is asked for
    following = messages()
    first = _PROMPT.value[0] if _PROMPT.value else next(following, None)
    if not first:
        raise UsageError("--turns has no message; pass --prompt=TEXT or lines on standard input")
    return Talk(source, first, following)


def _prompts(source: ModelSource) -> list[list[int]]:
    if not _PROMPT.value and not _PROMPT_TOKENS.value:
        raise UsageError("--prompt is not given; pass --prompt=TEXT or --prompt_tokens=1,2,3")
    if _CHAT.value and not _PROMPT.value:
        raise UsageError("--chat is set, but no --prompt is text; pass --prompt=TEXT")
    prompts = [_token_ids(text) for text in _PROMPT_TOKENS.value]
    tokenizer = _tokenizer(source) if _PROMPT.value else None
    for text in _PROMPT.value:
        if not text:
            raise UsageError("--prompt is empty; give at least one character")
        if _CHAT.value:
            rendered = tokenizer.chat([{"role": "user", "content": text}])
            prompts.append(tokenizer.encode(rendered, special=True))
        else:
            prompts.append(tokenizer.encode(text))
    return prompts


def _tokenizer(source: ModelSource) -> Tokenizer:
    """The model's tokenizer.

    Raises:
      UsageError: there is none, or none that can be read.
    """
    if source.tokenizer is None:
        why, remedies = source.without_tokenizer()
        remedies.append("pass --prompt_tokens=1,2,3")
        raise UsageError(f"--prompt is text, but {why}; {', or '.join(remedies)}")
    return source.tokenizer


def _token_ids(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch("[0-9]{1,18}", part) for part in parts):
        raise UsageError(f"--prompt_tokens is {text!r}; use token ids joined by commas, as 1,2,3")
    return [int(part) for part in parts]


def _stops(source: ModelSource) -> tuple[frozenset[int], list[str]]:
    """Tokens and texts that end an answer."""
    tokenizer = source.tokenizer
    ids = set() if _IGNORE_EOS.value or tokenizer is None else set(tokenizer.stop_ids)
    texts = []
    for stop in _STOP.value:
        number = re.fullmatch("[0-9]{1,18}", stop)
        token = int(stop) if number else tokenizer.control(stop) if tokenizer else None
        if token is not None and token < source.config.vocabulary:
            ids.add(token)
        elif number or not stop or tokenizer is None:
            raise UsageError(
                f"--stop is {stop!r}, which is no token id of {source.config.name} and no text "
                "that its tokenizer gives; give some text, or a token's id"
            )
        else:
            texts.append(stop)
    return frozenset(ids), texts


def _speed(runs: list[Run], engine: Engine) -> str:
    """When tokens came: each run's first one, and those of the last run's steps."""
    run = runs[-1]
    text = f"{sum(each.tokens() for each in runs)} tokens"
    text += f" in {len(runs)} turns" if len(runs) > 1 else ""
    compiled = f"{runs[0].compile_seconds:.2f} s of it compilation by XLA"
    text += f"; first after {runs[0].first_seconds:.2f} s, {compiled}"
    if len(runs) > 1:
        later = float(np.median([each.first_seconds - each.compile_seconds for each in runs[1:]]))
        text += f"; first of a later turn after {later:.2f} s without compilation (measured median)"
    if run.step_seconds:
        median = float(np.median(run.step_seconds))
        each = run.request.tokens_per_dispatch
        text += f"; then {ms(median)} ms per step (measured median"
        text += f", {each} steps per dispatch)" if each > 1 else ")"
        text += f", {number(run.tokens_per_s())} tokens/s over all of them"
    mesh, kind = field_text(dict(engine.mesh.shape)), engine.mesh.devices.flat[0].device_kind
    return f"{text} on {several(engine.mesh.size, f'{kind} device')}, mesh {mesh}"


def _comparison(fast: Run, slow: Run, engine: Engine) -> str:
    same = "the same" if fast.texts() == slow.texts() else "NOT the same"
    longest = max(map(len, slow.request.prompts)) + len(slow.step_seconds) + 1
    sizes = cache_sizes(engine.config, engine.placement, fast.request)
    size = engine.cache_bytes(*sizes, spare=_draft_flags.draft_tokens())
    if not fast.step_seconds:
        return f"KV cache: {same} text without it; three tokens or more are needed to compare times"
    times = [float(np.median(run.step_seconds)) for run in (fast, slow)]
    return (
        f"KV cache: {ms(times[0])} ms per step and {byte_size(size)} of cache; "
        f"without it: {ms(times[1])} ms per step and none, every step recomputing up to {longest} "
        f"tokens per sequence (measured medians): {number(times[1] / times[0])} times slower, "
        f"{same} text"
    )


def _document(runs: list[Run], record: Record, started: str) -> dict:
    """What programs read: a list entry for each prompt, or for each turn of a conversation."""
    completions = [completion for run in runs for completion in run.completions]
    turns = {}
    if _TURNS.value:
        times = [{"first_token_s": r.first_seconds, "compile_s": r.compile_seconds} for r in runs]
        turns = {"turns": times, "reused_tokens": [run.reused for run in runs]}
    return document(
        sys.argv,
        [record],
        device_kind=jax.devices()[0].device_kind,
        started=started,
        bandwidth=None,
        prompt_tokens=[list(prompt) for run in runs for prompt in run.request.prompts],
        tokens=[completion.tokens for completion in completions],
        text=[text for run in runs for text in run.texts()],
        logprobs=[completion.logprobs for completion in completions],
        finish_reasons=[completion.finish_reason for completion in completions],
        first_token_s=runs[0].first_seconds,
        compile_s=runs[0].compile_seconds,
        **turns,
    )


if __name__ == "__main__":
    _common.start(main)
