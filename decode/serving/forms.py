"""Answers as OpenAI's interface writes them: whole, in chunks, with log probabilities and usage."""

import dataclasses
import json
import secrets
import time
from typing import Any

from decode.batching.events import Event, Finished, Token
from decode.serving.asked import Asked, Served
from decode.serving.errors import ApiError
from decode.tokenizer import TextStream

_LEAST = -9999.0
"""Stands for a log probability of minus infinity, which JSON cannot hold."""


def encoded(value: Any) -> bytes:
    """A value as JSON; halves of characters, which have no UTF-8, are escaped."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode(errors="backslashreplace")


@dataclasses.dataclass
class Part:
    """What has come of one answer and is not told yet.

    Attributes:
      text: that is certain.
      tokens: of it, and of what is kept back.
      finished: the answer's end, if it is there.
      stream: decodes the tokens once more, for their places in the text; None without a tokenizer.
      offsets: for each token the characters of the answer's tokens before it.
      decoded: characters of all tokens so far.
      length: those of the text so far.
    """

    text: str = ""
    tokens: list[Token] = dataclasses.field(default_factory=list)
    finished: Finished | None = None
    stream: TextStream | None = None
    offsets: list[int] = dataclasses.field(default_factory=list)
    decoded: int = 0
    length: int = 0

    def add(self, token: Token) -> None:
        """One more token."""
        self.tokens.append(token)
        self.offsets.append(self.decoded)
        self.decoded += len(self.stream.push(token.token) if self.stream else token.text)

    def reset(self) -> None:
        """All is told."""
        self.text, self.tokens, self.offsets = "", [], []


class Form:
    """Writes the answers to one HTTP request.

    Args:
      asked: the request.
      served: the model.
    """

    def __init__(self, asked: Asked, served: Served):
        self._asked, self._served = asked, served
        stream = served.tokenizer.stream if served.tokenizer else lambda: None
        self.parts = [Part(stream=stream()) for _ in asked.requests]
        self._roles: set[int] = set()  # answers of a chat whose role is told
        self._common = {
            "id": f"{'chatcmpl' if asked.chat else 'cmpl'}-{secrets.token_hex(12)}",
            "object": "chat.completion" if asked.chat else "text_completion",
            "created": int(time.time()),
            "model": served.name,
        }
        if asked.chat and asked.stream:
            self._common["object"] += ".chunk"

    def add(self, number: int, event: Event) -> None:
        """Takes an event of one answer.

        Raises:
          ApiError: the answer has failed.
        """
        part = self.parts[number]
        if isinstance(event, Token):
            if self._served.tokenizer is None:
                event = dataclasses.replace(event, text=self._served.text(event.token))
            part.add(event)
        else:
            part.finished = event
        part.text += event.text
        part.length += len(event.text)
        if isinstance(event, Token):
            return
        if event.reason not in ("stop", "length"):
            why = event.message or "it was cancelled"
            raise ApiError(f"answer {number} is failing: {why}", status=500)

    def whole(self) -> dict[str, Any]:
        """All answers, complete."""
        choices = [self._choice(number) for number in range(len(self.parts))]
        return {**self._common, "choices": choices, "usage": self._usage()}

    def chunks(self, number: int) -> list[dict[str, Any]]:
        """What is to be told of an answer now: none while its text is not certain."""
        part, chunks = self.parts[number], []
        if self._asked.chat and number not in self._roles:
            self._roles.add(number)
            delta = {"role": "assistant", "content": ""}
            chunks.append({"index": number, "delta": delta, "finish_reason": None})
        if part.text or part.finished:
            chunks.append(self._choice(number))
            part.reset()
        usage = {"usage": None} if self._asked.usage else {}
        return [{**self._common, "choices": [chunk], **usage} for chunk in chunks]

    def last(self) -> list[dict[str, Any]]:
        """What comes when every answer has ended: the usage, where it is asked for."""
        if not self._asked.usage:
            return []
        return [{**self._common, "choices": [], "usage": self._usage()}]

    def _choice(self, number: int) -> dict[str, Any]:
        part, asked = self.parts[number], self._asked
        if not asked.chat:
            content = {"text": part.text}
        elif asked.stream:
            content = {"delta": {"content": part.text} if part.text else {}}
        else:
            message = {"role": "assistant", "content": part.text, "refusal": None}
            content = {"message": message}
        told = self._chat_logprobs if asked.chat else self._logprobs
        logprobs = told(part) if asked.logprobs else None
        ids = {"token_ids": [each.token for each in part.tokens]} if asked.token_ids else {}
        reason = part.finished and part.finished.reason
        return {"index": number, **content, "logprobs": logprobs, "finish_reason": reason, **ids}

    def _logprobs(self, part: Part) -> dict[str, list]:
        """The form of completions: a list of each kind.

        Tokens are told by their names, since others' alternatives of the same text would be lost.
        What a stop string has cut off lies at the end of the text.
        """
        name = self._served.token_name
        most = part.length if part.finished else part.decoded
        return {
            "tokens": [name(each.token) for each in part.tokens],
            "token_logprobs": [each.logprob for each in part.tokens],
            "top_logprobs": [self._named(each) for each in part.tokens],
            "text_offset": [min(offset, most) for offset in part.offsets],
        }

    def _named(self, token: Token) -> dict[str, float]:
        """Alternatives by their names; of those of one name the most likely counts."""
        named: dict[str, float] = {}
        for other, logprob in _alternatives(token):
            named.setdefault(self._served.token_name(other), max(logprob, _LEAST))
        return named

    def _chat_logprobs(self, part: Part) -> dict[str, list]:
        """The form of chats: an object for each token."""
        return {
            "content": [
                {
                    **self._scored(each.token, each.logprob),
                    "top_logprobs": [self._scored(*scored) for scored in _alternatives(each)],
                }
                for each in part.tokens
            ],
            "refusal": None,
        }

    def _scored(self, token: int, logprob: float) -> dict[str, Any]:
        text, data = self._served.text(token), self._served.bytes(token)
        return {"token": text, "logprob": max(logprob, _LEAST), "bytes": data}

    def _usage(self) -> dict[str, Any]:
        """Tokens of all answers, and of each prompt once."""
        ends = [part.finished for part in self.parts]
        firsts = ends[:: self._asked.each]
        prompt = sum(end.prompt_tokens for end in firsts)
        answer = sum(end.generated_tokens for end in ends)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": answer,
            "total_tokens": prompt + answer,
            "prompt_tokens_details": {"cached_tokens": sum(end.reused_tokens for end in firsts)},
        }


def _alternatives(token: Token) -> list[tuple[int, float]]:
    """Alternatives to a token; if it is among them, with the log probability that it is told."""
    return [(t, token.logprob if t == token.token else p) for t, p in token.alternatives]
