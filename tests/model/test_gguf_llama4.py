"""What a GGUF file of Llama 4 says, and what its architecture stands for.

That arrays are the folder's is in tests/model/test_gguf_families.py.
"""

import dataclasses
import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from decode.load import find_source
from model.config_checks import ConfigError
from model.dtypes import Dtypes
from model.weights import WeightsError
from model.weights.gguf import read_config
from model.weights.gguf_file import GGUFFile
from sharding.catalog import LAYOUTS
from sharding.mesh import parse_mesh
from tests.family_cases import FOLDER
from tests.gguf_families import write_gguf


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf")
    for name in ("scout", "maverick"):
        write_gguf(FOLDER / f"llama4_{name}", folder / f"{name}.gguf")
    return folder


def read(files, name="scout", **changes):
    """The configuration of a file whose metadata has these changes; `__` stands for a dot."""
    file = GGUFFile(files / f"{name}.gguf")
    file.metadata |= {f"llama4.{key.replace('__', '.')}": value for key, value in changes.items()}
    return read_config(file)


def test_chunks_growth_and_layers_without_rotation_are_those_of_released_models(files):
    config = read(files)
    assert config.chunked and config.windows == (8192, 8192, 8192, None)
    assert config.rotary_layers == (True, True, True, False)
    assert config.query_growth == (8192, 0.1)


def test_only_a_model_of_128_experts_has_queries_without_a_norm(files):
    """No key of llama.cpp's converter says it: of the released models Maverick has none."""
    assert read(files).unit_queries_keys
    file = GGUFFile(files / "maverick.gguf")
    assert read_config(file).unit_queries_keys
    for name, info in list(file.tensors.items()):
        if "_exps" in name or "gate_inp" in name:
            file.tensors[name] = dataclasses.replace(info, shape=(128, *info.shape[1:]))
    file.metadata["llama4.expert_count"] = 128
    assert not read_config(file).unit_queries_keys


def test_a_file_may_say_the_length_of_chunks_and_whether_queries_are_normed(files):
    config = read(files, attention__chunk_size=8, use_qk_norm=False)
    assert config.windows == (8, 8, 8, None) and not config.unit_queries_keys


def test_experts_are_in_every_so_many_th_layer(files):
    assert read(files, "maverick").expert_layers == (False, True, False, True)
    assert read(files).expert_layers is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention__sliding_window": 4096}, "is 4096, where that of chunks is 8192"),
        ({"attention__sliding_window": 0}, "is 0, where that of chunks is 8192"),
        ({"attention__chunk_size": -8}, "attention.chunk_size' .* is -8; this is not supported"),
        ({"attention__sliding_window_pattern": 2}, "is 2, where that of the architecture is 4"),
        ({"attention__sliding_window_pattern": np.array([True] * 4)}, "sliding_window_pattern'"),
        ({"interleave_moe_layer_step": 0}, "interleave_moe_layer_step' .* is 0, of 4 layers"),
        ({"interleave_moe_layer_step": 5}, "interleave_moe_layer_step' .* is 5, of 4 layers"),
        ({"interleave_moe_layer_step": 2}, "tensor list of scout.gguf is 6 missing"),
        ({"expert_weights_scale": 2.5}, "expert_weights_scale' .* is 2.5; this is not supported"),
        ({"attention__head_dim": 16}, "head_dim' .* is 16; this is not"),  # of Ollama's files
        ({"expert_count": 0}, "experts_per_token of .* is 2; it must be 0 to its 0 experts"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(files, changes, message):
    with pytest.raises((WeightsError, ConfigError), match=message):
        read(files, **changes)


def test_the_pattern_of_layers_may_be_a_list(files):
    pattern = np.array([True, True, True, False])
    assert read(files, attention__sliding_window_pattern=pattern) == read(files)


@pytest.mark.slow
def test_a_file_that_says_its_chunks_has_the_logits_of_the_folder(tmp_path):
    shutil.copytree(FOLDER / "llama4_scout", tmp_path / "folder")
    path = tmp_path / "folder" / "config.json"
    config = json.loads(path.read_text())
    config["text_config"] |= {"floor_scale": 8192, "attn_scale": 0.1}
    path.write_text(json.dumps(config))
    write_gguf(tmp_path / "folder", tmp_path / "m.gguf")
    logits, layout = [], LAYOUTS["weight_stationary_1d"]
    for name in ("m.gguf", "folder"):
        source = find_source(str(tmp_path / name))
        if name == "m.gguf":
            source.file.metadata["llama4.attention.chunk_size"] = 8
            source = dataclasses.replace(source, config=read_config(source.file))
        engine = source.engine(layout, parse_mesh("1"), Dtypes(jnp.float32))
        logits.append(engine.forward(np.arange(3, 40, dtype=np.int32)[None]))
    np.testing.assert_allclose(*logits, atol=1e-5 * np.abs(logits[1]).max())
