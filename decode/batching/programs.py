"""The compiled programs of a batching engine: chunks and decode steps of some sizes, and two more.

They take a request's numbers as arrays, so that no request needs a program of its own, and hand
tokens to each other on the devices.
"""

import copy
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from decode.batching.cache_rows import exchange_rows, put_rows, take_rows
from decode.batching.row_sampling import RowSampling
from decode.compiler_options import decode_options, prefill_options
from decode.engine import Engine
from decode.sampling import likeliest
from model.cache import PADDING, KVCache
from model.cache_write import NewTokens


class RowText(NamedTuple):
    """What drafts of B rows are made from, and how many of their tokens may stand.

    Attributes:
      tokens: [B, H] int32, prompt and answer, each token at its position; what follows is anything.
      left: [B] int32, tokens still to generate.
    """

    tokens: jax.Array
    left: jax.Array


class Rows(NamedTuple):
    """What steps hand to each other beside the cache, of each of B rows; it stays on devices.

    Attributes:
      tokens: [B] int32, the newest token, not yet in the cache.
      lengths: [B] int32, tokens in the cache.
      index: [B] int32, tokens generated.
      sampling: how the next token is chosen.
      text: what drafts need; None without them.
    """

    tokens: jax.Array
    lengths: jax.Array
    index: jax.Array
    sampling: RowSampling
    text: RowText | None = None


class Chosen(NamedTuple):
    """Tokens of a program's rows; of a step that verifies drafts, several of each.

    Attributes:
      tokens: [B] int32; or [B, T], those that stand first.
      logprobs: [B] or [B, T] float32, under the model's own distribution.
      top_tokens: [B, n] or [B, T, n] int32, the most likely ones, the most likely first; n may be
        0.
      top_logprobs: the same in float32.
      count: [B] int32, how many of T tokens stand; None where there is one.
    """

    tokens: jax.Array
    logprobs: jax.Array
    top_tokens: jax.Array
    top_logprobs: jax.Array
    count: jax.Array | None = None


class Lanes(NamedTuple):
    """What a chunk runs, a prompt in each of m lanes.

    Attributes:
      tokens: [m, T] int32.
      first: [m] int32, tokens of the prompt before them.
      count: [m] int32, real ones; 0 in an idle lane.
      source: [m] int32, the row among those of its devices that holds the tokens before.
      target: [m] int32, the row that holds them all then; no two lanes of a device have the same.
    """

    tokens: jax.Array
    first: jax.Array
    count: jax.Array
    source: jax.Array
    target: jax.Array


class Joining(NamedTuple):
    """Prompts whose first token is chosen, in each of m lanes.

    Attributes:
      rows: [m] int32, where they go on; B, past the last, of a lane without any.
      lengths: [m] int32, tokens of the prompts.
      sampling: how their tokens are chosen.
      text: the prompts, and how many tokens may follow the first; None without drafts.
    """

    rows: jax.Array
    lengths: jax.Array
    sampling: RowSampling
    text: RowText | None = None


class Programs:
    """The programs of one engine; those that take the cache reuse its memory.

    Args:
      engine: the model.
      top_logprobs: alternatives that are told of each token.
    """

    def __init__(self, engine: Engine, top_logprobs: int = 0):
        self.engine, self._alternatives = engine, top_logprobs
        compiled, cache = functools.partial(jax.jit, donate_argnames="cache"), engine.cache_formats
        self._chunk = compiled(
            self._chunk_step,
            out_shardings=(None, cache),
            compiler_options=prefill_options(engine.mesh),
        )
        self._decode = compiled(
            self._decode_step,
            out_shardings=(cache, None, None),
            compiler_options=decode_options(engine.mesh, engine.dtypes),
        )
        self._exchange = compiled(self._exchange_step, out_shardings=(cache, None))
        self._join = jax.jit(self._join_step)
        self._use = lambda program, *arguments: program(*arguments)

    @property
    def lowered(self) -> "Programs":
        """The same, but each method gives its program, `jax.stages.Lowered`, and does not run it.

        What is compiled of it is found by the method that runs.
        """
        twin = copy.copy(self)
        twin._use = lambda program, *arguments: program.lower(*arguments)
        return twin

    @property
    def compiled(self) -> int:
        """Programs compiled so far."""
        programs = self._chunk, self._decode, self._exchange, self._join
        return sum(each._cache_size() for each in programs)

    def empty_rows(self, rows: int) -> Rows:
        """So many rows, in which nothing runs."""
        zeros = np.zeros(rows, np.int32)
        return self.put(Rows(zeros, zeros, zeros, RowSampling.of([None] * rows)))

    def put(self, values):
        """A tree of small host arrays, complete on every device."""
        return jax.tree.map(self.engine.put, values)

    def chunk(self, cache: KVCache, lanes: Lanes) -> tuple[jax.Array, KVCache]:
        """Runs parts of prompts: logits after each lane's last token, [m, V], and the cache.

        Rows are copied from their sources as they are read, so that a prompt that begins like
        another starts from what that has left.
        """
        with jax.set_mesh(self.engine.mesh):
            return self._use(self._chunk, self.engine.parameters, cache, self.put(lanes))

    def join(self, rows: Rows, logits: jax.Array, joining: Joining) -> tuple[Rows, Chosen]:
        """Chooses first tokens from a chunk's logits [m, V], and puts them among the rows."""
        with jax.set_mesh(self.engine.mesh):
            return self._use(self._join, rows, logits, self.put(joining))

    def decode(self, cache: KVCache, rows: Rows, active: jax.Array) -> tuple[KVCache, Rows, Chosen]:
        """One token more for the rows of `active`, [n] bool; others are as if they were not.

        The step runs n rows, the first of each group of those that the layout puts together; what
        is chosen is theirs, in this order.
        """
        with jax.set_mesh(self.engine.mesh):
            return self._use(self._decode, self.engine.parameters, cache, rows, active)

    def exchange(self, cache: KVCache, rows: Rows, places: np.ndarray) -> tuple[KVCache, Rows]:
        """Two rows of every group change places, with all that they hold.

        Args:
          cache: of B sequences.
          rows: of the same.
          places: [2 G] int32, two of each of G groups, each counted from its group's first.
        """
        with jax.set_mesh(self.engine.mesh):
            return self._use(self._exchange, cache, rows, self.put(places))

    def _chunk_step(self, parameters, cache, lanes):
        engine = self.engine
        new = NewTokens(lanes.first, lanes.count)
        part = take_rows(cache, lanes.source, new, engine.placement, engine.config)
        logits, part = engine._prefill_step(parameters, part, lanes.tokens, new, continues=True)
        return logits, put_rows(cache, part, lanes.target, engine.placement, engine.config)

    def _join_step(self, rows, logits, joining):
        chosen = self._choose(logits, joining.sampling, jnp.zeros_like(joining.lengths))
        new = Rows(chosen.tokens, joining.lengths, jnp.ones_like(joining.lengths), joining.sampling)
        put = lambda old, new: old.at[joining.rows].set(new, mode="drop")  # noqa: E731
        return jax.tree.map(put, rows, new), chosen

    def _decode_step(self, parameters, cache, rows, active):
        some = jax.tree.map(lambda each: self._first(each, len(active)), rows)
        lengths = jnp.where(active, some.lengths, PADDING)
        logits, cache, _ = self.engine._decode_step(parameters, cache, some.tokens, lengths)
        chosen = self._choose(logits, some.sampling.where(active), some.index)
        more = active.astype(jnp.int32)
        rows = rows._replace(
            tokens=self._put_first(rows.tokens, jnp.where(active, chosen.tokens, some.tokens)),
            lengths=self._put_first(rows.lengths, some.lengths + more),
            index=self._put_first(rows.index, some.index + more),
        )
        return cache, rows, chosen

    def _exchange_step(self, cache, rows, places):
        others = places.reshape(-1, 2)[:, ::-1].reshape(-1)
        cache = exchange_rows(cache, places, others, self.engine.placement, self.engine.config)
        each = len(rows.tokens) // self._groups
        begin = np.repeat(np.arange(self._groups, dtype=np.int32) * each, 2)
        put = lambda array: array.at[begin + places].set(array[begin + others])  # noqa: E731
        return cache, jax.tree.map(put, rows)

    @property
    def _groups(self) -> int:
        """Parts of the rows, each on devices of its own."""
        return self.engine.placement.parts(("cache", "B"))

    def _first(self, array: jax.Array, count: int) -> jax.Array:
        """So many of B numbers, or of B rows of them, the first of each group."""
        groups = array.reshape(self._groups, -1, *array.shape[1:])
        return groups[:, : count // self._groups].reshape(count, *array.shape[1:])

    def _put_first(self, array: jax.Array, some: jax.Array) -> jax.Array:
        """All of B with those of `_first` in their places."""
        some, groups = (a.reshape(self._groups, -1, *a.shape[1:]) for a in (some, array))
        return groups.at[:, : some.shape[1]].set(some).reshape(array.shape)

    def _choose(self, logits: jax.Array, sampling: RowSampling, index: jax.Array) -> Chosen:
        """Tokens, with alternatives where any row asks for them; they cost no other step time."""
        tokens, logprobs = sampling.choose(logits, index)
        shape = len(tokens), self._alternatives
        none = jnp.zeros(shape, jnp.int32), jnp.zeros(shape)
        if not self._alternatives:
            return Chosen(tokens, logprobs, *none)
        with jax.named_scope("alternatives"):
            top = jax.lax.cond(
                jnp.any(sampling.alternatives),
                lambda: likeliest(logits, self._alternatives),
                lambda: none,
            )
            return Chosen(tokens, logprobs, *top)
