"""Steps with a fault in each, planted but for prompts, compiled for a TPU slice, to be found.

`python -m tests.profiles.planted`, with libtpu installed, writes the folder `programs` anew: the
text of each as XLA's TPU compiler left it, less notes that nothing here reads, and the bytes that
it accounts for. Weights are too large for VMEM, where copies would cost nothing.
"""

import dataclasses
import functools
import gzip
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from decode.engine import Engine
from decode.sampling import GREEDY
from model.catalog import find_model
from model.config import ModelConfig
from model.dtypes import BFLOAT16, Dtypes
from profiles.chips.calibration import calibration_of
from profiles.chips.slices import parse_slice
from profiles.compiled.compiler import Compilation, memory_sizes
from profiles.compiled.inspection import PassProgram
from profiles.expected.estimate import Estimator
from profiles.floor.deployment import Deployment
from profiles.floor.passes import Pass
from sharding.catalog import LAYOUTS, schedule_by
from sharding.layout import Layout
from sharding.mesh import mesh_over, parse_mesh
from sharding.placement import Placement
from sharding.quantization import QUANTIZATIONS

PROGRAMS = Path(__file__).with_name("programs")
TOPOLOGY = "v5e:2x2"
CONFIG = dataclasses.replace(
    find_model("tiny"),
    layers=1,
    vocabulary=2048,
    d_model=2048,
    d_ff=131072,
    query_heads=16,
    kv_heads=4,
    head_size=128,
)
LAYERS, WIDTH = 3, 8192  # of the weights that are stacked
BATCH, SLOTS = 8, 4096


@dataclasses.dataclass(frozen=True)
class Planted:
    """A step, and what is done to it.

    Attributes:
      fault: makes other parameters of the step's; inside it.
      given: makes other arguments; outside.
      mesh: sizes of x, y and z.
      layout: partitioning.
      config: the model.
      dtypes: how numbers are stored.
      donate: the cache.
      tokens: of each sequence; of prompts as many as the cache has room for, and nothing planted.
      batch: sequences.
      topology: the slice.
    """

    fault: Callable[[dict], dict] = lambda parameters: parameters
    given: Callable[[dict], dict] = lambda parameters: parameters
    mesh: str = "1x1x4"
    layout: Layout = LAYOUTS["weight_stationary_1d"]
    config: ModelConfig = CONFIG
    dtypes: Dtypes = BFLOAT16
    donate: bool = True
    tokens: int = 1
    batch: int = BATCH
    topology: str = TOPOLOGY

    @property
    def program(self) -> PassProgram:
        """The step."""
        placement = Placement.of(self.layout, self.config.sizes, parse_mesh(self.mesh))
        return PassProgram(
            config=self.config,
            placement=placement,
            dtypes=self.dtypes,
            pass_=Pass(self.batch, context=0, tokens=self.tokens, slots=SLOTS),
        )

    @property
    def estimator(self) -> Estimator:
        """Of the same model on the same slice."""
        slice = parse_slice(self.topology)
        return Estimator(
            Deployment(
                model=self.config,
                slice=slice,
                dtypes=self.dtypes,
                calibration=calibration_of(slice.chip.name),
                layout=self.layout,
                mesh=parse_mesh(self.mesh),
            )
        )

    @property
    def floor_s(self) -> float:
        """Of the step on that slice."""
        if self.tokens > 1:
            return self.estimator.prefill(self.batch, self.tokens).floor.seconds
        return self.estimator.decode(self.batch, SLOTS - 1).floor.seconds

    @property
    def pass_(self) -> Pass:
        """The step as its floor counts it."""
        return Pass(self.batch, SLOTS - 1, slots=SLOTS)


def _with_down(change: Callable) -> Callable[[dict], dict]:
    """Changes the second matrix of the MLP."""

    def changed(parameters: dict) -> dict:
        (layer,) = parameters["layers"].items()
        number, block = layer
        mlp = block["mlp"] | {"down": change(block["mlp"]["down"])}
        return parameters | {"layers": {number: block | {"mlp": mlp}}}

    return changed


def _gathered(down: jax.Array) -> jax.Array:
    """All of it on every device, and then a part again."""
    whole = jax.lax.optimization_barrier(jax.reshard(down, jax.P(None, None)))
    return jax.reshard(whole, jax.typeof(down).sharding.spec)


def _unpacked(down: dict) -> dict:
    """8-bit weights as bfloat16, kept."""
    return down | {"values": jax.lax.optimization_barrier(down["values"].astype(jnp.bfloat16))}


def _divided(down: jax.Array) -> jax.Array:
    return jax.reshard(down, jax.P(None, "z"))


def _whole(down: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    sharding = jax.NamedSharding(down.sharding.mesh, jax.P(None, None))
    return jax.ShapeDtypeStruct(down.shape, down.dtype, sharding=sharding)


CASES = {
    "sound": Planted(),
    "undonated": Planted(donate=False),
    "replicated": Planted(fault=_with_down(_divided), given=_with_down(_whole)),
    "gathered": Planted(fault=_with_down(_gathered)),
    "dequantized": Planted(
        fault=_with_down(_unpacked), dtypes=Dtypes(jnp.bfloat16, QUANTIZATIONS["int8"])
    ),
    "narrow_parts": Planted(
        mesh="2x1x2",
        layout=LAYOUTS["weight_stationary_2d"],
        config=dataclasses.replace(CONFIG, d_model=1536, d_ff=2048),
    ),
    "overlapped": Planted(
        layout=schedule_by(LAYOUTS["weight_stationary_2d"], "overlapped"),
        mesh="2x1x2",
        config=dataclasses.replace(CONFIG, d_ff=2048),
    ),
    "prompts": Planted(config=dataclasses.replace(CONFIG, d_ff=32768), tokens=SLOTS, batch=1),
}


def lowered(case: Planted, devices: list) -> jax.stages.Lowered:
    if case.tokens > 1:
        return case.program.lower(devices)
    engine: Engine = case.program.engine(devices)

    def step(parameters, cache, carry):
        return engine._advance_step(case.fault(parameters), cache, carry, GREEDY)

    donated = {"donate_argnames": "cache"} if case.donate else {}
    with jax.set_mesh(engine.mesh):
        cache, carry = engine._placed_cache(case.batch, SLOTS), engine._abstract_carry(case.batch)
        return jax.jit(step, **donated).lower(case.given(engine.parameters), cache, carry)


def _stacked(devices: list) -> jax.stages.Lowered:
    """A scan over stacked weights that turns each round before it is used."""
    mesh = mesh_over(parse_mesh("1x1x4"), devices)
    shape = jax.ShapeDtypeStruct(
        (LAYERS, WIDTH, 4 * WIDTH),
        jnp.bfloat16,
        sharding=jax.NamedSharding(mesh, jax.P(None, None, "z")),
    )
    x = jax.ShapeDtypeStruct(
        (BATCH, WIDTH), jnp.bfloat16, sharding=jax.NamedSharding(mesh, jax.P(None, None))
    )

    def step(parameters, x):
        def layer(x, weight):
            turned = jax.lax.optimization_barrier(jnp.swapaxes(weight, 0, 1))
            hidden = jax.lax.dot_general(x, turned, (((1,), (1,)), ((), ())))
            return jnp.tanh(hidden).astype(x.dtype), None

        def rows(parameters, x):
            return jax.lax.scan(layer, x, parameters["layers"]["up"])[0]

        return jax.shard_map(
            lambda parameters, x: jax.lax.psum(rows(parameters, x), "z"),
            in_specs=({"layers": {"up": jax.P(None, None, "z")}}, jax.P(None, None)),
            out_specs=jax.P(None, None),
            check_vma=False,
        )(parameters, x)

    with jax.set_mesh(mesh):
        return jax.jit(step).lower({"layers": {"up": shape}}, x)


def _without_notes(text: str) -> str:
    """Less what the compiler notes for itself; counts of loops and kinds of fusions stay."""
    text = re.sub(
        r"^(FileNames|FunctionNames|FileLocations|StackFrames)\n(.+\n)*", "", text, flags=re.M
    )
    text = re.sub(
        r", entry_computation_layout=\{.*?\}(?=, \w+=)",
        ", entry_computation_layout={}",
        text,
        count=1,
    )
    text = re.sub(r' stack_frame_id=\d+| source_\w+=("[^"]*"|\d+)', "", text)

    def short(found: re.Match) -> str:
        kept = re.search(r'"known_trip_count":\{[^}]*\}|"kind":"__\w+"', found[0])
        return f", backend_config={{{kept[0]}}}" if kept else ""

    return re.sub(r", backend_config=\{.*\}", short, text)


def write(folder: Path) -> None:
    """Compiles each and writes it, with the bytes that it accounts for."""
    devices = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGY).devices
    steps = {name: functools.partial(lowered, case, devices) for name, case in CASES.items()}
    steps["stacked"] = functools.partial(_stacked, devices)
    write_programs(folder, steps)


def write_programs(folder: Path, steps: dict[str, Callable[[], jax.stages.Lowered]]) -> None:
    """Compiles each of these and writes it without notes, and the sizes of all."""
    sizes = {}
    for name, lower in steps.items():
        compiled = lower().compile()
        sizes[name] = memory_sizes(compiled)
        text = _without_notes(compiled.as_text()).encode()
        (folder / f"{name}.txt.gz").write_bytes(gzip.compress(text, mtime=0))
    (folder / "sizes.json").write_text(json.dumps(sizes, indent=1) + "\n")


def load(name: str, folder: Path = PROGRAMS) -> Compilation:
    """A program that was written."""
    sizes = json.loads((folder / "sizes.json").read_text())
    text = gzip.decompress((folder / f"{name}.txt.gz").read_bytes()).decode()
    return Compilation(status="ok", memory=sizes[name], text=text)


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else PROGRAMS)
