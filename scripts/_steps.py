"""The one step that the flags of `_step_flags` name: its model, its pass and its layout."""

import _array_flags
import _common
import _dtypes
import _layouts
import _slices
from _step_flags import BATCH, CHUNK, CONTEXT, LAYERS, MESH, PHASE, TOPOLOGY

from model.config import ModelConfig
from profiles.expected.candidates import candidates
from profiles.expected.estimate import Estimator, best
from profiles.floor.passes import Pass
from sharding.error_types import UsageError
from sharding.mesh import parse_mesh


def model() -> ModelConfig:
    """The model that the flags name, with ``--layers`` layers if given.

    Raises:
      UsageError: it is known by its sizes alone.
    """
    named = _slices.model()
    if not isinstance(named, ModelConfig):
        raise UsageError(
            f"model is {named.name}, which is known by its sizes alone; use one that the engine "
            "runs, see --help of generate.py"
        )
    if LAYERS.value:
        return named.first_layers(LAYERS.value)
    return named


def chunk() -> int:
    """Tokens of a prompt that run at once.

    Raises:
      UsageError: a chunk of a decode step or of no whole tiles, or a prompt of one token.
    """
    tokens = _array_flags.accelerator_chunk(CHUNK, PHASE.value)
    if PHASE.value == "prefill" and CONTEXT.value < 2:
        raise UsageError(f"--context is {CONTEXT.value} with --phase=prefill; use 2 tokens or more")
    return tokens


def pass_(config: ModelConfig, chunk: int) -> Pass:
    """The pass that the flags name; of a prompt longer than a chunk its last whole one.

    Says so if that is not all of the prompt.
    """
    prefill = PHASE.value == "prefill"
    length = _common.lengths(CONTEXT, config, prefill)[0]
    if not prefill:
        return Pass(BATCH.value, length)
    last = Pass(BATCH.value, 0, length).last_chunk(chunk)
    if last.tokens < length:
        _common.say(
            f"a prompt of {length:,} tokens runs in chunks of {chunk:,}; compiled is the last "
            f"whole one, after {last.context:,} tokens"
        )
    return last


def estimator(config: ModelConfig, pass_: Pass) -> Estimator:
    """The estimator of the layout and mesh that the flags name, or of the expected best."""
    slice, dtypes = _slices.slice(TOPOLOGY.value), _dtypes.dtypes(here=False)
    deployment = _slices.deployment(config, slice, dtypes)
    shapes = [parse_mesh(MESH.value)] if MESH.value else None
    return best(candidates(deployment, _layouts.wanted(config), shapes), [pass_])
