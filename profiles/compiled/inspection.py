"""What a layout does to a model: its arrays, and the collectives expected and compiled."""

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from decode.engine import Engine
from model.config import ModelConfig
from model.dtypes import Dtypes
from model.parameters import abstract
from model.transformer import Transformer
from profiles.compiled.substitutes import settle, substitute
from profiles.floor.arrays import PlacedArray, group_layers
from profiles.floor.collective import Collective, merge, without_places
from profiles.floor.communication import expected_collectives
from profiles.floor.passes import Pass
from profiles.hlo.census import census
from profiles.report.numbers import exact
from profiles.report.partitioning import cache_words, partitioning
from profiles.report.record import Record
from profiles.report.table import Table
from profiles.report.titles import field_text
from sharding.devices import default_platform
from sharding.mesh import make_mesh, mesh_over
from sharding.placement import Placement


@dataclasses.dataclass(frozen=True, kw_only=True)
class PassProgram:
    """The program of a pass: what a compiler is given, and what is inspected.

    Attributes:
      config: the model.
      placement: the layout on a mesh.
      dtypes: how its numbers are stored.
      pass_: the pass, its batch one that the layout divides; programs of
        all contexts are the same, but prompts with none before them have one of their own.
    """

    config: ModelConfig
    placement: Placement
    dtypes: Dtypes
    pass_: Pass

    def __str__(self) -> str:
        divided = self._partitioning
        parts = [
            f"{self.config.name} on {field_text(divided.mesh)}, {divided.layout}",
            f"attention by {divided.attention}",
            "experts divided" * bool(divided.expert_parallel),
            f"collectives {divided.collectives}",
            str(self.dtypes),
            f"batch {self.pass_.batch}",
            f"cache of {self.pass_.cache_slots} tokens",
            cache_words(divided),
            self._work,
        ]
        return ", ".join(filter(None, parts))

    @property
    def _work(self) -> str:
        if not self.pass_.over_prompts:
            return "decode step"
        after = f" after {self.pass_.context}" if self.pass_.continues else ""
        return f"prefill of {self.pass_.tokens} tokens{after}"

    def as_record(self) -> Record:
        """What is known of the pass before it runs."""
        return Record(
            model=self.config.name,
            phase=self.pass_.phase,
            batch=self.pass_.batch,
            tokens_per_sequence=self.pass_.tokens,
            devices=self.placement.devices,
            **self._partitioning.to_json(),
            **self.dtypes.names(),
        )

    @property
    def _partitioning(self) -> Record:
        return partitioning(self.config, self.placement, prompts=self.pass_.over_prompts)

    @property
    def run(self) -> Placement:
        """The placement that this pass runs in."""
        return self.placement.prefill if self.pass_.over_prompts else self.placement

    def engine(self, devices: Sequence[jax.Device] | None = None) -> Engine:
        """An engine with shapes in place of weights: enough to compile with.

        Args:
          devices: one for each place in the mesh; they need not be there. JAX's own if None.

        Raises:
          LayoutError: JAX does not have as many devices as the mesh has.
        """
        shape = self.placement.mesh
        mesh = make_mesh(shape) if devices is None else mesh_over(shape, devices)
        parameters = abstract(Transformer(self.config, self.dtypes), self.placement, mesh)
        return Engine(self.config, parameters, self.placement, mesh, self.dtypes)

    def lower(
        self, devices: Sequence[jax.Device] | None = None, auto_weight_layout: bool = False
    ) -> jax.stages.Lowered:
        """This pass, ready to compile; raises as `engine` does.

        Args:
          devices: the same as in `engine`.
          auto_weight_layout: the compiler chooses how each weight's shard lies in memory.
        """
        return self.lowered_by(self.engine(devices), auto_weight_layout)

    def lowered_by(self, engine: Engine, auto_weight_layout: bool = False) -> jax.stages.Lowered:
        """This pass as an engine runs it, ready to compile; of one that it has run, compiled."""
        chosen = {"auto_weight_layout": auto_weight_layout}
        batch, slots = self.pass_.batch, self.pass_.cache_slots
        if self.pass_.over_prompts:
            length, continues = self.pass_.tokens, self.pass_.continues
            return engine.lower_prefill(batch, slots, length, continues=continues, **chosen)
        return engine.lower_decode(batch, slots, **chosen)


def expected(program: PassProgram, platform: str | None = None) -> list[Collective]:
    """The collectives that should be there; see `expected_collectives`.

    Args:
      program: the pass.
      platform: JAX's name of the platform that it is compiled for; JAX's own if None.
    """
    return expected_collectives(
        program.config,
        program.run,
        program.dtypes,
        batch=program.pass_.batch,
        tokens=program.pass_.tokens,
        continues=program.pass_.continues,
        grouped=(platform or default_platform()) == "tpu",
        sampled=not program.pass_.over_prompts,
    )


def compiled(program: PassProgram) -> list[Collective]:
    """The collectives that XLA made for JAX's devices; no weight is made for it.

    Raises:
      LayoutError: there are not as many devices as the mesh has.
    """
    return census(program.lower().compile().as_text(), program.placement.mesh)


def differences(
    expected_collectives: Sequence[Collective],
    found: Sequence[Collective],
    dtype: jnp.dtype,
    platform: str | None = None,
) -> list[str]:
    """How a compiled program departs from the expected list, beyond what compilers replace.

    Args:
      expected_collectives: the collectives that the layout asks for.
      found: the collectives of the program.
      dtype: element type of expected collectives that do not name one.
      platform: the platform that the program is for; JAX's own if None.
    """
    surplus = surpluses(expected_collectives, found, dtype, platform or default_platform())
    return [
        f"{abs(count)} {'more' if count > 0 else 'fewer'} {kind} over {''.join(axes)} of "
        f"{size:,} bytes"
        for (kind, axes, size), count in sorted(surplus.items())
    ]


def surpluses(
    expected_collectives: Sequence[Collective],
    found: Sequence[Collective],
    dtype: jnp.dtype,
    platform: str,
) -> dict[tuple[str, tuple[str, ...], int], int]:
    """How many more of each kind, axes and payload a program has; negative where fewer."""
    surplus = _counts(found)
    surplus.subtract(_counts(as_made(expected_collectives, found, dtype, platform)))
    return {key: count for key, count in surplus.items() if count}


def as_made(
    expected_collectives: Sequence[Collective],
    found: Sequence[Collective],
    dtype: jnp.dtype,
    platform: str,
) -> list[Collective]:
    """The expected collectives, with what a platform's compiler makes in place of some."""
    if platform == "tpu":
        return settle(expected_collectives, found)
    return substitute(expected_collectives, platform, dtype)


def stands_in(collectives: Sequence[Collective], dtype: jnp.dtype) -> bool:
    """Whether this platform's compiler makes something else of any of these."""
    return _counts(substitute(collectives, default_platform(), dtype)) != _counts(collectives)


def _counts(collectives: Sequence[Collective]) -> Counter:
    merged = without_places(collectives)
    return Counter({(each.kind, each.axes, each.payload_bytes): each.count for each in merged})


def array_table(arrays: Sequence[PlacedArray]) -> str:
    """Arrays for a terminal, those alike in all layers as one row."""
    head = "array", "how many", "shape", "sharding", "bytes per chip, each", "copies of each part"
    rows = [
        (
            array.name,
            str(count),
            "x".join(map(str, array.shape)),
            array.notation,
            f"{array.bytes_per_chip:,}",
            str(array.copies),
        )
        for array, count in group_layers(list(arrays))
    ]
    return Table(head, rows).terminal()


def totals(arrays: Sequence[PlacedArray]) -> str:
    """Bytes of each chip for weights and for the KV cache, and how much of them is copies."""
    lines = []
    for what, chosen in (
        ("weights", [array for array in arrays if not array.name.startswith("cache/")]),
        ("KV cache", [array for array in arrays if array.name.startswith("cache/")]),
    ):
        size = sum(array.bytes_per_chip for array in chosen)
        extra = sum(array.bytes_per_chip * (1 - 1 / array.copies) for array in chosen)
        lines.append(f"{what}: {size:,} bytes per chip, {extra:,.0f} of them for copies")
    return "\n".join(lines)


def collective_table(
    collectives: Sequence[Collective], layers: int, label: str, order: Sequence[Collective]
) -> str:
    """Collectives for a terminal, block by block: per layer, and per step.

    Args:
      collectives: the collectives of one step.
      layers: number of layers; blocks named ``layer_0/mlp`` or ``layer/mlp`` count as one.
      label: ``expected`` or ``compiled``.
      order: the expected collectives, whose blocks come in the order of the model.
    """
    head = ("block", label, "mesh axes", "bytes per chip, each", "per layer", "per step")
    blocks = {where: rank for rank, where in enumerate(dict.fromkeys(each.where for each in order))}
    found = sorted(merge(any_layer(collectives)), key=lambda e: blocks.get(e.where, len(blocks)))
    rows = [
        (
            each.where.removeprefix("layer/"),
            each.kind,
            "".join(each.axes),
            f"{each.payload_bytes:,}",
            exact(each.count / layers) if each.in_layers else "",
            str(each.count),
        )
        for each in found
    ]
    return Table(head, rows).terminal()


def any_layer(collectives: Sequence[Collective]) -> list[Collective]:
    """The same collectives, layers not told apart."""
    return [
        dataclasses.replace(each, where=re.sub(r"^layer_\d+", "layer", each.where))
        for each in collectives
    ]
