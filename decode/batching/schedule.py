"""Which rows run what in the next step: the host's part of batching, without any device.

Everything follows from the requests and the order in which they came, nothing from a clock or from
chance. So each of several processes makes the same plans.
"""

import collections
import dataclasses
import itertools
from collections.abc import Iterator, Sequence

from decode.batching.answers import Answer, Row
from decode.batching.prefixes import BLOCK, Prefixes
from decode.batching.shape import TOGETHER, Shape


@dataclasses.dataclass(frozen=True)
class Piece:
    """Part of a prompt in one lane of a chunk.

    Attributes:
      answer: whose.
      source: the row that holds the tokens before it.
      first: how many these are.
      tokens: of the piece.
      ends: whether it is the prompt's last.
    """

    answer: Answer
    source: Row
    first: int
    tokens: Sequence[int]
    ends: bool

    def numbers(self) -> tuple[int, ...]:
        """Whose it is, where it runs, and which part of the prompt it is."""
        rows = self.answer.row.number, self.source.number
        return self.answer.ticket.number, *rows, self.first, len(self.tokens)


@dataclasses.dataclass(frozen=True)
class ChunkPlan:
    """One chunk: room for `size` tokens in each lane, and what is in it; None in an idle lane."""

    size: int
    pieces: list[Piece | None]

    @property
    def tokens(self) -> int:
        """Room for tokens in all lanes."""
        return self.size * len(self.pieces)

    @property
    def named(self) -> str:
        """Its room in words, with its lanes if there are several."""
        return f"{len(self.pieces)} x {self.size}" if len(self.pieces) > 1 else f"{self.size}"

    @property
    def full(self) -> list[Piece]:
        """What is in its lanes that are not idle."""
        return [piece for piece in self.pieces if piece]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a step launches.

    Attributes:
      exchanges: before all else rows change places, each time two of every group, or none of it.
      chunks: of prompts.
      decoding: answers that get a token then, each with its row.
      rows: of the decode step, the first of each group; 0 without one.
      context: tokens in the caches of `decoding` before that step, all together; with drafts, at
        most.
    """

    exchanges: list[Sequence[tuple[int, int] | None]]
    chunks: list[ChunkPlan]
    decoding: list[tuple[Answer, Row]]
    rows: int
    context: int

    def numbers(self) -> Iterator[int]:
        """All of it, but for what requests say: which programs run, and in which rows for whom."""
        yield self.rows
        for pairs in self.exchanges:
            yield from itertools.chain(*(pair or (-1, -1) for pair in pairs))
        for chunk in self.chunks:
            yield chunk.size
            for piece in chunk.pieces:
                yield from piece.numbers() if piece else (-1,)
        for answer, row in self.decoding:
            yield from (answer.ticket.number, row.number)


class Schedule:
    """Requests that wait, rows that run, and what each row holds.

    Attributes:
      decided: a number of all that steps were planned to run until now, and of all tokens that came
        of it. It is the same in every process that has done the same, and hardly in another.
    """

    def __init__(self, shape: Shape, shares_prefixes: bool = True):
        self.shape = shape
        self.rows = [Row(number) for number in range(shape.rows)]
        self.waiting: collections.deque[Answer] = collections.deque()
        self._prompts: list[Answer] = []  # admitted, with tokens left to run; in order of arrival
        self._prefixes = Prefixes() if shares_prefixes else None
        self._ended = itertools.count()
        self.decided = 0

    @property
    def running(self) -> int:
        """Answers that have a row."""
        return sum(row.busy for row in self.rows)

    def add(self, answer: Answer) -> None:
        """An answer waits from now on."""
        self.waiting.append(answer)

    def end(self, answer: Answer) -> None:
        """An answer ends before its limit; its row is free at once."""
        answer.ended = True
        if answer.row is None:
            self.waiting.remove(answer)
        elif answer.row.answer is answer and answer.row.busy:
            self._free(answer.row)
        if answer in self._prompts:
            self._prompts.remove(answer)

    def fail(self, answer: Answer) -> None:
        """An answer ends with numbers that are not finite; none starts from what its row holds."""
        self.end(answer)
        if answer.row.answer is answer:
            self._forget(answer.row)

    def run_again(self, answer: Answer) -> Answer:
        """An answer fails that began from a row, whose numbers may have been at fault.

        It was copied before those were read, perhaps.

        Returns:
          The answer in its place, the next to get a row, which runs its whole prompt.
        """
        self.fail(answer)
        self.waiting.appendleft(Answer(answer.ticket, answer.text, shares=False))
        return self.waiting[0]

    def learn(self, answer: Answer, token: int) -> None:
        """A token of an answer has arrived; the next step, if there is one, has written it."""
        self.decided = hash((self.decided, answer.ticket.number, token))
        row = answer.row
        if row.answer is answer:
            row.tokens.append(token)
            self._hold(row)

    def stood(self, answer: Answer, count: int) -> None:
        """So many tokens have come of a step that verified drafts, where one was counted on.

        The next step, if there is one, was launched, and begins with the newest of them.
        """
        row, answer.launched = answer.row, answer.launched + count - 1
        if row.answer is answer:
            row.written = min(len(row.tokens) + self.shape.drafted, answer.most)
            if row.busy and answer.launched >= answer.ticket.request.max_new_tokens:
                self._free(row)

    def plan(self) -> Plan:
        """The next step; rows are marked as its programs leave them."""
        chunks, left = [], self.shape.budget
        while chunk := self._next_chunk(left):
            chunks.append(chunk)
            left -= chunk.tokens
        exchanges = self._draw_together()
        decoding = [(row.answer, row) for row in self.rows if row.busy and not row.answer.left]
        last = max((self.shape.within_group(row.number)[1] for _, row in decoding), default=0)
        context = sum(row.written for _, row in decoding)
        for answer, row in decoding:
            row.written = min(row.written + 1 + self.shape.drafted, answer.most)
            self._launch(answer)
        rows = self.shape.step(last + 1) if decoding else 0
        plan = Plan(exchanges, chunks, decoding, rows, context)
        self.decided = hash((self.decided, *plan.numbers()))
        return plan

    def _draw_together(self) -> list[Sequence[tuple[int, int] | None]]:
        """Gives taken rows the first places of their groups, if fewer rows can decode for it.

        A free row that was there goes where the taken one was, with what it holds. Chunks of the
        same step are planned by rows, not by places, so they may come after what is done here.

        Returns:
          The exchanges, as in `Plan`.
        """
        if not self.shape.steps:
            return []
        groups = range(self.shape.groups)
        most = max(sum(row.busy for row in self.rows if self._group(row) == g) for g in groups)
        room = self.shape.step(most) // self.shape.groups
        return list(itertools.zip_longest(*(self._bring_within(room, group) for group in groups)))

    def _bring_within(self, room: int, group: int) -> list[tuple[int, int]]:
        """Exchanges that bring a group's taken rows among its first `room` places."""
        places = {row: self.shape.within_group(row.number)[1]
                  for row in self.rows if self._group(row) == group}  # fmt: skip
        outside = [row for row, place in places.items() if row.busy and place >= room]
        free = [row for row, place in places.items() if not row.busy and place < room]
        pairs = list(zip(outside, free, strict=False))
        numbers = [(row.number, other.number) for row, other in pairs]
        for row, other in pairs:
            row.number, other.number = other.number, row.number
        return numbers

    def _next_chunk(self, budget: int) -> ChunkPlan | None:
        """A chunk that fits a budget; it is not cut smaller for what ran before in this step."""
        several = self._fill_a_chunk_together(budget)
        lanes = self._lanes_of_prompts(TOGETHER if several else self.shape.lanes)
        longest = max([answer.left for answer in lanes if answer], default=0)
        waiting = self.waiting[0].left if self.waiting and self._open_groups(lanes) else 0
        if not (longest or waiting):
            return None
        # What a waiting prompt reuses is known only when it has a row; then it needs no more.
        least = self.shape.size(max(longest, waiting)) * self.shape.lanes
        if not several and least > budget < self.shape.budget:
            return None
        sources = self._admit_into(lanes)
        size = self.shape.together if several else self._size_of_chunk(lanes, budget)
        pieces = [answer and self._piece(answer, size, sources) for answer in lanes]
        for piece in filter(None, pieces):
            self._commit(piece)
        return ChunkPlan(size, pieces)

    def _size_of_chunk(self, lanes: Sequence[Answer | None], budget: int) -> int:
        longest = max(answer.left for answer in lanes if answer)
        room = max(size for size in self.shape.sizes if size * self.shape.lanes <= budget)
        return min(self.shape.size(longest), room)

    def _fill_a_chunk_together(self, budget: int) -> bool:
        """Whether the next prompts all end in a chunk of several, and fill three quarters of it.

        Longer ones go one after another, so that the first need not wait for the last, and so do
        those that begin alike: the later ones start from what the first has left in its row.
        """
        room = self.shape.together
        if not 0 < room * TOGETHER <= budget:
            return False
        waiting = itertools.islice(self.waiting, sum(not row.busy for row in self.rows))
        answers = list(itertools.islice(itertools.chain(self._prompts, waiting), TOGETHER))
        beginnings = {tuple(answer.ticket.request.prompt[:BLOCK]) for answer in answers}
        if self._prefixes and len(beginnings) < len(answers):
            return False
        tokens = [self._to_run(answer) for answer in answers]
        return max(tokens, default=0) <= room and 4 * sum(tokens) >= 3 * room * TOGETHER

    def _to_run(self, answer: Answer) -> int:
        """Tokens of its prompt that are left to run, without those that a row holds."""
        held = 0 if answer.row else self._best_source(answer, list(range(self.shape.groups)))[1]
        return answer.left - held

    def _lanes_of_prompts(self, count: int) -> list[Answer | None]:
        """Prompts that have begun, in so many lanes of their rows' groups; the earliest first."""
        lanes: list[Answer | None] = [None] * count
        for answer in self._prompts:
            lane = self._free_lane(lanes, self._group(answer.row))
            if lane is not None:
                lanes[lane] = answer
        return lanes

    def _free_lane(self, lanes: list[Answer | None], group: int) -> int | None:
        each = len(lanes) // self.shape.groups
        own = range(group * each, (group + 1) * each)
        return next((lane for lane in own if lanes[lane] is None), None)

    def _open_groups(self, lanes: list[Answer | None]) -> list[int]:
        """Groups that have a free row and a free lane for it."""
        rows = {self._group(row) for row in self.rows if not row.busy}
        return [group for group in sorted(rows) if self._free_lane(lanes, group) is not None]

    def _admit_into(self, lanes: list[Answer | None]) -> dict[Answer, Row]:
        """Gives rows to waiting answers, in their order; returns where each begins from."""
        sources = {}
        while self.waiting and (groups := self._open_groups(lanes)):
            answer = self.waiting.popleft()
            source, answer.reused, group = self._best_source(answer, groups)
            row = self._target(group, source, answer.reused)
            row.busy, answer.row, answer.ran = True, row, answer.reused
            sources[answer] = source or row
            lanes[self._free_lane(lanes, group)] = answer
            self._prompts.append(answer)
        return sources

    def _best_source(self, answer: Answer, groups: list[int]) -> tuple[Row | None, int, int]:
        """The row of these groups that holds most of the prompt, how much, and a group to run in.

        If none holds any, the group is that with most free rows.
        """
        prompt = answer.ticket.request.prompt
        seen: set[Row] = set()  # a row that is of no use is not looked at again for fewer blocks
        shares = self._prefixes and answer.shares
        for alike in self._prefixes.alike(prompt) if shares else ():
            rows = sorted(set(alike) - seen, key=lambda row: row.number)
            seen.update(rows)
            rows = [row for row in rows if self._group(row) in groups]
            keeps = self.shape.window, self.shape.whole, self.shape.uncertain
            found = [(row.reusable(prompt, *keeps), row) for row in rows]
            reused, best = max(found, key=lambda each: each[0], default=(0, None))
            if reused:
                return best, reused, self._group(best)
        return None, 0, max(groups, key=lambda group: len(self._free_rows(group)))

    def _target(self, group: int, source: Row | None, reused: int) -> Row:
        """The free row of a group to run in: the source if it holds little else, or the oldest.

        Where nothing starts from what a row holds, it is the first.
        """
        free = self._free_rows(group)
        if source in free and len(source.tokens) - reused < BLOCK:
            return source
        shares = self._prefixes is not None
        return min(free, key=lambda row: (row is source, shares and row.freed, row.number))

    def _piece(self, answer: Answer, size: int, sources: dict[Answer, Row]) -> Piece:
        first, tokens = answer.ran, answer.ticket.request.prompt[answer.ran : answer.ran + size]
        ends = len(tokens) == answer.left
        return Piece(answer, sources.get(answer, answer.row), first, tokens, ends)

    def _commit(self, piece: Piece) -> None:
        """Marks what the piece's program leaves in its row."""
        answer, row = piece.answer, piece.answer.row
        if row.answer is not answer:
            self._forget(row)
            row.answer, row.tokens = answer, list(answer.ticket.request.prompt[: answer.reused])
        row.tokens += piece.tokens
        row.written, row.first = len(row.tokens), piece.first
        self._hold(row)
        answer.ran += len(piece.tokens)
        if piece.ends:
            self._prompts.remove(answer)
            self._launch(answer)

    def _launch(self, answer: Answer) -> None:
        answer.launched += 1
        if answer.launched == answer.ticket.request.max_new_tokens:
            self._free(answer.row)

    def _free(self, row: Row) -> None:
        row.busy, row.freed = False, next(self._ended)

    def _forget(self, row: Row) -> None:
        row.tokens, row.written, row.first, row.freed = [], 0, 0, -1
        if self._prefixes:
            self._prefixes.forget(row)

    def _hold(self, row: Row) -> None:
        if self._prefixes:
            self._prefixes.hold(row, row.tokens)

    def _group(self, row: Row) -> int:
        return self.shape.within_group(row.number)[0]

    def _free_rows(self, group: int) -> list[Row]:
        return [row for row in self.rows if not row.busy and self._group(row) == group]
