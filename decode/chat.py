"""Chat templates: Jinja source that comes with a model, so it is run as untrusted code.

Names that a template may use are those of Hugging Face's `apply_chat_template`.
"""

import datetime
import json
import time
from collections.abc import Sequence
from typing import Any, ClassVar, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sharding.error_types import UsageError

MAX_CHARACTERS = 1_000_000
MAX_SECONDS = 5.0
MAX_INDENT = 100


class ChatError(UsageError):
    """Messages or a chat template that give no prompt."""


def render(template: str, messages: Sequence[dict[str, str]], **names: Any) -> str:
    """The prompt that a chat template makes of messages, up to the assistant's turn.

    Args:
      template: Jinja source.
      messages: each with a "role" and a "content".
      **names: further names for the template, such as `bos_token`.

    Raises:
      ChatError: messages without role or content, or a template that is wrong, refuses them, or
        exceeds `MAX_CHARACTERS` or `MAX_SECONDS`.
    """
    for message in messages:
        if not isinstance(message, dict) or not all(
            isinstance(message.get(key), str) for key in ("role", "content")
        ):
            raise ChatError(
                f"chat message is {message!r:.80}; give it a role and a content, as text"
            )
    environment = _Environment()
    names = {"tools": None, "documents": None, "add_generation_prompt": True, **names}
    parts: list[str] = []
    size = 0
    try:
        for part in environment.from_string(template).generate(messages=list(messages), **names):
            parts.append(part)
            if (size := size + len(part)) > MAX_CHARACTERS:
                raise TemplateError(f"more than {MAX_CHARACTERS} characters")
    except Exception as error:  # a template can raise anything that Python can
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ChatError(
            f"chat template is stopped by {reason!r}; "
            "change the messages, or give a plain prompt without a template"
        ) from None
    return "".join(parts)


def fault(template: str) -> str:
    """Why a text is no chat template, whatever the messages are; empty if it may be one."""
    if not template.strip():
        return "empty"
    try:
        _Environment().from_string(template)
    except (TemplateError, RecursionError) as error:
        return f"no Jinja ({' '.join(str(error).split()):.200})"
    return ""


class _Generation(Extension):
    """The tag ``generation``, which marks an answer for training and renders what is in it."""

    tags: ClassVar = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """What stands between the tag and its end."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return [nodes.Scope(body).set_lineno(line)]


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, which keeps a template from doing harm, with bounds on time and size."""

    intercepted_binops = frozenset({"*", "**"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", _Generation],
        )
        self._deadline = time.monotonic() + MAX_SECONDS
        self.filters["tojson"] = _to_json
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = lambda dtypes: datetime.datetime.now().strftime(dtypes)

    def check_time(self) -> None:
        """Called by the template itself: only inside it can an endless loop be noticed."""
        if time.monotonic() > self._deadline:
            raise TemplateError(f"more than {MAX_SECONDS:g} seconds")

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        # Jinja's hook before code generation: whatever can repeat checks the time as it begins.
        for node in source.find_all((nodes.For, nodes.Macro)):
            check = nodes.Call(nodes.EnvironmentAttribute("check_time"), [], [], None, None)
            node.body.insert(0, nodes.ExprStmt(check).set_lineno(node.lineno))
        source.set_environment(self)
        return super()._generate(source, *args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        sizes = [len(side) if hasattr(side, "__len__") else side for side in (left, right)]
        if operator == "**" or sizes[0] * sizes[1] > MAX_CHARACTERS:
            raise TemplateError(f"a product too large ({operator})")
        return super().call_binop(context, operator, left, right)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes for HTML.
    if isinstance(indent, int) and indent > MAX_INDENT:
        raise TemplateError(f"an indentation of more than {MAX_INDENT} spaces")
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
