"""Whether sequences are within the longest that a model goes to."""

from sharding.error_types import UsageError


def check_length(model: object, name: str, value: int, more: int = 0) -> None:
    """Refuses sequences that are longer than a model's longest.

    Args:
      model: has `max_context`; without that attribute, any length is allowed.
      name: the flag or field that gives the length, such as ``--context``.
      value: its number of tokens.
      more: additional tokens: a decode step's new one, or those before a prompt.

    Raises:
      UsageError: the sequences are too long.
    """
    longest = getattr(model, "max_context", None)
    if longest is None or value + more <= longest:
        return
    beside = f" and {more:,} more token{'s' * (more > 1)}" if more else ""
    room = f"at most {longest - more:,}" if longest > more else "fewer of both"
    raise UsageError(
        f"{name} is {value:,}{beside}, beyond the {longest:,} tokens that {model.name} goes to; "
        f"use {room}, or --max_context={value + more} to go beyond on purpose"
    )


def check_lengths(model: object, prompt: int, answer: int) -> None:
    """Refuses prompts and answers that together are longer than a model's longest sequence.

    Args:
      model: has `max_context`; without that attribute, any length is allowed.
      prompt: tokens of a prompt, by ``--prompt_length``.
      answer: tokens of its answer, by ``--generated_tokens``.

    Raises:
      UsageError: they are too long; the message names the longer of the two.
    """
    if answer > prompt:
        check_length(model, "--generated_tokens", answer, prompt)
    check_length(model, "--prompt_length", prompt, answer)
