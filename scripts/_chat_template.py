"""The flag --chat_template, and the model whose chats take the template that it names."""

import dataclasses
from typing import TYPE_CHECKING

import _common
from absl import flags

with _common.importing():
    from sharding.error_types import UsageError

if TYPE_CHECKING:
    from decode.load import ModelSource

CHAT_TEMPLATE = flags.DEFINE(
    _common.PATH,
    "chat_template",
    None,
    "Template of chats in place of the model's default: the name of another one of its templates, "
    "or a file with one.",
)


def with_template(source: "ModelSource") -> "ModelSource":
    """The model, whose chats take the template that the flag names, if it names one.

    Raises:
      UsageError: the model has no tokenizer, or there is neither a template nor a file so named.
    """
    if CHAT_TEMPLATE.value is None:
        return source
    if source.tokenizer is None:
        why, remedies = source.without_tokenizer()
        raise UsageError(
            f"--chat_template is {CHAT_TEMPLATE.value!r:.60}, but {why}; "
            + ", or ".join([*remedies, "leave it out"])
        )
    chosen = source.tokenizer.with_template(CHAT_TEMPLATE.value)
    return dataclasses.replace(source, tokenizer=chosen)
