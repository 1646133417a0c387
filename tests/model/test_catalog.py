"""The catalogue: published shapes have their published parameter counts."""

import jax.numpy as jnp
import pytest

from model.catalog import CATALOG, find_model
from model.config import ConfigError
from model.parameters import count, declarations
from model.transformer import Transformer


@pytest.mark.parametrize("name", [name for name, entry in CATALOG.items() if entry.parameters])
def test_parameter_counts_equal_the_published_ones(name):
    entry = CATALOG[name]
    counted = count(Transformer(entry.config, jnp.bfloat16))
    assert abs(counted - entry.parameters) < entry.digit  # equal, where the count is exact


def test_palm_is_multi_query_with_parallel_blocks():
    for name in ("palm-8b", "palm-62b", "palm-540b"):
        config = find_model(name)
        assert config.kv_heads == 1 and config.parallel_block and config.norm == "layer"
    paths = declarations(Transformer(find_model("palm-8b"), jnp.bfloat16))
    assert ("layers", 0, "mlp_norm", "scale") not in paths


def test_an_unknown_model_is_refused_with_the_names():
    with pytest.raises(ConfigError, match=r"model is 'nosuch'; .*smollm2-135m"):
        find_model("nosuch")
