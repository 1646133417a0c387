"""Requests on their way, and the rows of the cache that they run in, as the host knows both."""

import dataclasses
from collections.abc import Sequence

from decode.batching.events import Ticket
from decode.batching.prefixes import BLOCK, alike_tokens
from decode.text_stops import StoppedText


@dataclasses.dataclass(eq=False)
class Row:
    """A row of the cache, and what it holds; its contents stay when its answer has ended.

    Attributes:
      number: its place in the cache, which an exchange with another row changes.
      tokens: those at positions from 0 on, as far as the host knows them.
      written: positions that the programs launched so far have written, at most: one more than
        known ones where a token is not read yet, and more where drafts may have been refused.
      first: position of the first token of its newest chunk: that took over of those before what a
        token there sees, and no others.
      answer: whose tokens they are.
      busy: whether that answer still runs.
      freed: when it ended, in answers ended before; -1 for a row that holds nothing.
    """

    number: int
    tokens: list[int] = dataclasses.field(default_factory=list)
    written: int = 0
    first: int = 0
    answer: "Answer | None" = None
    busy: bool = False
    freed: int = -1

    def reusable(
        self, prompt: Sequence[int], window: int | None, whole: bool = False, uncertain: int = 0
    ) -> int:
        """How many of the prompt's first tokens need not run after a copy of this row.

        One is left to run at least. A window's ring forgets: of a row that is longer, only what
        goes on at its end is there, or `uncertain` positions before it, for which there are slots.
        What the row's last chunk did not see is not there.
        Of a state nothing can be taken back: with `whole`, the prompt goes on where the row ends,
        or nothing in it is of use.
        """
        if whole and self.written > min(len(self.tokens), len(prompt) - 1):
            return 0
        known = min(len(self.tokens), self.written, len(prompt) - 1)
        end = max(self.written - 1 - uncertain, self.first)
        forgets = window and end >= window
        if forgets and known < end:
            return 0
        alike = alike_tokens(prompt, self.tokens, known)
        if forgets and alike < end:
            return 0
        if whole and alike < self.written:
            return 0
        return alike if alike >= BLOCK else 0


@dataclasses.dataclass(eq=False)
class Answer:
    """A request on its way.

    Attributes:
      ticket: names it.
      text: decodes its tokens, where there is a tokenizer.
      row: where it runs or ran; None while it waits.
      ran: tokens of the prompt that were launched or reused.
      reused: those of them that a row held.
      launched: tokens of the answer that programs were launched for, at least.
      generated: those that have arrived.
      ended: whether its last event has been told; what still arrives is dropped.
      shares: whether it may start from what a row holds.
    """

    ticket: Ticket
    text: StoppedText | None = None
    row: Row | None = None
    ran: int = 0
    reused: int = 0
    launched: int = 0
    generated: int = 0
    ended: bool = False
    shares: bool = True

    @property
    def left(self) -> int:
        """Tokens of the prompt that are still to run."""
        return len(self.ticket.request.prompt) - self.ran

    @property
    def most(self) -> int:
        """Positions that it writes at most: those of all its tokens but the last."""
        return len(self.ticket.request.prompt) + self.ticket.request.max_new_tokens - 1
