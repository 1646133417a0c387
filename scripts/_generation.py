"""One generation as it is shown: text that appears as it comes, and when each token arrived."""

import time
from collections.abc import Callable, Iterator

import _common

from decode.generate import Completion, Request
from decode.load import ModelSource
from profiles.report.files import not_taken
from sharding.error_types import FloorlineError


class Run:
    """One generation: its completions, and the time at which each step's tokens arrived."""

    def __init__(self, source: ModelSource, request: Request, show: bool):
        self.source, self.request, self.show = source, request, show
        self.completions: list[Completion] = []
        self.first_seconds, self.first_tokens = 0.0, 0
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
        return [text_of(self.source, completion.tokens) for completion in self.completions]


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
                print(f"[{prompt}] {text_of(source, completion.tokens)}", flush=True)

    return as_it_comes if prompts == 1 else as_each_ends


def text_of(source: ModelSource, tokens: list[int]) -> str:
    """Text of tokens, or their ids if the model has no tokenizer."""
    if source.tokenizer is None:
        return " ".join(map(str, tokens))
    return source.tokenizer.decode(tokens)
