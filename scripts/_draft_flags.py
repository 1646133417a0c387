"""Flags of scripts whose running batch verifies drafts."""

from typing import TYPE_CHECKING

import _common
from absl import flags

if TYPE_CHECKING:
    from model.config import ModelConfig

DRAFT = flags.DEFINE_enum(
    "draft",
    None,
    ["ngram"],
    "Speculative decoding, exact: ngram proposes what followed in each request's text before, and "
    "one step verifies several tokens of every request.",
)
DRAFT_TOKENS = flags.DEFINE_integer(
    "draft_tokens", 4, "With --draft: tokens that a step verifies beside the newest.", 1, 64
)


def draft_tokens() -> int:
    """Tokens of a draft that a step verifies; 0 without ``--draft``."""
    return DRAFT_TOKENS.value if DRAFT.value else 0


def check(config: "ModelConfig") -> None:
    """Refuses drafts that cannot be, before anything is loaded.

    Raises:
      UsageError: a number of tokens without drafts, or a model that takes none.
    """
    from decode.drafts import check_takes_back  # imports JAX, which --help need not wait for

    if DRAFT.value:
        check_takes_back(config)
    else:
        _common.refuse(["draft_tokens"], "--draft is not")
