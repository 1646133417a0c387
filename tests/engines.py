"""Engines with random weights that are made once."""

import functools

import numpy as np
from flax.traverse_util import flatten_dict

from decode.engine import Engine
from decode.load import ModelSource
from model.config import ModelConfig
from model.declarations import Path
from model.dtypes import FLOAT32, Dtypes
from model.parameters import place
from model.transformer import Transformer
from sharding.catalog import LAYOUTS
from sharding.layout import Layout
from sharding.mesh import make_mesh, parse_mesh
from sharding.placement import Placement


@functools.cache
def random_arrays(config: ModelConfig) -> dict[Path, np.ndarray]:
    """Random weights; making them on each mesh would compile more than steps do."""
    layout, source = LAYOUTS["weight_stationary_1d"], ModelSource(config, None, None)
    one = source.engine(layout, parse_mesh("1"), FLOAT32)
    return {path: np.asarray(array) for path, array in flatten_dict(one.parameters).items()}


def random_engine(config: ModelConfig, layout: Layout, mesh: str, dtypes: Dtypes) -> Engine:
    """An engine with the weights of `random_arrays`, brought to a form."""
    shape = parse_mesh(mesh)
    placement, devices = Placement.of(layout, config.sizes, shape), make_mesh(shape)
    model = Transformer(config, dtypes)
    parameters = place(model, random_arrays(config).items(), placement, devices)
    return Engine(config, parameters, placement, devices, dtypes)


def carry_bytes(batch: int) -> int:
    """Bytes per device of what a decode step takes beside weights and cache: `engine.Carry`."""
    tokens_lengths_and_sequences, index, seed = 3 * 4 * batch, 4, 8
    return tokens_lengths_and_sequences + index + seed
