"""Flags of scripts whose steps verify drafts, and the memory that such steps take beside others."""

from typing import TYPE_CHECKING, TypedDict

import _common
from absl import flags

if TYPE_CHECKING:
    from model.config import ModelConfig

NGRAM = "ngram"
"""The draft that needs no model."""
_TOKENS = flags.DEFINE_integer(
    "draft_tokens", 4, "With --draft: tokens that a step verifies beside the newest.", 1, 64
)


class Room(TypedDict):
    """What steps that verify drafts need room for, as `need_of` takes it."""

    tokens: int
    spare: int


def define(models: bool = False) -> flags.FlagHolder[str | None]:
    """Defines ``--draft``.

    Args:
      models: whether a draft may be another model, too; else it is ngram alone.
    """
    about = "Speculative decoding, exact: ngram proposes what followed in the same text before"
    verified = "one step verifies several tokens of every text."
    if not models:
        return flags.DEFINE_enum("draft", None, [NGRAM], f"{about}, and {verified}")
    return flags.DEFINE(
        _common.PATH,
        "draft",
        None,
        f"{about}, and a model of the same vocabulary, named as for --model, what it says; "
        f"{verified} Tokens per step and the floor of such a step are printed.",
    )


def draft_tokens() -> int:
    """Tokens of a draft that a step verifies; 0 without ``--draft``."""
    return _TOKENS.value if flags.FLAGS.draft else 0


def check_tokens() -> None:
    """Refuses a number of tokens without drafts."""
    if not flags.FLAGS.draft:
        _common.refuse(["draft_tokens"], "--draft is not")


def check(config: "ModelConfig") -> None:
    """Refuses drafts that cannot be, before anything is loaded.

    Raises:
      UsageError: a number of tokens without drafts, or a model that takes none.
    """
    from decode.drafts import check_takes_back  # imports JAX, which --help need not wait for

    check_tokens()
    if flags.FLAGS.draft:
        check_takes_back(config)


def room() -> Room:
    """What the steps of a running batch need room for."""
    from decode.batching.shape import spare_slots

    return Room(tokens=draft_tokens() + 1, spare=spare_slots(draft_tokens()))
