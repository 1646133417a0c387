"""Decode steps that verify drafts: several tokens of each row in one program, exactly.

A draft is what followed where a row's newest tokens stood before, in its prompt or its answer
(`decode.drafts.repeated`). The step that looks it up runs it behind the newest token, chooses a
token at each place by the row's own draws, and counts what stands (`decode.speculation`). Text and
counts stay on the devices, so that the next step is launched before the host has seen either.
"""

import jax
import jax.numpy as jnp
import numpy as np

from decode.batching.programs import Chosen, Programs, Rows, RowText
from decode.batching.row_sampling import RowSampling
from decode.batching.shape import Shape
from decode.drafts import repeated
from decode.engine import Engine
from decode.speculation import as_rows, put_behind, score, standing


def programs_of(engine: Engine, shape: Shape, top_logprobs: int) -> Programs:
    """The programs of an engine for this shape: with drafts if it has any."""
    if shape.drafted:
        return DraftingPrograms(engine, shape, top_logprobs)
    return Programs(engine, top_logprobs)


class DraftingPrograms(Programs):
    """Programs whose decode steps verify `shape.drafted` tokens of each row beside the newest.

    A row that has all its tokens is written nowhere, though the host may still count it as active:
    it learns of a step's tokens when the next one is launched.
    """

    def __init__(self, engine: Engine, shape: Shape, top_logprobs: int = 0):
        super().__init__(engine, top_logprobs)
        self._shape = shape

    def empty_rows(self, rows: int) -> Rows:
        """So many rows, in which nothing runs."""
        text = RowText(np.zeros((rows, self._shape.context), np.int32), np.zeros(rows, np.int32))
        return super().empty_rows(rows)._replace(text=self.put(text))

    def _join_step(self, rows, logits, joining):
        text, new = rows.text, joining.text
        rows, chosen = super()._join_step(
            rows._replace(text=None), logits, joining._replace(text=None)
        )
        tokens = put_behind(new.tokens, joining.lengths - 1, chosen.tokens[:, None])
        put = lambda old, new: old.at[joining.rows].set(new, mode="drop")  # noqa: E731
        return rows._replace(text=jax.tree.map(put, text, new._replace(tokens=tokens))), chosen

    def _decode_step(self, parameters, cache, rows, active):
        some = jax.tree.map(lambda each: self._first(each, len(active)), rows)
        lengths, left = some.lengths, jnp.where(active, some.text.left, 0)
        with jax.named_scope("verify_step"):
            drafts = repeated(some.text.tokens, lengths, self._shape.drafted)  # [n, T - 1]
            tokens = jnp.concatenate([some.tokens[:, None], drafts], axis=1)  # [n, T]
            logits, cache = score(self.engine, parameters, cache, tokens, lengths, left)
            chosen = self._choose_each(logits, some.sampling.where(left > 0), some.index)
            count = standing(chosen.tokens, drafts, left)
            after = _after(some, chosen.tokens, count)
        return cache, jax.tree.map(self._put_first, rows, after), chosen._replace(count=count)

    def _choose_each(self, logits: jax.Array, sampling: RowSampling, index: jax.Array) -> Chosen:
        """Tokens of n rows at T places, from logits [n, T, V]; `index` [n] is the first place's."""
        rows, places, _ = logits.shape
        each = jax.tree.map(lambda value: jnp.repeat(value, places, axis=0), sampling)
        index = (index[:, None] + jnp.arange(places, dtype=jnp.int32)).reshape(-1)
        chosen = self._choose(as_rows(logits), each, index)  # of n * T rows
        return jax.tree.map(lambda each: each.reshape(rows, places, *each.shape[1:]), chosen)


def _after(rows: Rows, chosen: jax.Array, count: jax.Array) -> Rows:
    """Rows with the first `count` [n] of chosen tokens [n, T] behind their newest ones."""
    tokens, lengths = put_behind(rows.text.tokens, rows.lengths, chosen), rows.lengths + count
    return rows._replace(
        tokens=jnp.take_along_axis(tokens, lengths[:, None], axis=1)[:, 0],
        lengths=lengths,
        index=rows.index + count,
        text=RowText(tokens, rows.text.left - count),
    )
