"""Experts beside shared ones in a GGUF file of GLM-4.5, and the layer that predicts further tokens.

That arrays are the folder's is in tests/model/test_gguf_families.py.
"""

import numpy as np
import pytest

from model.weights import WeightsError
from model.weights.gguf import read_config, read_parameters
from model.weights.gguf_file import GGUFFile
from sharding.quantization import QUANTIZATIONS, QuantizedArray
from tests.family_cases import FOLDER
from tests.gguf_families import write_gguf


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    write_gguf(FOLDER / "glm4_moe", path)
    return path


def test_a_layer_that_predicts_further_tokens_is_left_out(path):
    file = GGUFFile(path)
    assert (
        file.metadata["glm4moe.block_count"] == 4 and "blk.3.nextn.eh_proj.weight" in file.tensors
    )
    config = read_config(file)
    assert config.layers == 3
    assert {p[1] for p, _ in read_parameters(file, config) if p[0] == "layers"} == {0, 1, 2}


def test_a_file_without_that_layer_is_the_same_model(path):
    file, whole = GGUFFile(path), read_config(GGUFFile(path))
    for name in [name for name in file.tensors if name.startswith("blk.3.")]:
        del file.tensors[name]
    del file.metadata["glm4moe.nextn_predict_layers"]
    file.metadata["glm4moe.block_count"] = 3
    assert read_config(file) == whole


def test_a_layer_of_which_no_key_says_that_it_predicts_is_refused(path):
    file = GGUFFile(path)
    del file.metadata["glm4moe.nextn_predict_layers"]
    with pytest.raises(WeightsError, match=r"4 left over .*'blk\.3\.nextn\.eh_proj\.weight'"):
        read_config(file)


def test_the_width_of_layers_without_experts_is_asked_for_by_name(path):
    """The width of experts does not stand in for it."""
    file = GGUFFile(path)
    del file.metadata["glm4moe.feed_forward_length"]
    with pytest.raises(WeightsError, match=r"feed_forward_length' .* is missing"):
        read_config(file)


@pytest.mark.parametrize("further", [4, -1])
def test_more_such_layers_than_there_are_is_refused(path, further):
    file = GGUFFile(path)
    file.metadata["glm4moe.nextn_predict_layers"] = further
    with pytest.raises(WeightsError, match=f"nextn_predict_layers' .* is {further}, of 4 layers"):
        read_config(file)


def test_queries_have_a_norm_where_the_file_has_its_tensors(path):
    """GLM-4.5-Air has none, and no key says so."""
    file = GGUFFile(path)
    assert read_config(file).query_key_norm
    for name in [name for name in file.tensors if "_norm" in name and "attn_" in name]:
        if "attn_q" in name or "attn_k" in name:
            del file.tensors[name]
    assert not read_config(file).query_key_norm


def test_what_a_file_leaves_out_of_its_router_is_what_the_architecture_has(path):
    file = GGUFFile(path)
    for key in ("expert_group_count", "expert_group_used_count", "expert_gating_func"):
        del file.metadata[f"glm4moe.{key}"]
    routing = read_config(file).routing
    assert (routing.score, routing.groups, routing.chosen_groups) == ("sigmoid", 1, 1)
    assert routing.bias and routing.scale == 1.5


@pytest.mark.parametrize(
    ("name", "stored", "wanted"),
    [("glm4_moe", "Q4_1", "int4"), ("llama4_scout", "Q8_0", "int8_grouped")],
)
def test_matrices_in_few_bits_stay_in_them(name, stored, wanted, tmp_path):
    """In the order of the model, code by code; rows of 24 numbers are no whole blocks."""
    write_gguf(FOLDER / name, tmp_path / "m.gguf", stored)
    file = GGUFFile(tmp_path / "m.gguf")
    config = read_config(file)
    plain = dict(read_parameters(file, config))
    kept = {
        ("layers", 1, *names): QUANTIZATIONS[wanted]
        for names in (
            ("attention", "query"),
            ("attention", "key_value"),
            ("mlp", "gate_up"),
            ("mlp", "down"),
            ("shared", "gate_up"),
        )
    }
    found = dict(read_parameters(file, config, kept))
    few = {each for each, part in found.items() if isinstance(part, QuantizedArray)}
    assert few == kept.keys() - {("layers", 1, "mlp", "down")}
    for each in few:
        part = found[each]
        groups = part.values.astype(np.float32).reshape(*part.scales.shape, -1)
        numbers = groups * part.scales[..., None]
        if part.offsets is not None:
            numbers += part.offsets[..., None]
        np.testing.assert_array_equal(numbers.reshape(plain[each].shape), plain[each])
