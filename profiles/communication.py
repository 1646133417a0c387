"""The collectives that one forward pass should hold, from the model's sizes and the layout alone.

Mirrors the transformer's changes of sharding one by one: a collective stands where two neighbouring
shardings differ, or where a matmul sums over a divided dimension. Pope et al. 2022, section 3.2 and
appendix A, give the closed forms that this list takes in that paper's configuration. What a
compiled program really holds is counted by `profiles.census`; the two must agree.
"""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from model.config import ModelConfig
from model.dispatch import expert_axes, sums
from profiles.collective import Collective, merge
from sharding.axes import MESH_AXES
from sharding.collectives import Division, look_up_steps, moves
from sharding.placement import Axes, Placement, entry, entry_axes, shards, used_axes
from sharding.products import Transfers, directions, transfers

FLOAT32 = 4
Letters = tuple[str, ...]


def expected_collectives(
    config: ModelConfig, placement: Placement, dtype: jnp.dtype, *, batch: int, tokens: int = 1
) -> list[Collective]:
    """Every collective of one forward pass.

    Args:
      config: the model.
      placement: the layout on a mesh; of prompts, `Placement.prefill`.
      dtype: of weights and activations.
      batch: sequences.
      tokens: per sequence: 1 in a decode step, more in a prefill, whose logits are those of each
        prompt's last token.

    Returns:
      Collectives with their `where`: a block, ``layer/`` before those that every layer has. Their
      counts are those of the whole pass.
    """
    step = _Pass(config, placement, dtype, batch, tokens)
    step.look_up()
    once, step.found = step.found, []
    step.layer()
    layers = [dataclasses.replace(each, count=each.count * config.layers) for each in step.found]
    step.found = once + layers
    step.unembed()
    return merge(step.found)


class _Pass:
    """Walks through one forward pass and notes what moves."""

    def __init__(
        self,
        config: ModelConfig,
        placement: Placement,
        dtype: jnp.dtype,
        batch: int,
        tokens: int,
    ):
        self.config, self.placement = config, placement
        self.itemsize = np.dtype(dtype).itemsize
        self.sizes = {**config.sizes, "B": batch, "T": tokens, "C": 2, "e": config.experts}
        self.overlapped = placement.layout.collectives == "overlapped"
        self.found: list[Collective] = []

    def look_up(self) -> None:
        """Rows of the embedding."""
        place = self.placement
        table, target = place.weights("V", "D"), place.activations("B", "T", "R")
        rows, columns, batch, residual = map(entry_axes, (*table, target[0], target[2]))
        steps = look_up_steps(rows, columns, batch, residual)
        now: Division = (steps.batch, (), columns)
        if steps.exchanged:
            self.note("all-to-all", steps.exchanged, self.size("BTD", now), "embedding")
            now = (steps.batch + steps.exchanged, (), ())
        if steps.scattered:
            self.note("reduce-scatter", steps.scattered, self.size("BTD", now), "embedding", True)
        if steps.summed:
            self.note("all-reduce", steps.summed, self.size("BTD", now), "embedding")
        result = jax.P(steps.result[0], None, steps.result[1])
        self.reshard("BTD", result, target, "embedding")

    def layer(self) -> None:
        """One block."""
        place, config = self.placement, self.config
        residual, whole = place.activations("B", "T", "R"), place.contracted("B", "T", "D")
        self.norm("layer/norm")
        self.attention(residual, whole)
        if config.norm_after:
            self.norm("layer/norm")
        if not config.parallel_block:
            self.norm("layer/norm")
        now = whole if config.parallel_block else residual
        self.experts(now, whole) if config.experts else self.mlp(now, whole)
        if config.norm_after:
            self.norm("layer/norm")

    def norm(self, where: str) -> None:
        """A mean over the residual stream, two with layer norm."""
        spec = self.placement.activations("B", "T", "R")
        means = 2 if self.config.norm == "layer" else 1
        for _ in range(means if used_axes(spec[2:]) else 0):
            size = self.size("BT", _division(spec)[:2], FLOAT32)
            self.note("all-reduce", entry_axes(spec[2]), size, where)

    def attention(self, now: jax.P, whole: jax.P) -> None:
        """Projections, attention over the cache or the prompt, and the projection back."""
        place, where = self.placement, "layer/query_key_value"
        for letters in ("KGh", "KCh"):
            result = place.activations("B", "T", *letters)
            self.product((*letters, "D"), 3, now, whole, result, where)
            now = whole
            if self.config.attention_bias:
                bias = place.activations(*letters)
                self.reshard(letters, place.weights(*letters), bias, where)
            first_two = (letters[0], None if letters[1] == "C" else letters[1])
            attended = place.attention("B", "T", *first_two, None)
            self.reshard("BT" + letters, result, attended, where)
        new, cache = place.attention("B", "T", "K", None), place.cache("B", "T", "K", None)
        for _ in range(2):
            self.reshard("BTKh", new, cache, "layer")
        heads = place.attention("B", "T", "K", "G", None)
        if self.sizes["T"] == 1:
            self.softmax()
            stored = place.cache("B", "K")
            heads = jax.P(stored[0], None, stored[1], heads[3], None)
        made, where = place.activations("B", "T", "K", "G", "h"), "layer/attention_output"
        self.reshard("BTKGh", heads, made, where)
        whole = place.contracted("B", "T", "K", "G", "h")
        self.product("DKGh", 1, made, whole, place.activations("B", "T", "R"), where)

    def softmax(self) -> None:
        """Joining the parts of a softmax over divided slots."""
        place, where = self.placement, "layer/attention"
        slots = used_axes(place.cache("S"))
        if not slots:
            return
        spec = (*_division(place.cache("B", "K")), (), entry_axes(place.attention("G")[0]))
        one = self.size("BKTG", spec, FLOAT32)  # a number for each query
        width = self.sizes["h"]
        for size in (one, one * (width + 1)) if self.overlapped else (one, one, one * width):
            self.note("all-reduce", slots, size, where)

    def mlp(self, now: jax.P, whole: jax.P) -> None:
        """Gate and up, and down."""
        place, where = self.placement, "layer/mlp"
        self.product("CFD", 2, now, whole, place.activations("B", "T", "C", "F"), where)
        hidden, whole = place.activations("B", "T", "F"), place.contracted("B", "T", "F")
        self.product("DF", 1, hidden, whole, place.activations("B", "T", "R"), where)

    def experts(self, now: jax.P, whole: jax.P) -> None:
        """Router, tokens to their experts, experts one by one, and answers back."""
        place, mesh, where = self.placement, self.placement.mesh, "layer/mixture"
        axes = expert_axes(place)
        tokens = jax.P(entry(axes.batch), None, entry(axes.inputs))
        self.reshard("BTD", now, tokens, where)
        self.reshard("eD", place.weights("e", "D"), place.use("e", "D"), where)
        self.reshard("BTD", tokens, whole, where)
        scores = self.size("BTe", _division(place.activations("B", "T", None)), FLOAT32)
        if inputs := used_axes(whole[2:]):
            self.note("all-reduce", inputs, scores, where)
        for letters in ("ECFD", "EDF"):
            self.reshard(letters, place.weights(*letters), place.use(*letters), where)
        batch, _, d_model = self.local("BTD", _division(tokens))
        sent = batch * self.sizes["T"] * shards(axes.exchanged, mesh)
        if axes.exchanged:
            shares = self.sizes["E"] // shards(axes.spread, mesh) * FLOAT32
            size = sent * (d_model * self.itemsize + shares)
            self.note("all-to-all", axes.exchanged, size, where, True)
        experts, both, d_ff, _ = self.local("ECFD", _division(place.use(*"ECFD")))
        if axes.inputs:
            size = sent * both * d_ff * FLOAT32
            self.note("all-reduce", axes.inputs, size, where, True, experts)
        if axes.exchanged:
            self.note("all-to-all", axes.exchanged, sent * d_model * self.itemsize, where, True)
        residual = place.activations("B", "T", "R")
        scattered, summed = sums(axes, entry_axes(residual[2]))
        size = batch * self.sizes["T"] * d_model * FLOAT32
        if scattered:
            self.note("reduce-scatter", scattered, size, where, True)
        if summed:
            self.note("all-reduce", summed, size // shards(scattered, mesh), where, True)
        made = jax.P(residual[0], None, entry((*axes.inputs, *scattered)))
        self.reshard("BTR", made, residual, where)

    def unembed(self) -> None:
        """The last norm, and logits of one token per sequence."""
        place = self.placement
        self.sizes["T"] = 1 if self.sizes["T"] == 1 else self.sizes["T"]
        self.norm("norm")
        self.sizes["T"] = 1
        now, whole = place.activations("B", "T", "R"), place.beside_stored("B", "T", "D")
        result = jax.P(place.beside_stored("B")[0], None, place.activations("V")[0])
        stored = place.weights("V", "D")
        self.product("VD", 1, now, whole, result, "unembedding", stored, FLOAT32)

    def product(
        self,
        letters: str | Letters,
        outputs: int,
        now: jax.P,
        whole: jax.P,
        result: jax.P,
        where: str,
        use: jax.P | None = None,
        itemsize: int | None = None,
    ) -> None:
        """A matmul with a weight of these letters, as `Operand.multiply` does it."""
        stored = self.placement.weights(*letters)
        use = self.placement.use(*letters) if use is None else use
        shape = tuple(self.sizes[letter] for letter in letters)
        made, read = ("BT" + "".join(part) for part in (letters[:outputs], letters[outputs:]))
        itemsize = itemsize or self.itemsize
        plan = transfers(shape, stored, use, now, whole, result, self.placement.mesh)
        if plan and self.overlapped:
            self.loops(plan, letters, stored, (read, now, whole), (made, result), itemsize, where)
            return
        if plan and any(plan.fetched):  # one all-gather, whatever dimensions
            size = self.size(letters, _division(use))
            self.note("all-gather", sum(plan.fetched, ()), size, where, True)
        elif not plan:
            self.reshard(letters, stored, use, where)
        self.reshard(read, now, whole, where)
        inputs, kept = used_axes(use[outputs:]), used_axes(result[2:])
        scattered = tuple(axis for axis in inputs if axis in kept)
        size = self.size(made, _division(result), itemsize)
        if scattered:
            parts = shards(scattered, self.placement.mesh)
            self.note("reduce-scatter", scattered, size * parts, where, plan is not None)
        if summed := tuple(axis for axis in inputs if axis not in kept):
            self.note("all-reduce", summed, size, where)

    def loops(
        self,
        plan: Transfers,
        letters: str | Letters,
        stored: jax.P,
        read: tuple[str, jax.P, jax.P],
        made: tuple[str, jax.P],
        itemsize: int,
        where: str,
    ) -> None:
        """The same by hand: see `sharding.products.multiply`."""
        mesh = self.placement.mesh
        size = self.size(made[0], _division(made[1]), itemsize)  # the product as it ends
        parts = shards(plan.scattered, mesh)
        if any(plan.fetched):
            if plan.gathered:
                whole = self.size(read[0], _division(read[2]))
                self.note("all-gather", plan.gathered, whole, where, True)
            local = self.local(letters, _division(stored))
            split = next((length for length in local if length % 2 == 0), 1)
            self.ring(sum(plan.fetched, ()), split, math.prod(local) * self.itemsize, where)
        elif plan.gathered:
            chunk = self.local(read[0], _division(read[1]))
            size_of_chunk = math.prod(chunk) * self.itemsize
            self.ring(plan.gathered, chunk[plan.gather_dim], size_of_chunk, where)
        if plan.ring:
            along = self.local(made[0], _division(made[1]))[2 + plan.scatter_dim]
            share = 1 if plan.scattered else shards(plan.ring, mesh)
            self.ring(plan.ring, along // share, size // share, where)
        elif plan.scattered:
            self.note("reduce-scatter", plan.scattered, size * parts, where, True)
        if plan.ring and plan.ring == plan.summed:
            self.note("all-gather", plan.summed, size, where, True)
        elif plan.summed:
            self.note("all-reduce", plan.summed, size, where, True)

    def ring(self, axes: Axes, length: int, size: int, where: str) -> None:
        """Chunks of `size` bytes, `length` along what may be halved, passed all the way round."""
        chips = shards(axes, self.placement.mesh)
        ways = len(directions(length, chips))
        self.note("permute", axes, size // ways, where, True, (chips - 1) * ways)

    def reshard(self, letters: str | Letters, start: jax.P, target: jax.P, where: str) -> None:
        """A change of sharding, as `sharding.collectives.reshard` makes it."""
        path = [_division(start), *moves(_division(start), _division(target))]
        for before, after in itertools.pairwise(path):
            lost = sum((b[len(a) :] for b, a in zip(before, after, strict=True)), ())
            if not lost:
                continue
            kept = set(lost) <= {axis for axes in after for axis in axes}
            kind = "all-to-all" if kept else "all-gather"
            self.note(kind, lost, self.size(letters, after), where)

    def note(
        self, kind: str, axes: Axes, size: float, where: str, by_hand: bool = False, count: int = 1
    ) -> None:
        """Adds a collective of `size` bytes per device."""
        ordered = tuple(axis for axis in MESH_AXES if axis in axes)
        self.found.append(Collective(kind, ordered, int(size), count, where, by_hand=by_hand))

    def local(self, letters: str | Letters, division: Division) -> list[int]:
        """Sizes of one device's part of an array."""
        pairs = zip(letters, division, strict=True)
        return [self.sizes[letter] // shards(axes, self.placement.mesh) for letter, axes in pairs]

    def size(self, letters: str | Letters, division: Division, itemsize: int | None = None) -> int:
        """Bytes of one device's part of an array."""
        return math.prod(self.local(letters, division)) * (itemsize or self.itemsize)


def _division(spec: jax.P) -> Division:
    return tuple(entry_axes(axes) for axes in spec)
