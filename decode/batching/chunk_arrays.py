"""A chunk that is planned, as the arrays that programs take."""

from collections.abc import Sequence

import numpy as np

from decode.batching.programs import Joining, Lanes, RowText
from decode.batching.request import Request
from decode.batching.row_sampling import RowSampling
from decode.batching.schedule import ChunkPlan
from decode.batching.shape import Shape


def lanes_of(chunk: ChunkPlan, shape: Shape) -> Lanes:
    """What a chunk runs.

    An idle lane takes a row that no other lane writes to, and leaves it as it is.
    """
    count = len(chunk.pieces)
    rows, each = shape.rows // shape.groups, count // shape.groups
    zeros = np.zeros(count, np.int32)
    lanes = Lanes(np.zeros((count, chunk.size), np.int32), *(zeros.copy() for _ in "1234"))
    targets = [piece and piece.answer.row.number for piece in chunk.pieces]
    for lane, piece in enumerate(chunk.pieces):
        if piece:
            source, target = piece.source.number % rows, piece.answer.row.number % rows
            lanes.tokens[lane, : len(piece.tokens)] = piece.tokens
            numbers = piece.first, len(piece.tokens), source, target
        else:
            own = range(lane // each * rows, (lane // each + 1) * rows)
            targets[lane] = next(row for row in own if row not in targets)
            numbers = 0, 0, targets[lane] % rows, targets[lane] % rows
        for array, number in zip(lanes[1:], numbers, strict=True):
            array[lane] = number
    return lanes


def joining_of(chunk: ChunkPlan, shape: Shape) -> Joining:
    """Where the prompts that end in a chunk go on."""
    ends = [piece if piece and piece.ends else None for piece in chunk.pieces]
    rows = [piece.answer.row.number if piece else shape.rows for piece in ends]  # or past the last
    lengths = [piece.first + len(piece.tokens) if piece else 0 for piece in ends]
    requests = [piece and piece.answer.ticket.request for piece in ends]
    numbers = np.array(rows, np.int32), np.array(lengths, np.int32)
    text = _text_of(requests, shape.context) if shape.drafted else None
    return Joining(*numbers, RowSampling.of(requests), text)


def _text_of(requests: Sequence[Request | None], room: int) -> RowText:
    """Prompts of m lanes in arrays of so many tokens; behind each stands its first token, to be."""
    tokens = np.zeros((len(requests), room), np.int32)
    for lane, request in enumerate(requests):
        if request:
            tokens[lane, : len(request.prompt)] = request.prompt
    left = [request.max_new_tokens - 1 if request else 0 for request in requests]
    return RowText(tokens, np.array(left, np.int32))
