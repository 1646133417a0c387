"""A GGUF file and a Hugging Face folder of one model give the same configuration and arrays.

The folders are those whose logits and text are held to transformers in tests/decode.
"""

import dataclasses
import json

import numpy as np
import pytest

from model.config_checks import ConfigError
from model.weights import WeightsError
from model.weights.gguf import read_config, read_parameters
from model.weights.gguf_config import ARCHITECTURES
from model.weights.gguf_file import GGUFFile
from model.weights.huggingface import HuggingFaceFolder
from tests import gguf_families
from tests.family_cases import FOLDER, GGUF_CASES

# What no key of the format says, so that a file has it from its architecture alone.
UNSAID = {"gemma2": {"attention_scale"}, "gemma3": {"attention_scale", "windows"}}


@pytest.mark.parametrize("case", GGUF_CASES)
def test_a_gguf_file_is_the_model_of_the_folder(case, tmp_path):
    folder = HuggingFaceFolder(FOLDER / case)
    gguf_families.write_gguf(FOLDER / case, tmp_path / "m.gguf")
    file = GGUFFile(tmp_path / "m.gguf")
    config = read_config(file)
    for field in dataclasses.fields(config):
        if field.name not in {"name", "rotary_factors", *UNSAID.get(case, ())}:
            ours, theirs = getattr(config, field.name), getattr(folder.config, field.name)
            near = pytest.approx(theirs, rel=1e-6) if type(theirs) is float else theirs
            assert ours == near, field.name
    ours, theirs = config.rotary_factors or 1.0, folder.config.rotary_factors or 1.0
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    found = dict(read_parameters(file, config))
    expected = dict(folder.read_parameters(folder.config))
    assert found.keys() == expected.keys()
    for path, array in expected.items():
        whole = array[tuple(slice(None) for _ in array.shape)]
        np.testing.assert_array_equal(found[path], whole, err_msg=str(path))


def test_every_architecture_is_that_of_a_family():
    types = {
        json.loads((FOLDER / case / "config.json").read_text())["model_type"] for case in GGUF_CASES
    }
    assert {gguf_families.ARCHITECTURES[kind] for kind in types} == set(ARCHITECTURES)


@pytest.mark.parametrize(
    ("case", "layers", "scale"),
    [("gemma2", 46, 8**-0.5), ("gemma2", 3, 16**-0.5), ("gemma3", 62, 8**-0.5)],
)
def test_the_largest_gemmas_scale_their_scores_by_their_width(case, layers, scale, tmp_path):
    """32 wide over 4 heads is 8; the head size is 16."""
    gguf_families.write_gguf(FOLDER / case, tmp_path / "m.gguf")
    file = GGUFFile(tmp_path / "m.gguf")
    for name, info in list(file.tensors.items()):
        if name.startswith("blk.0."):
            names = [name.replace("blk.0.", f"blk.{n}.") for n in range(layers)]
            file.tensors.update(dict.fromkeys(names, info))
    file.metadata[f"{case}.block_count"] = layers
    assert read_config(file).attention_scale == pytest.approx(scale)


def test_gemma_3_sees_all_in_every_sixth_layer_as_its_file_may_say(tmp_path):
    gguf_families.write_gguf(FOLDER / "gemma3", tmp_path / "m.gguf")
    file = GGUFFile(tmp_path / "m.gguf")
    assert read_config(file).windows == (8, 8, 8, 8)
    for name, info in list(file.tensors.items()):
        if name.startswith("blk.0."):
            more = [name.replace("blk.0.", f"blk.{n}.") for n in range(4, 13)]
            file.tensors.update(dict.fromkeys(more, info))
    file.metadata |= {"gemma3.block_count": 13, "gemma3.attention.sliding_window_pattern": 6}
    assert read_config(file).windows == ((8,) * 5 + (None,)) * 2 + (8,)
    file.metadata["gemma3.attention.sliding_window_pattern"] = 4
    with pytest.raises(WeightsError, match="sliding_window_pattern"):
        read_config(file)
    del file.metadata["gemma3.attention.sliding_window_pattern"]
    file.metadata["gemma3.rope.freq_base_swa"] = 500.0
    assert read_config(file).local_rotary_base == 500.0


def test_gemma_2_has_its_window_and_caps_where_the_file_leaves_them_out(tmp_path):
    gguf_families.write_gguf(FOLDER / "gemma2", tmp_path / "m.gguf")
    file = GGUFFile(tmp_path / "m.gguf")
    for key in ("attention.sliding_window", "attn_logit_softcapping", "final_logit_softcapping"):
        del file.metadata[f"gemma2.{key}"]
    file.metadata["gemma2.context_length"] = 8192
    config = read_config(file)
    assert config.windows == (4096, None, 4096)
    assert (config.attention_softcap, config.logit_softcap) == (50.0, 30.0)


def test_keys_of_a_vision_tower_are_not_those_of_the_language_model(tmp_path):
    gguf_families.write_gguf(FOLDER / "gemma3", tmp_path / "m.gguf")
    file = GGUFFile(tmp_path / "m.gguf")
    file.metadata |= {"gemma3.vision.block_count": 27, "gemma3.mm.tokens_per_image": 256}
    assert read_config(file).layers == 4


@pytest.mark.parametrize("case", GGUF_CASES)
def test_no_size_crashes_the_reader(case, tmp_path):
    gguf_families.write_gguf(FOLDER / case, tmp_path / "m.gguf")
    good = GGUFFile(tmp_path / "m.gguf")
    refused = 0
    sizes = [key for key, value in good.metadata.items() if isinstance(value, int | float)]
    for key in sizes:
        for value in (0, -32, 46, 2**31, 0.5, float("nan"), "x", [1], True):
            file = GGUFFile(tmp_path / "m.gguf")
            file.metadata[key] = value
            try:
                read_config(file)
            except (WeightsError, ConfigError) as error:
                refused += 1
                assert "\n" not in str(error) and "; " in str(error)
    assert refused > 5 * len(sizes)  # of nine values; a base of 46 or a window of 0 may be meant
