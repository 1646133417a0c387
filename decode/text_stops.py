"""Text of an answer as its tokens come, up to the first stop string."""

from collections.abc import Sequence

from decode.tokenizer import TextStream


class StoppedText:
    """Decodes tokens one at a time, and keeps back what could begin a stop string.

    The stop string that is complete first ends the text, whatever tokens its letters come in.

    Args:
      stream: decodes the tokens.
      stops: texts that end the answer; none of them is empty.

    Attributes:
      found: the stop string that has ended the text, if one has.
    """

    def __init__(self, stream: TextStream, stops: Sequence[str]):
        self.found: str | None = None
        self._stream, self._stops, self._kept = stream, stops, ""

    def push(self, token: int) -> str:
        """The text that is certain with this token; may be empty."""
        return self._certain(self._kept + self._stream.push(token))

    def flush(self) -> str:
        """The rest, when no token follows; a stop string may yet be in it."""
        certain = self._certain(self._kept + self._stream.flush())
        rest, self._kept = self._kept, ""
        return certain + rest

    def _certain(self, text: str) -> str:
        found = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            _, at, self.found = min(found)
            self._kept = ""
            return text[:at]
        longest = min(max(map(len, self._stops), default=1) - 1, len(text))
        begins = (n for n in range(longest, 0, -1) if self._begins_a_stop(text[len(text) - n :]))
        split = len(text) - next(begins, 0)
        self._kept = text[split:]
        return text[:split]

    def _begins_a_stop(self, text: str) -> bool:
        return any(stop.startswith(text) for stop in self._stops)
