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

from model.config import ModelConfig
from model.dispatch import expert_axes, sums
from model.form import Form
from profiles.collective import Collective
from profiles.hlo import bits, element_of
from sharding.axes import MESH_AXES
from sharding.collectives import Division, look_up_steps, moves
from sharding.placement import Axes, Placement, division, entry, entry_axes, shards, used_axes
from sharding.products import Transfers, directions, transfers

FLOAT32 = "f32"


def expected_collectives(
    config: ModelConfig,
    placement: Placement,
    form: Form,
    *,
    batch: int,
    tokens: int = 1,
    grouped: bool = True,
) -> list[Collective]:
    """Every collective of one forward pass.

    Args:
      config: the model.
      placement: the layout on a mesh; of prompts, `Placement.prefill`.
      form: how numbers are stored.
      batch: sequences.
      tokens: per sequence: 1 in a decode step, more in a prefill, whose logits are those of each
        prompt's last token.
      grouped: experts run in one grouped matmul, as on TPU; else one by one, and the list has each
        of them as if tokens chose them all.

    Returns:
      Collectives with their `where`: a block, ``layer/`` before those that every layer has. Their
      counts are those of the whole pass.
    """
    step = ForwardPass(config, placement, form, batch, tokens, grouped)
    step.look_up()
    once, step.found = step.found, []
    step.layer()
    layers = [dataclasses.replace(each, count=each.count * config.layers) for each in step.found]
    step.found = once + layers
    step.unembed()
    return step.found


class ForwardPass:
    """Walks through one forward pass and notes what moves."""

    def __init__(
        self,
        config: ModelConfig,
        placement: Placement,
        form: Form,
        batch: int,
        tokens: int,
        grouped: bool = True,
    ):
        self.grouped = grouped
        self.config, self.placement = config, placement
        self.element = element_of(form.dtype)
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
            size = self.size("BT", division(spec)[:2])
            self.note("all-reduce", entry_axes(spec[2]), size, where, element=FLOAT32)

    def attention(self, now: jax.P, whole: jax.P) -> None:
        """Projections, attention over the cache or the prompt, and the projection back."""
        place, where = self.placement, "layer/query_key_value"
        for letters in ("KGh", "KCh"):
            result = place.activations("B", "T", *letters)
            self.product(letters + "D", 3, now, whole, result, where)
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
        spec = (*division(place.cache("B", "K")), (), entry_axes(place.attention("G")[0]))
        one = self.size("BKTG", spec)  # a number for each query
        width = self.sizes["h"]
        for size in (one, one * (width + 1)) if self.overlapped else (one, one, one * width):
            self.note("all-reduce", slots, size, where, element=FLOAT32)

    def mlp(self, now: jax.P, whole: jax.P) -> None:
        """Gate and up, and down."""
        place, where = self.placement, "layer/mlp"
        self.product("CFD", 2, now, whole, place.activations("B", "T", "C", "F"), where)
        hidden, whole = place.activations("B", "T", "F"), place.contracted("B", "T", "F")
        self.product("DF", 1, hidden, whole, place.activations("B", "T", "R"), where)

    def experts(self, now: jax.P, whole: jax.P) -> None:
        """Router, tokens to their experts, the experts, and answers back."""
        place, config, where = self.placement, self.config, "layer/mixture"
        mesh = place.mesh
        axes = expert_axes(place)
        tokens = jax.P(entry(axes.batch), None, entry(axes.inputs))
        self.reshard("BTD", now, tokens, where)
        self.reshard("eD", place.weights("e", "D"), place.use("e", "D"), where)
        self.reshard("BTD", tokens, whole, where)
        scores = self.size("BTe", division(place.activations("B", "T", None)))
        if inputs := used_axes(whole[2:]):
            self.note("all-reduce", inputs, scores, where, element=FLOAT32)
        for letters in ("ECFD", "EDF"):
            self.reshard(letters, place.weights(*letters), place.use(*letters), where)
        batch, _, d_model = self.local("BTD", division(tokens))
        sent = batch * self.sizes["T"] * shards(axes.exchanged, mesh)
        if axes.exchanged:
            # Shares are float32 whatever the tokens are; both travel as bits.
            shares = self.sizes["E"] // shards(axes.spread, mesh) * 32 // bits(self.element)
            packed = f"u{bits(self.element)}"
            self.note("all-to-all", axes.exchanged, sent * (d_model + shares), where, True, packed)
        experts, both, d_ff, _ = self.local("ECFD", division(place.use(*"ECFD")))
        if axes.inputs:
            rows, times = sent, experts
            if self.grouped:
                rows, times = sent * min(config.experts_per_token, experts), 1
            size = rows * both * d_ff
            self.note("all-reduce", axes.inputs, size, where, True, FLOAT32, times)
        if axes.exchanged:
            self.note("all-to-all", axes.exchanged, sent * d_model, where, True)
        residual = place.activations("B", "T", "R")
        scattered, summed = sums(axes, entry_axes(residual[2]))
        size = batch * self.sizes["T"] * d_model
        if scattered:
            self.note("reduce-scatter", scattered, size, where, True, FLOAT32)
        if summed:
            size //= shards(scattered, mesh)
            self.note("all-reduce", summed, size, where, True, FLOAT32)
        made = jax.P(residual[0], None, entry((*axes.inputs, *scattered)))
        self.reshard("BTR", made, residual, where)

    def unembed(self) -> None:
        """The last norm, and logits of one token per sequence."""
        place = self.placement
        self.norm("norm")
        self.sizes["T"] = 1
        now, whole = place.activations("B", "T", "R"), place.beside_stored("B", "T", "D")
        result = jax.P(place.beside_stored("B")[0], None, place.activations("V")[0])
        stored = place.weights("V", "D")
        self.product("VD", 1, now, whole, result, "unembedding", stored, FLOAT32)

    def product(
        self,
        letters: str,
        outputs: int,
        now: jax.P,
        whole: jax.P,
        result: jax.P,
        where: str,
        use: jax.P | None = None,
        element: str | None = None,
    ) -> None:
        """A matmul with a weight of these letters, as `Operand.multiply` does it.

        Args:
          letters: of the weight, outputs first.
          outputs: how many of them are outputs.
          now: sharding of what it multiplies.
          whole: sharding of that when multiplied.
          result: sharding of the product.
          where: the block.
          use: sharding of the weight when multiplied, if not the layout's.
          element: type of the product, if not that of activations.
        """
        stored = self.placement.weights(*letters)
        use = self.placement.use(*letters) if use is None else use
        shape = tuple(self.sizes[letter] for letter in letters)
        plan = transfers(shape, stored, use, now, whole, result, self.placement.mesh)
        made, read = "BT" + letters[:outputs], "BT" + letters[outputs:]
        if plan and self.overlapped:
            chunk, shard = self.local(read, division(now)), self.local(letters, division(stored))
            product = self.local(made, division(plan.made))
            self.loops(plan, chunk, shard, product, where, element)
            return
        if plan and any(plan.fetched):  # one all-gather, whatever dimensions
            size = self.size(letters, division(use))
            self.note("all-gather", sum(plan.fetched, ()), size, where, True)
        elif not plan:
            self.reshard(letters, stored, use, where)
        self.reshard(read, now, whole, where)
        if plan:
            size = self.size(made, division(plan.made))
            self.add_up(size, plan.scattered, plan.summed, where, element)
            return
        inputs, kept = used_axes(use[outputs:]), used_axes(result[2:])
        scattered = tuple(axis for axis in inputs if axis in kept)
        summed = tuple(axis for axis in inputs if axis not in kept)
        self.add_up(self.size(made, division(result)), scattered, summed, where, element, False)

    def loops(
        self,
        plan: Transfers,
        chunk: list[int],
        shard: list[int],
        product: list[int],
        where: str,
        element: str | None,
    ) -> None:
        """The same in loops: see `sharding.products.multiply`.

        Args:
          plan: what moves.
          chunk: sizes of this chip's part of what is multiplied.
          shard: sizes of its part of the weight.
          product: sizes of its part of the product, in the end.
          where: the block.
          element: type of the product.
        """
        mesh, size = self.placement.mesh, math.prod(product)
        if any(plan.fetched):
            if plan.gathered:
                whole = math.prod(chunk) * shards(plan.gathered, mesh)
                self.note("all-gather", plan.gathered, whole, where, True)
            split = next((n for n in shard[: len(product) - 2] if n % 2 == 0), 1)
            self.ring(sum(plan.fetched, ()), split, math.prod(shard), where)
            self.add_up(size, plan.scattered, plan.summed, where, element)
            return
        if plan.gathered:
            self.ring(plan.gathered, chunk[plan.gather_dim], math.prod(chunk), where)
        if plan.ring:
            share = 1 if plan.scattered else shards(plan.ring, mesh)
            along = product[2 + plan.scatter_dim] // share
            self.ring(plan.ring, along, size // share, where, element)
        if plan.ring and plan.ring == plan.summed:
            self.note("all-gather", plan.summed, size, where, True, element)
        else:
            self.add_up(size, (), plan.summed, where, element)

    def add_up(
        self,
        size: int,
        scattered: Axes,
        summed: Axes,
        where: str,
        element: str | None,
        by_hand: bool = True,
    ) -> None:
        """Sums that leave `size` elements on each chip."""
        if scattered:
            whole = size * shards(scattered, self.placement.mesh)
            self.note("reduce-scatter", scattered, whole, where, by_hand, element)
        if summed:
            self.note("all-reduce", summed, size, where, by_hand, element)

    def ring(
        self, axes: Axes, length: int, size: int, where: str, element: str | None = None
    ) -> None:
        """Chunks of `size` elements, `length` along what may be halved, passed all round."""
        chips = shards(axes, self.placement.mesh)
        ways = len(directions(length, chips))
        self.note("permute", axes, size // ways, where, True, element, (chips - 1) * ways)

    def reshard(self, letters: str, start: jax.P, target: jax.P, where: str) -> None:
        """A change of sharding, as `sharding.collectives.reshard` makes it."""
        path = [division(start), *moves(division(start), division(target))]
        for before, after in itertools.pairwise(path):
            lost = sum((b[len(a) :] for b, a in zip(before, after, strict=True)), ())
            if not lost:
                continue
            kept = set(lost) <= {axis for axes in after for axis in axes}
            kind = "all-to-all" if kept else "all-gather"
            self.note(kind, lost, self.size(letters, after), where)

    def note(
        self,
        kind: str,
        axes: Axes,
        size: int,
        where: str,
        by_hand: bool = False,
        element: str | None = None,
        count: int = 1,
    ) -> None:
        """Adds a collective of `size` elements per chip, of the activations' type if not said."""
        ordered = tuple(axis for axis in MESH_AXES if axis in axes)
        element = element or self.element
        payload = size * bits(element) // 8
        self.found.append(Collective(kind, ordered, payload, count, where, element, by_hand))

    def local(self, letters: str, division: Division) -> list[int]:
        """Sizes of one chip's part of an array."""
        pairs = zip(letters, division, strict=True)
        return [self.sizes[letter] // shards(axes, self.placement.mesh) for letter, axes in pairs]

    def size(self, letters: str, division: Division) -> int:
        """Elements of one chip's part of an array."""
        return math.prod(self.local(letters, division))
