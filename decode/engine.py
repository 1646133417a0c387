"""A model on a mesh: its parameters and the compiled steps that run it.

`prefill` runs prompts, chunk by chunk, and fills the KV cache. `advance` is the decode step: it
runs one token per sequence and chooses the next. What `lower_decode` gives to be compiled and
inspected is that same program. Both steps take plain arrays, donate the cache and compile once per
shape.
"""

import functools
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental.layout import Format, Layout

from decode.carry import Carry, Emitted, emit
from decode.chunks import Chunk, check_chunk, cut, default_chunk
from decode.compiler_options import decode_options, prefill_options
from decode.sampling import GREEDY, Sampler
from model.cache import (
    PADDING,
    KVCache,
    abstract_cache,
    cache_axes,
    empty_cache,
    round_up_to_tiles,
    with_shardings,
)
from model.cache_write import NewTokens
from model.config import ModelConfig
from model.dtypes import Dtypes
from model.memory_order import apply_formats, apply_tpu_orders, formats_of, in_tpu_order
from model.parameters import Parameters
from model.transformer import Transformer
from sharding.placement import Placement


class Engine:
    """A model placed on a mesh, ready to prefill and decode.

    Attributes:
      config: the model.
      parameters: nested dict of arrays, placed on the mesh.
      placement: the layout of the parameters and of decode steps; `placement.prefill` is the
        layout of prompts.
      mesh: the devices.
      dtypes: how the model's numbers are stored.
      chunk: tokens of a prompt that run at once.
      cache_formats: how programs return a cache, one of their `out_shardings`, see `formats_of`.
    """

    def __init__(
        self,
        config: ModelConfig,
        parameters: Parameters,
        placement: Placement,
        mesh: jax.sharding.Mesh,
        dtypes: Dtypes,
        chunk: int | None = None,
        options: Mapping[str, str] | None = None,
    ):
        """Places what is given; `options` are compiler options of decode steps beside the usual.

        Raises:
          UsageError: a chunk that is no multiple of a tile.
        """
        self.config = config
        model = Transformer(config, dtypes)
        self._on_tpu = mesh.devices.flat[0].platform == "tpu"
        if self._on_tpu:
            parameters = apply_tpu_orders(parameters, model)
        self.parameters = parameters
        self.placement = placement
        self.mesh = mesh
        self.dtypes = dtypes
        self.chunk = chunk or default_chunk(mesh.devices.flat[0].platform)
        check_chunk(self.chunk)
        self.cache_formats = formats_of(self._placed_cache(placement.multiple("B"), 1))
        self._structure, _ = nnx.split(model)
        self._prefill = jax.jit(
            self._prefill_step,
            donate_argnames="cache",
            static_argnames="continues",
            out_shardings=(None, self.cache_formats),
            compiler_options=prefill_options(mesh),
        )
        usual = decode_options(mesh, dtypes)
        one_token = {
            "donate_argnames": "cache",
            "compiler_options": (usual or {}) | dict(options) if options else usual,
        }
        self._decode = jax.jit(
            self._decode_step, out_shardings=(None, self.cache_formats, None), **one_token
        )
        self._advance = jax.jit(
            self._advance_step,
            static_argnames=("sampler", "steps"),
            out_shardings=(self.cache_formats, None, None),
            **one_token,
        )
        self._choose = jax.jit(emit, static_argnames="sampler")
        self._forward = jax.jit(self._forward_step)
        self._update = jax.jit(_choose_rows)

    def new_cache(self, batch: int, slots: int, spare: int = 0) -> KVCache:
        """An empty cache of `slots` tokens for each of `batch` sequences.

        The newest `spare` tokens of a sequence can be taken back, by its length alone.

        Raises:
          LayoutError: a batch that the layout does not divide.
        """
        return empty_cache(self._placed_cache(batch, slots, spare), self.mesh)

    def cache_bytes(self, batch: int, slots: int, spare: int = 0) -> int:
        """Bytes of `new_cache` on all devices together, with windows and copies as they are."""
        arrays = jax.tree.leaves(self._placed_cache(batch, slots, spare))
        shards = ((a.sharding.shard_shape(a.shape), a.dtype.itemsize) for a in arrays)
        return sum(math.prod(shape) * size for shape, size in shards) * self.mesh.size

    def put(self, values: np.ndarray | jax.Array) -> jax.Array:
        """A small host array, complete on every device; every process has the same."""
        sharding = jax.NamedSharding(self.mesh, jax.P(*(None,) * values.ndim))
        # Unlike device_put, it does not ask all processes whether they agree.
        return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])

    def start(self, lengths: np.ndarray, seed: int = 0) -> Carry:
        """The carry of a new batch, its tokens still to be chosen.

        Args:
          lengths: [B] int32, tokens of each sequence in the cache.
          seed: seed of the random draws.
        """
        return Carry(
            tokens=self.put(np.zeros_like(lengths)),
            lengths=self.put(lengths),
            index=self.put(np.zeros((), np.int32)),
            sequences=self.put(np.arange(len(lengths), dtype=np.int32)),
            seed=self.put(jax.random.key(seed)),
        )

    def prefill(
        self,
        cache: KVCache,
        tokens: np.ndarray,
        lengths: np.ndarray,
        cached: np.ndarray | None = None,
    ) -> tuple[jax.Array, KVCache]:
        """Runs prompts, or what follows in them, chunk by chunk.

        Args:
          cache: has a slot for each token; its memory is reused.
          tokens: [B, T] int32, padded on the right.
          lengths: [B] int32, real tokens of each row, at least one.
          cached: [B] int32, tokens of each sequence that the cache holds; none if None.

        Returns:
          Logits after each prompt's last token, [B, V] float32, and the filled cache.
        """
        earlier = np.zeros_like(lengths) if cached is None else cached
        chunks = self.chunks(int(lengths.max()), bool(earlier.any()))
        room = chunks[-1].start + chunks[-1].size
        tokens = np.pad(tokens, [(0, 0), (0, max(room - tokens.shape[1], 0))])
        logits = None
        with jax.set_mesh(self.mesh):
            for start, size, continues in chunks:
                part = self.put(tokens[:, start : start + size])
                count = np.clip(lengths - start, 0, size).astype(np.int32)
                new = NewTokens(self.put(earlier + np.int32(start)), self.put(count))
                last, cache = self.run_chunk(cache, part, new, continues=continues)
                all_taken = logits is None or count.all()
                logits = last if all_taken else self._update(logits, last, new.count)
        return logits, cache

    def chunks(self, longest: int, continued: bool = False) -> list[Chunk]:
        """How prompts are cut, the longest of so many tokens, some perhaps `continued`."""
        return cut(longest, self.chunk, continued, one_program=self._reads_as_it_lies)

    def run_chunk(
        self, cache: KVCache, tokens: jax.Array, new: NewTokens, *, continues: bool
    ) -> tuple[jax.Array, KVCache]:
        """One chunk of `prefill`: tokens [B, T] int32 that belong where `new` says."""
        with jax.set_mesh(self.mesh):
            return self._prefill(self.parameters, cache, tokens, new, continues=continues)

    def repeat(self, cache: KVCache, times: int) -> KVCache:
        """A cache in which each sequence is there so many times; the old one is gone."""
        specs = jax.tree.map(self.placement.cache, cache_axes(cache, self.config))

        def local(cache: KVCache) -> KVCache:
            axes = cache_axes(cache, self.config)
            return jax.tree.map(lambda a, by: jnp.repeat(a, times, axis=by.index("B")), cache, axes)

        with jax.set_mesh(self.mesh):
            step = jax.shard_map(local, in_specs=(specs,), out_specs=specs, check_vma=False)
            return jax.jit(step, out_shardings=self.cache_formats)(cache)

    def decode_step(
        self, cache: KVCache, tokens: jax.Array, lengths: jax.Array
    ) -> tuple[jax.Array, KVCache]:
        """The part of `advance` before the choice of tokens: for scoring a text that is given.

        Args:
          cache: holds `lengths` tokens of each sequence; its memory is reused.
          tokens: [B] int32.
          lengths: [B] int32.

        Returns:
          Logits of each sequence's next token, [B, V] float32, and the cache, one token longer.
        """
        with jax.set_mesh(self.mesh):
            return self._decode(self.parameters, cache, tokens, lengths)[:2]

    def advance(
        self, cache: KVCache, carry: Carry, sampler: Sampler, steps: int = 1
    ) -> tuple[KVCache, Carry, Emitted]:
        """The decode step, with the choice of its tokens: generation's inner loop.

        Of several `steps` one program runs all, and what it emits has them as first dimension.
        """
        with jax.set_mesh(self.mesh):
            return self._advance(self.parameters, cache, carry, sampler=sampler, steps=steps)

    def choose(self, logits: jax.Array, carry: Carry, sampler: Sampler) -> tuple[Carry, Emitted]:
        """Chooses each sequence's next token from logits [B, V]."""
        with jax.set_mesh(self.mesh):
            return self._choose(logits, carry, sampler=sampler)

    def forward(self, tokens: np.ndarray) -> jax.Array:
        """Logits at every position, [B, T, V] float32, with no cache kept."""
        with jax.set_mesh(self.mesh):
            cache = self.new_cache(*tokens.shape)
            return self._forward(self.parameters, cache, self.put(tokens))

    def optimize_weight_layout(self, batch: int, slots: int) -> str:
        """Brings weights into the order and tiles that the compiler chooses for a decode step.

        Every step then takes them so, prefill too. It costs a compilation, and a copy of each
        array that changes.

        Args:
          batch: number of sequences.
          slots: tokens that the cache has room for.

        Returns:
          What changed, in words.
        """
        step = self.lower_decode(batch, slots, auto_weight_layout=True).compile()
        self.parameters, changed = apply_formats(self.parameters, step.input_formats[0][0])
        return (
            f"weights as the compiler would have them for batch {batch}: {changed} of "
            f"{len(jax.tree.leaves(self.parameters))} arrays lie otherwise than by default"
        )

    def lower_decode(
        self,
        batch: int,
        slots: int,
        sampler: Sampler = GREEDY,
        *,
        steps: int = 1,
        auto_weight_layout: bool = False,
    ) -> jax.stages.Lowered:
        """The program of `advance` for these shapes, ready to compile or inspect.

        Args:
          batch: number of sequences.
          slots: tokens that the cache has room for.
          sampler: how tokens are chosen.
          steps: how many the program runs, as in `advance`.
          auto_weight_layout: whether the compiler chooses how each weight's shard lies in memory.
        """
        with jax.set_mesh(self.mesh):
            arguments = (self._placed_cache(batch, slots), self._abstract_carry(batch))
            if auto_weight_layout:
                step = functools.partial(self._advance_step, sampler=sampler, steps=steps)
                returned = (self.cache_formats, None, None)
                options = decode_options(self.mesh, self.dtypes)
                return self._lower_with_auto_layout(step, arguments, returned, options)
            return self._advance.lower(self.parameters, *arguments, sampler=sampler, steps=steps)

    def lower_prefill(
        self,
        batch: int,
        slots: int,
        length: int,
        *,
        continues: bool = False,
        auto_weight_layout: bool = False,
    ) -> jax.stages.Lowered:
        """The program of a chunk of prompts, ready to compile or inspect.

        Args:
          batch: number of prompts.
          slots: tokens that the cache has room for.
          length: tokens of the chunk.
          continues: whether tokens of the prompts are in the cache already.
          auto_weight_layout: the same as in `lower_decode`.
        """
        with jax.set_mesh(self.mesh):
            new = NewTokens(*(self._abstract(batch),) * 2)
            arguments = (self._placed_cache(batch, slots), self._abstract(batch, length), new)
            if auto_weight_layout:
                step = functools.partial(self._prefill_step, continues=continues)
                returned, options = (None, self.cache_formats), prefill_options(self.mesh)
                return self._lower_with_auto_layout(step, arguments, returned, options)
            return self._prefill.lower(self.parameters, *arguments, continues=continues)

    def _lower_with_auto_layout(
        self, step: Callable, arguments: tuple, returned: tuple, options: dict[str, str] | None
    ) -> jax.stages.Lowered:
        """The step with weights in whatever order and tiles suit it."""
        weights = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), self.parameters
        )
        free = jax.tree.map(lambda a: Format(Layout.AUTO, a.sharding), weights)
        others = jax.tree.map(lambda a: a.format, arguments)
        return jax.jit(
            step,
            donate_argnames="cache",
            in_shardings=(free, *others),
            out_shardings=returned,
            compiler_options=options,
        ).lower(weights, *arguments)

    def _placed_cache(self, batch: int, slots: int, spare: int = 0) -> KVCache:
        self.placement.check_batch(batch)
        multiple = self.placement.multiple("S")
        if self._on_tpu:
            slots = round_up_to_tiles(slots, self.dtypes)
        cache = abstract_cache(self.config, batch, slots, self.dtypes, multiple, spare)
        cache = with_shardings(cache, self.placement, self.mesh, self.config)
        return in_tpu_order(cache, self.config) if self._on_tpu else cache

    def _abstract_carry(self, batch: int) -> Carry:
        vector, scalar = self._abstract(batch), self._abstract()
        seed = self._abstract(dtype=jax.eval_shape(jax.random.key, 0).dtype)
        return Carry(tokens=vector, lengths=vector, index=scalar, sequences=vector, seed=seed)

    def _abstract(self, *shape: int, dtype: jnp.dtype = np.int32) -> jax.ShapeDtypeStruct:
        """An array that is complete on every device."""
        sharding = jax.NamedSharding(self.mesh, jax.P(*(None,) * len(shape)))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    @property
    def _reads_as_it_lies(self) -> bool:
        """Whether prompts attend in the division of their cache, so that nothing moves to it."""
        placement = self.placement.prefill
        return placement.attention("BK") == placement.cache("BK") and not any(placement.cache("S"))

    def _prefill_step(self, parameters, cache, tokens, new, continues=False):
        with jax.named_scope("prefill"):
            model = nnx.merge(self._structure, parameters)
            order = jnp.arange(tokens.shape[1], dtype=jnp.int32)
            positions = jnp.where(order < new.count[:, None], new.first[:, None] + order, PADDING)
            placement = self.placement.prefill
            x, cache, _ = model(tokens, positions, cache, placement, continues)
            last = jax.reshard(jnp.maximum(new.count - 1, 0), placement.activations("B"))
            last = jax.vmap(lambda row, n: jax.lax.dynamic_slice_in_dim(row, n, 1))(x, last)
            return model.logits(last, placement)[:, 0], cache

    def _decode_step(self, parameters, cache, tokens, lengths):
        with jax.named_scope("decode_step"):
            model = nnx.merge(self._structure, parameters)
            x, cache, touched = model(tokens[:, None], lengths[:, None], cache, self.placement)
            return model.logits(x, self.placement)[:, 0], cache, touched

    def _advance_step(self, parameters, cache, carry, sampler, steps=1):
        def step(state, _):
            cache, carry = state
            logits, cache, touched = self._decode_step(
                parameters, cache, carry.tokens, carry.lengths
            )
            carry, emitted = emit(logits, carry._replace(lengths=carry.lengths + 1), sampler)
            return (cache, carry), emitted._replace(experts_touched=touched)

        # XLA keeps the cache of a loop in place, and copies no weights but, on CPUs, those of
        # bfloat16, of which it holds the embedding twice.
        if steps == 1:
            (cache, carry), emitted = step((cache, carry), None)
        else:
            (cache, carry), emitted = jax.lax.scan(step, (cache, carry), length=steps)
        return cache, carry, emitted

    def _forward_step(self, parameters, cache, tokens):
        model = nnx.merge(self._structure, parameters)
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
        placement = self.placement.prefill
        return model.logits(model(tokens, positions, cache, placement).hidden, placement)


def _choose_rows(old: jax.Array, new: jax.Array, count: jax.Array) -> jax.Array:
    """Logits [B, V]: new ones where a chunk has tokens of a sequence, `count` [B], else old."""
    taken = jax.reshard(count > 0, jax.P(jax.typeof(new).sharding.spec[0]))
    return jnp.where(taken[:, None], new, old)
