"""Messages of a chat, as OpenAI's interface has them, in the form that chat templates take."""

from typing import Any

from decode.serving.errors import ApiError, shown
from decode.serving.fields import Fields

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
"""Roles of messages, with the name that chat templates have for each."""


def read_messages(given: Any) -> list[dict[str, str]]:
    """Messages with a role and a content, the parts of a content joined by line breaks.

    Raises:
      ApiError: no messages, or one with a role or content that is not supported.
    """
    if not isinstance(given, list) or not given:
        raise ApiError(
            f"messages is {shown(given)}; give a list of one message at least", param="messages"
        )
    return [_message(each, f"messages[{number}]") for number, each in enumerate(given)]


def _message(given: Any, name: str) -> dict[str, str]:
    if not isinstance(given, dict):
        raise ApiError(f"{name} is {shown(given)}; give an object", param=name)
    fields = Fields(given, name)
    role = fields.take("role")
    if not isinstance(role, str) or role not in _ROLES:
        fields.refuse("role", role, f"give one of {', '.join(_ROLES)}")
    content = fields.take("content")
    if isinstance(content, list) and content:
        parts = (_part(part, f"{name}.content[{n}]") for n, part in enumerate(content))
        content = "\n".join(parts)
    if not isinstance(content, str):
        fields.refuse("content", content, "give text, or a list of parts of type text")
    fields.text("name")  # no template tells speakers of one role apart
    fields.end()
    return {"role": _ROLES[role], "content": content}


def _part(given: Any, name: str) -> str:
    if not isinstance(given, dict):
        raise ApiError(f"{name} is {shown(given)}; give an object", param=name)
    fields = Fields(given, name)
    kind = fields.take("type")
    if kind != "text":
        fields.refuse("type", kind, "parts of type text alone are supported")
    text = fields.text("text")
    if text is None:
        fields.refuse("text", text, "give text")
    return text
