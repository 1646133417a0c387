"""The kernels of a microbenchmark that are sized as a model: passes of some of its layers.

A model's products take more time than those of one large matrix: each waits for the one before it,
reads its matrix from memory, and XLA:CPU multiplies few rows by narrow matrices at rates of their
own. So what is timed are passes of a model with the same widths and random weights, but of fewer
layers, and with as much of the vocabulary as of the layers. On a CPU the same weights lie in
several places, which passes read in turn, as a whole model reads one layer after the other.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from decode.engine import Engine
from decode.load import ModelSource
from model.config import ModelConfig
from model.declarations import count, declarations
from model.dtypes import Dtypes
from model.layout_check import settle
from model.parameters import Parameters
from model.transformer import Transformer
from profiles.floor.bytes_and_flops import PassCounter
from profiles.floor.communication import expected_collectives
from profiles.floor.passes import Pass
from profiles.measured.bandwidth import filled
from profiles.measured.prompt_timing import RepeatedPrompt
from profiles.measured.timing import RepeatedStep
from profiles.report.document import summarise
from sharding import processes
from sharding.catalog import LAYOUTS
from sharding.huge_pages import Convert, convert_to_stay

MOST_SEQUENCES = 64  # more rows are those of one prompt, whose cache is small
BURST_S = 0.1  # at least so long is a sample: the first step of a burst takes longer
IN_TURN, MOST_PLACES = (
    1 << 29,
    8,
)  # bytes of weights on a CPU: more than it keeps of them in a cache
VOCABULARY_MULTIPLE = 64  # of tokens, so that the part of a vocabulary divides as the whole does


@dataclasses.dataclass
class ModelPass:
    """A decode step or a prompt of a part of a model, ready to be timed again and again.

    Attributes:
      fields: what it is, as the document has it.
      step: the step or the prompt.
      amount: FLOPs of all devices in one run.
      attention: those of them in which tokens of decode steps meet what is cached.
      collectives: those of a run.
    """

    fields: dict[str, object]
    step: RepeatedStep | RepeatedPrompt
    amount: float
    attention: float
    collectives: int

    def __str__(self) -> str:
        layers = self.step.engine.config.layers
        return f"{layers} layers, {self.fields['dtype']}, {self.step}"

    @property
    def seconds(self) -> float:
        """The median of all samples."""
        return float(np.median(self.step.samples))

    def compile(self) -> None:
        """Compiles its programs, which `prepare` then finds compiled."""
        for program in self.step.lower():
            program.compile()

    def prepare(self) -> None:
        """Warms up, and sets the length of a sample."""
        self.step.compile()
        if isinstance(self.step, RepeatedStep):
            self.step.burst = 1
            self.step.sample()
            self.step.burst = self._burst(self.step.samples.pop())
        else:
            self.step.lengthen(BURST_S)
        self.step.release()

    def _burst(self, seconds: float) -> int:
        """Steps of a sample, alike in all processes, where one takes so long."""
        return processes.from_first_process(lambda: max(math.ceil(BURST_S / seconds), 1))

    def sample(self) -> None:
        """Times a burst, in a cache that is there no longer."""
        self.step.compile()
        self.step.sample()
        self.step.release()

    def as_record(self, rate: str) -> dict[str, object]:
        """Its fields, its rate under this name, its work, and its seconds with the samples."""
        work = {"flops": self.amount, "attention_flops": self.attention}
        return {
            **self.fields,
            rate: self.amount / self.seconds,
            **work,
            "collectives": self.collectives,
            "seconds": summarise(self.step.samples),
        }


class ModelPasses(NamedTuple):
    """Passes of a part of a model.

    Attributes:
      filled: decode steps and prompts, by types and rows.
      empty: of each type the step of most sequences once more, with nothing in the cache.
    """

    filled: list[ModelPass]
    empty: list[ModelPass]


def model_passes(
    mesh: jax.sharding.Mesh,
    dtypes: Sequence[Dtypes],
    rows: Sequence[int],
    config: ModelConfig,
    most_bytes: float,
    context: int,
) -> ModelPasses:
    """Passes of so many rows, each the tokens that a device multiplies with every matrix.

    Few rows are the sequences of a decode step, and more than `MOST_SEQUENCES` the tokens of a
    prompt, at least: prompts are of powers of two.

    Args:
      mesh: the devices.
      dtypes: how numbers are stored, in turn.
      rows: numbers of rows.
      config: the model.
      most_bytes: bytes of weights over all devices; at least one layer is multiplied.
      context: tokens in the cache of each sequence.
    """
    found = ModelPasses([], [])
    for each in dtypes:
        engine = _engine(mesh, part_of(config, each, most_bytes), each)
        sequences = [number for number in rows if number <= MOST_SEQUENCES]
        steps = [RepeatedStep(engine, number, context) for number in sequences]
        lengths = dict.fromkeys(_whole_chunk(number) for number in rows if number not in sequences)
        engine.chunk = max(lengths, default=engine.chunk)
        prompts = [RepeatedPrompt(engine, 1, length) for length in lengths]
        found.filled.extend(_pass(step, each) for step in (*steps, *prompts))
        for last in steps[-1:]:
            empty = RepeatedStep(engine, last.batch, 0, slots=last.slots)
            found.empty.append(_pass(empty, each))
    return found


def _whole_chunk(tokens: int) -> int:
    """A power of two, so that a prompt of so many tokens is one chunk without padding."""
    return 1 << (tokens - 1).bit_length()


def part_of(config: ModelConfig, dtypes: Dtypes, most_bytes: float) -> ModelConfig:
    """The model with as many layers as weigh so much, one at least, and as much vocabulary."""
    least = dataclasses.replace(config.equal_layers(1), vocabulary=VOCABULARY_MULTIPLE)
    layer = count(Transformer(least.equal_layers(2), dtypes)) - count(Transformer(least, dtypes))
    share = config.vocabulary * config.d_model / config.layers  # beside each layer
    fitting = most_bytes / ((layer + share) * dtypes.dtype.itemsize)
    layers = int(min(max(fitting, 1), config.layers))
    tokens = config.vocabulary * layers / config.layers
    return dataclasses.replace(
        config.first_layers(layers),
        vocabulary=max(math.ceil(tokens / VOCABULARY_MULTIPLE), 1) * VOCABULARY_MULTIPLE,
    )


class _Engine(Engine):
    """An engine whose passes read equal weights in several places, one place after the other.

    A CPU reads a few layers again from its last-level cache, faster by half than a whole model.
    """

    @property
    def parameters(self) -> Parameters:
        """Those of the next place."""
        return next(self._places)

    @parameters.setter
    def parameters(self, first: Parameters) -> None:
        arrays = jax.tree.leaves(first)
        mesh, size = arrays[0].sharding.mesh, sum(array.nbytes for array in arrays)
        copy = functools.partial(_copy, stay=convert_to_stay(mesh))
        others = [jax.tree.map(copy, first) for _ in range(places_of(mesh, size) - 1)]
        self._places = itertools.cycle([first, *others])


def places_of(mesh: jax.sharding.Mesh, size: float) -> int:
    """In how many places weights of so many bytes lie on a mesh."""
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    return min(math.ceil(IN_TURN / size), MOST_PLACES) if on_cpu else 1


def _copy(array: jax.Array, stay: Convert) -> jax.Array:
    """The same numbers on the same devices, in memory of their own."""
    shards = {str(shard.index): shard.data for shard in array.addressable_shards}
    return jax.make_array_from_callback(
        array.shape, array.sharding, lambda index: stay(shards[str(index)], array.dtype)
    )


def _engine(mesh: jax.sharding.Mesh, config: ModelConfig, dtypes: Dtypes) -> Engine:
    """The model with random weights; plain ones are made sooner, and are not zero either."""
    layout, shape = LAYOUTS["weight_stationary_1d"], dict(mesh.shape)
    if dtypes.quantization:
        one = ModelSource(config, None, None).engine(layout, shape, dtypes)
        return _Engine(config, one.parameters, one.placement, mesh, dtypes)
    placement, stay = settle(config, dtypes, layout, shape), convert_to_stay(mesh)
    weights = {
        path: filled(mesh, param.shape, placement.weights(param.axes), param.dtype, stay)
        for path, param in declarations(Transformer(config, dtypes)).items()
    }
    return _Engine(config, unflatten_dict(weights), placement, mesh, dtypes)


def _pass(step: RepeatedStep | RepeatedPrompt, dtypes: Dtypes) -> ModelPass:
    engine, decodes = step.engine, isinstance(step, RepeatedStep)
    sizes = Pass(step.batch, step.context) if decodes else Pass(1, 0, step.length)
    placement = engine.placement if decodes else engine.placement.prefill
    counts = PassCounter(engine.config, placement, dtypes).count(sizes)
    listed = expected_collectives(
        engine.config, placement, dtypes, batch=sizes.batch, tokens=sizes.tokens, continues=False
    )
    fields = {
        "dtype": dtypes.dtype.name,
        "rows": sizes.batch * sizes.tokens,
        "width": engine.config.d_model,
        "layers": engine.config.layers,
        "context": sizes.context,
    }
    devices = engine.mesh.size
    return ModelPass(
        fields,
        step,
        amount=counts.flops * devices,
        attention=counts.attention * devices,
        collectives=sum(each.count for each in listed),
    )
