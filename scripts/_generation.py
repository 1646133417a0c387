"""Generations as they are shown: text that appears as it comes, and when each token arrived."""

import dataclasses
import sys
import time
from collections.abc import Callable, Iterator

import _common
import jax

from decode.conversation import Conversation
from decode.engine import Engine
from decode.generate import Completion, PromptError, Request
from decode.load import ModelSource
from profiles.report.files import not_taken
from profiles.report.numbers import several
from sharding import processes
from sharding.error_types import FloorlineError, UsageError

_compiled: list[float] = []  # seconds of each program that XLA has compiled


def _note(event: str, seconds: float, **_: object) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
        _compiled.append(seconds)


jax.monitoring.register_event_duration_secs_listener(_note)


class Run:
    """One generation: its completions, and the time at which each step's tokens arrived.

    Attributes:
      first_seconds: time to the first token.
      compile_seconds: the part of it in which XLA compiled.
      step_seconds: time of each step after it; steps of one dispatch share its time evenly.
      reused: tokens of the prompt that the cache held already.
    """

    def __init__(self, source: ModelSource, request: Request, show: bool):
        self.source, self.request, self.show = source, request, show
        self.completions: list[Completion] = []
        self.first_seconds, self.compile_seconds, self.first_tokens = 0.0, 0.0, 0
        self.step_seconds: list[float] = []
        self.reused = 0

    def take(self, steps: Iterator[list[Completion]]) -> None:
        """Runs to the end, printing as tokens arrive."""
        try:
            self._follow(steps)
        except (FloorlineError, KeyboardInterrupt):
            if self.show and self.completions and len(self.request.prompts) == 1:
                _common.show("")  # ends the line of text, so that an error begins a new one
            raise

    def _follow(self, steps: Iterator[list[Completion]]) -> None:
        write = _streamer(len(self.request.prompts)) if self.show else None
        last, compiled = time.perf_counter(), len(_compiled)
        several = self.request.tokens_per_dispatch
        for step, completions in enumerate(steps):  # a dispatch each
            now = time.perf_counter()
            if step:
                self.step_seconds += [(now - last) / several] * several
            else:
                self.first_seconds, self.compile_seconds = (
                    now - last,
                    sum(_compiled[compiled:], 0.0),
                )
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
        return max(self._halfway())

    def cached(self) -> int:
        """Tokens in all sequences together halfway through."""
        return sum(self._halfway())

    def _halfway(self) -> list[int]:
        """Tokens of each prompt and half of its answer, however many a step gave."""
        both = zip(self.request.prompts, self.completions, strict=True)
        return [len(prompt) + len(completion.tokens) // 2 for prompt, completion in both]

    def texts(self) -> list[str]:
        """Generated text of each prompt, or token ids if the model has no tokenizer."""
        return [text_of(completion) for completion in self.completions]

    def cut(self) -> str:
        """Which answers were cut by the limit of tokens, in words; "" where none was."""
        cut = [n for n, each in enumerate(self.completions) if each.finish_reason == "length"]
        limit = several(self.request.max_new_tokens, "token")
        if not cut:
            return ""
        answers = f"answers {', '.join(map(str, cut))} of {len(self.completions)} are"
        return f"{answers if len(self.completions) > 1 else 'answer is'} cut at {limit}"


class Talk:
    """A conversation: messages so far, and where the next ones come from.

    Attributes:
      messages: those said so far, as a chat template takes them.
      refused: why the last message has no answer, if it has none.
    """

    def __init__(self, source: ModelSource, message: str, following: Iterator[str]):
        self.source, self.following = source, following
        self.messages = [{"role": "user", "content": message}]
        self.refused: PromptError | None = None

    @property
    def prompt(self) -> list[int]:
        """Tokens of all messages, in the model's template."""
        tokenizer = self.source.tokenizer
        return tokenizer.encode(tokenizer.chat(self.messages), special=True)

    def answer(self, engine: Engine, request: Request, show: bool) -> list[Run]:
        """Answers message by message, until there are no more or one cannot be answered."""
        conversation, runs = Conversation(engine), []
        while True:
            turn = dataclasses.replace(request, prompts=[self.prompt])
            run = Run(self.source, turn, show)
            try:
                steps = conversation.answer(turn)
            except PromptError as error:
                self.refused = error
                return runs
            run.take(steps)
            run.reused = conversation.reused
            runs.append(run)
            message = next(self.following, None)
            if message is None:
                return runs
            said = {"role": "assistant", "content": run.texts()[0]}
            self.messages += [said, {"role": "user", "content": message}]


def messages() -> Iterator[str]:
    """Lines of standard input that are not empty, the same in all processes.

    Raises:
      UsageError: a line that is no text.
    """
    while (line := processes.from_first_process(_line)) is not None:
        if line := line.strip():
            yield line


def _line() -> str | None:
    """The next line, which a terminal is asked for; None at the end."""
    asks = sys.stdin is not None and sys.stdin.isatty()
    if asks:
        print("> ", end="", file=sys.stderr, flush=True)
    try:
        line = sys.stdin.readline() if sys.stdin else ""
    except UnicodeDecodeError as error:
        raise UsageError(f"standard input is no text ({error}); give lines of UTF-8") from error
    except KeyboardInterrupt:
        _end_line(asks)
        raise
    if not line:
        _end_line(asks)
    return line or None


def _end_line(asks: bool) -> None:
    if asks:
        _common.say("")


def _streamer(prompts: int) -> Callable[[list[Completion]], None]:
    """A function that prints one prompt's text as it comes, or several texts as each one ends."""
    printed: set[int] = set()
    shown = 0

    def as_it_comes(completions: list[Completion]) -> None:
        nonlocal shown
        (completion,) = completions
        if completion.decoder:
            print(completion.text[shown:], end="", flush=True)
            shown = len(completion.text)
        else:
            print("".join(f"{token} " for token in completion.tokens[shown:]), end="", flush=True)
            shown = len(completion.tokens)
        if completion.finish_reason:
            print(flush=True)

    def as_each_ends(completions: list[Completion]) -> None:
        for prompt, completion in enumerate(completions):
            if completion.finish_reason and prompt not in printed:
                printed.add(prompt)
                print(f"[{prompt}] {text_of(completion)}", flush=True)

    return as_it_comes if prompts == 1 else as_each_ends


def text_of(completion: Completion) -> str:
    """Text of a completion, or its token ids if the model has no tokenizer."""
    if completion.decoder is None:
        return " ".join(map(str, completion.tokens))
    return completion.text
