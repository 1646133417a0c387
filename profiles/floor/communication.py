"""The collectives that one forward pass should hold, from the model's sizes and the layout alone.

Mirrors the transformer's changes of sharding one by one: a collective stands where two neighbouring
shardings differ, or where a matmul sums over a divided dimension. Pope et al. 2022, section 3.2 and
appendix A, give the closed forms that this list takes in that paper's configuration. What a
compiled program really holds is counted by `profiles.hlo.census`; the two must agree.
"""

import copy
import math

import jax

from model.config import ModelConfig
from model.dispatch import expert_axes, sums
from model.dtypes import Dtypes
from profiles.floor.attention_communication import grouped_attention, latent_attention
from profiles.floor.collective import Collective, changes
from profiles.floor.delta_communication import delta_layer
from profiles.floor.element_types import bits, element_of
from profiles.floor.shapes import FLOAT32, Matmul, Shapes
from sharding.axes import MESH_AXES
from sharding.collectives import Division, look_up_steps
from sharding.layout import Axes
from sharding.placement import Placement, division, entry, entry_axes, shards, used_axes
from sharding.products import ProductSpecs, Transfers, gathers_in_loop, ring_directions, transfers
from sharding.quantization import Weight, spec_of


def expected_collectives(
    config: ModelConfig,
    placement: Placement,
    dtypes: Dtypes,
    *,
    batch: int,
    tokens: int = 1,
    continues: bool = False,
    grouped: bool = True,
    sampled: bool = False,
) -> list[Collective]:
    """Every collective of one forward pass.

    Floors and expected times leave out what follows the logits (`sampled`): 12 bytes per sequence
    and part of the vocabulary, and 4 bytes per layer and expert.

    Args:
      config: the model.
      placement: the layout on a mesh; for prompts, `Placement.prefill`.
      dtypes: how numbers are stored.
      batch: number of sequences.
      tokens: tokens per sequence: 1 in a decode step, more in a prefill, whose logits are those of
        each prompt's last token.
      continues: whether prompts attend also to tokens that the cache holds.
      grouped: whether experts run in one grouped matmul, as on TPU; else they run one by one, and
        the list has each of them as if tokens chose them all.
      sampled: whether to list also what a compiled decode step does beside the logits: it chooses
        each sequence's likeliest token and counts the experts that tokens chose.

    Returns:
      Collectives with their `where`: a block, ``layer/`` before those that every layer has. Their
      counts are those of the whole pass.
    """
    step = ForwardPass(config, placement, dtypes, batch, tokens, continues, grouped)
    step.look_up()
    if config.layer_inputs:
        step.layer_inputs()
    for first, count in config.kinds:
        step.as_seen_by(first).layer(first, count)
    step.unembed()
    if sampled:
        step.sample()
    return step.found


class ForwardPass(Shapes):
    """Walks through one forward pass and notes what moves."""

    def __init__(
        self,
        config: ModelConfig,
        placement: Placement,
        dtypes: Dtypes,
        batch: int,
        tokens: int,
        continues: bool = False,
        grouped: bool = True,
    ):
        self.attends_to_cache = tokens == 1 or continues
        self.grouped = grouped and not dtypes.quantization  # such a matmul takes plain arrays
        super().__init__(config, placement, dtypes, batch, tokens)
        self.element = element_of(dtypes.dtype)
        self.overlapped = placement.layout.collectives == "overlapped"
        self.times = 1  # that the part walked through is run
        self.found: list[Collective] = []

    def as_seen_by(self, layer: int) -> "ForwardPass":
        """The walk with sizes as a layer has them; what it notes is noted here."""
        seen = copy.copy(self)
        seen.resize(self.config.at(layer))
        return seen

    def look_up(self, columns: str = "D", block: str = "embedding") -> None:
        """Rows of the embedding, or of a table with other columns."""
        placement = self.placement
        letters, kept = "BT" + columns, "BT" + columns.replace("D", "R")
        table, target = placement.weights("V" + columns), placement.activations(kept)
        rows, divided, batch, residual = map(entry_axes, (*table, target[0], target[2]))
        steps = look_up_steps(rows, divided, batch, residual)
        now: Division = (steps.batch, (), divided)
        by_hand = {"block": block, "by_hand": True, "element": element_of(self.dtypes.plain)}
        if steps.exchanged:
            self.note("all-to-all", steps.exchanged, self.size(letters, now), **by_hand)
            now = (steps.batch + steps.exchanged, (), ())
        if steps.scattered:
            self.note("reduce-scatter", steps.scattered, self.size(letters, now), **by_hand)
        if steps.summed:
            self.note("all-reduce", steps.summed, self.size(letters, now), **by_hand)
        result = jax.P(steps.result[0], None, steps.result[1])
        self.reshard(self.plain(letters), result, target, block)

    def layer_inputs(self) -> None:
        """What layers have of their own of each token: rows of a table, and a projection."""
        placement, block = self.placement, "layer_inputs"
        self.look_up("P", block)
        given, contracted = placement.activations("BTR"), placement.contracted("BTD")
        self.product(Matmul("PD", 1, given, contracted, placement.activations("BTP"), block))

    def layer(self, number: int, times: int) -> None:
        """One block, by the number of its layer, and as often as there are such."""
        placement, config = self.placement, self.config
        self.times = times
        residual, contracted = placement.activations("BTR"), placement.contracted("BTD")
        if config.norm_before:
            self.norm("layer/norm")
        if config.is_delta(number):
            delta_layer(self, residual, contracted)
        elif config.latent:
            latent_attention(self, residual)
        else:
            grouped_attention(self, residual, contracted, own=not config.borrows(number))
        if config.norm_after:
            self.norm("layer/norm")
        if config.norm_before and not config.parallel_block:
            self.norm("layer/norm")
        given = contracted if config.parallel_block else residual
        if config.has_experts(number):
            self.experts(given, contracted)
            if config.shared_d_ff:
                self.mlp(given, contracted, "s")
            for _ in range(2 * config.experts_apart):
                self.norm("layer/norm")
        else:
            self.mlp(given, contracted, config.mlp_width(number))
        if config.norm_after:
            self.norm("layer/norm")
        if config.layer_inputs:
            self.layer_input()

    def layer_input(self) -> None:
        """The gate of a layer's own input, the projection of that, and its norm."""
        placement, block = self.placement, "layer/layer_inputs"
        residual, one = placement.activations("BTR"), placement.activations("BTp")
        self.product(Matmul("pD", 1, residual, placement.contracted("BTD"), one, block))
        self.product(Matmul("Dp", 1, one, placement.contracted("BTp"), residual, block))
        self.norm(block)

    def norm(self, block: str) -> None:
        """A mean over the residual stream, two with layer norm."""
        spec = self.placement.activations("BTR")
        means = 2 if self.config.norm == "layer" else 1
        for _ in range(means if used_axes(spec[2:]) else 0):
            size = self.size("BT", division(spec)[:2])
            self.note("all-reduce", entry_axes(spec[2]), size, block, element=FLOAT32)

    def mlp(self, given: jax.P, contracted: jax.P, width: str = "F") -> None:
        """Gate and up, and down; `width` is the letter of the hidden width."""
        placement, block = self.placement, "layer/mlp"
        both = placement.activations("BTC" + width)
        self.product(Matmul(f"C{width}D", 2, given, contracted, both, block))
        if width == "s" and self.config.shared_gate:
            one = placement.activations("BTa")
            self.product(Matmul("aD", 1, contracted, contracted, one, block, plain=True))
        if self.config.mlp_bias:
            stored, used = placement.weights("CF"), placement.activations("CF")
            self.reshard(self.plain("CF"), stored, used, block, True)
        hidden, contracted = placement.activations("BT" + width), placement.contracted("BT" + width)
        residual = placement.activations("BTR")
        self.product(Matmul("D" + width, 1, hidden, contracted, residual, block))

    def experts(self, given: jax.P, contracted: jax.P) -> None:
        """Router, tokens to their experts, the experts, and answers back."""
        placement, config, block = self.placement, self.config, "layer/mixture"
        mesh = placement.mesh
        axes = expert_axes(placement)
        tokens = jax.P(entry(axes.batch), None, entry(axes.inputs))
        for _ in range(1 + config.experts_apart):  # what experts read, and what the router does
            self.reshard(self.array("BTD"), given, tokens, block)
        self.reshard(self.plain("eD"), placement.weights("eD"), placement.use("eD"), block, True)
        self.reshard(self.array("BTD"), tokens, contracted, block)
        scores = self.size("BTe", division(placement.activations("BT_")))
        if inputs := used_axes(contracted[2:]):
            self.note("all-reduce", inputs, scores, block, element=FLOAT32)
        for letters in ("ECF", "ED") * config.expert_bias:
            stored, use = placement.weights(letters), placement.use(letters)
            self.reshard(self.plain(letters), stored, use, block, True)
        for letters, outputs in (("ECFD", 3), ("EDF", 2)):
            stored, use = placement.weights(letters), placement.use(letters)
            self.divide(self.weight(letters, outputs), stored, use, block)
        batch, _, d_model = self.local(self.shape("BTD"), division(tokens))
        sent = batch * self.sizes["T"] * shards(axes.exchanged, mesh)
        if axes.exchanged:
            # Shares are float32 whatever the tokens are; both travel as bits.
            shares = self.sizes["E"] // shards(axes.spread, mesh) * 32 // bits(self.element)
            packed = f"u{bits(self.element)}"
            self.note("all-to-all", axes.exchanged, sent * (d_model + shares), block, True, packed)
        experts, both, d_ff, _ = self.local(self.shape("ECFD"), division(placement.use("ECFD")))
        if axes.inputs:
            rows, times = sent, experts
            if self.grouped:
                chosen = config.experts_per_token
                rows, times = sent * (chosen - (chosen - experts) * (chosen > experts)), 1
            size = rows * both * d_ff
            self.note("all-reduce", axes.inputs, size, block, True, FLOAT32, times)
        if axes.exchanged:
            self.note("all-to-all", axes.exchanged, sent * d_model, block, True)
        residual = placement.activations("BTR")
        scattered, summed = sums(axes, entry_axes(residual[2]))
        size = batch * self.sizes["T"] * d_model
        if scattered:
            self.note("reduce-scatter", scattered, size, block, True, FLOAT32)
        if summed:
            size //= shards(scattered, mesh)
            self.note("all-reduce", summed, size, block, True, FLOAT32)
        made = jax.P(residual[0], None, entry((*axes.inputs, *scattered)))
        self.reshard(self.array("BTR"), made, residual, block)

    def unembed(self) -> None:
        """The last norm, and logits of one token per sequence."""
        placement = self.placement
        self.norm("norm")
        self.sizes["T"] = 1
        given, contracted = placement.activations("BTR"), placement.beside_stored("BTD")
        self.product(Matmul("VD", 1, given, contracted, self.logits, "unembedding", table=True))

    def sample(self) -> None:
        """The experts that tokens chose, and each sequence's likeliest token.

        As `model.transformer` counts and `decode.sampling.highest` chooses.
        """
        experts, batch = self.config.experts, division(self.placement.activations("BT"))[0]
        if experts and batch:
            size = self.config.layers_of_experts * experts
            self.note("all-reduce", batch, size, "experts_touched", element="s32")
        batch, _, vocabulary = division(self.logits)
        if batch + vocabulary:
            size = 3 * self.sizes["B"] * shards(vocabulary, self.placement.mesh)
            self.note("all-gather", batch + vocabulary, size, "sample", True, "s32")

    @property
    def logits(self) -> jax.P:
        """Sharding of the logits, [B, T, V]."""
        placement = self.placement
        return jax.P(placement.beside_stored("B")[0], None, placement.activations("V")[0])

    def product(self, m: Matmul) -> None:
        """A matmul, as `model.linear.multiply_tokens` does it."""
        placement, stored = self.placement, self.placement.weights(m.letters)
        if m.table:
            weight, use = self.plain(m.letters), stored
        else:
            found = self.plain(m.letters) if m.plain else self.weight(m.letters, m.outputs)
            weight, use = found, placement.use(m.letters)
        specs = ProductSpecs(stored, use, m.given, m.contracted, m.result)
        plan = transfers(weight.shape, specs, placement.mesh)
        if plan and self.overlapped:
            self.loops(m, plan, weight, self.local(self.shape(m.read), division(m.given)))
            return
        if plan and (fetched := sum(plan.fetched, ())):  # one all-gather, whatever dimensions
            for element, size in self.stored_parts(weight, stored):
                size *= shards(fetched, placement.mesh)
                self.note("all-gather", fetched, size, m.block, True, element, of_weights=True)
        elif not plan:
            self.divide(weight, stored, use, m.block)
        self.reshard(self.array(m.read), m.given, m.contracted, m.block)
        if plan:
            self.add_up(
                m, self.size(m.made, division(plan.product_spec)), plan.scattered, plan.summed
            )
            return
        inputs, kept = used_axes(use[m.outputs :]), used_axes(m.result[2:])
        scattered = tuple(axis for axis in inputs if axis in kept)
        summed = tuple(axis for axis in inputs if axis not in kept)
        self.add_up(m, self.size(m.made, division(m.result)), scattered, summed, False)

    def loops(self, m: Matmul, plan: Transfers, weight: Weight, chunk: list[int]) -> None:
        """The same in loops, see `sharding.products.multiply`.

        Args:
          m: the product.
          plan: what moves.
          weight: shapes of the weight's arrays.
          chunk: sizes of one chip's part of what it multiplies.
        """
        mesh, product = (
            self.placement.mesh,
            self.local(self.shape(m.made), division(plan.product_spec)),
        )
        size = math.prod(product)
        looped = gathers_in_loop(weight, chunk, plan) and not any(plan.fetched)
        if plan.gathered and not looped:
            whole = math.prod(chunk) * shards(plan.gathered, mesh)
            self.note("all-gather", plan.gathered, whole, m.block, True)
        if any(plan.fetched):
            stored = self.placement.weights(m.letters)
            shard = self.local(weight.shape, division(stored))
            split = next((n for n in shard[: m.outputs] if n % 2 == 0), 1)
            for kind, elements in self.stored_parts(weight, stored):
                self.ring(sum(plan.fetched, ()), split, elements, m.block, kind)
            self.add_up(m, size, plan.scattered, plan.summed)
            return
        if looped:
            self.ring(plan.gathered, chunk[plan.gather_dim], math.prod(chunk), m.block)
        if plan.ring:
            share = 1 if plan.scattered else shards(plan.ring, mesh)
            along = product[2 + plan.scatter_dim] // share
            self.ring(plan.ring, along, size // share, m.block, m.element)
        if plan.ring and plan.ring == plan.summed:
            self.note("all-gather", plan.summed, size, m.block, True, m.element)
        else:
            self.add_up(m, size, (), plan.summed)

    def add_up(
        self, m: Matmul, size: int, scattered: Axes, summed: Axes, by_hand: bool = True
    ) -> None:
        """Sums that leave `size` elements on each chip."""
        if scattered:
            whole = size * shards(scattered, self.placement.mesh)
            self.note("reduce-scatter", scattered, whole, m.block, by_hand, m.element)
        if summed:
            self.note("all-reduce", summed, size, m.block, by_hand, m.element)

    def ring(
        self, axes: Axes, length: int, size: int, block: str, element: str | None = None
    ) -> None:
        """Chunks of `size` elements, `length` along what may be halved, passed all round."""
        chips = shards(axes, self.placement.mesh)
        ways = len(ring_directions(length, chips))
        self.note("permute", axes, size // ways, block, True, element, (chips - 1) * ways)

    def divide(self, weight: Weight, stored: jax.P, use: jax.P, block: str) -> None:
        """A weight's change of sharding, each of its arrays on its own."""
        for leaf in jax.tree.leaves(weight):
            specs = (spec_of(leaf, weight, spec) for spec in (stored, use))
            self.reshard(leaf, *specs, block, of_weights=True)

    def reshard(
        self,
        array: jax.ShapeDtypeStruct,
        start: jax.P,
        target: jax.P,
        block: str,
        of_weights: bool = False,
    ) -> None:
        """A change of sharding, as `sharding.collectives.reshard` makes it."""
        if start == target:
            return
        element = element_of(array.dtype)
        for kind, lost, after in changes(division(start), division(target)):
            size = math.prod(self.local(array.shape, after))
            self.note(kind, lost, size, block, element=element, of_weights=of_weights)

    def note(
        self,
        kind: str,
        axes: Axes,
        size: int,
        block: str,
        by_hand: bool = False,
        element: str | None = None,
        count: int = 1,
        of_weights: bool = False,
    ) -> None:
        """Adds a collective of `size` elements per chip, of the activations' type if not said."""
        ordered = tuple(axis for axis in MESH_AXES if axis in axes)
        element = element or self.element
        payload = size * bits(element) // 8
        self.found.append(
            Collective(
                kind,
                ordered,
                payload,
                count * self.times,
                block,
                element,
                by_hand,
                of_weights=of_weights,
            )
        )
