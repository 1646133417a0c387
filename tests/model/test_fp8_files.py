"""Folders in fp8 are the numbers that their codes and scales stand for, whole and in part."""

import json
import shutil

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from decode.load import find_source
from model.weights import WeightsError
from model.weights.fp8_files import Fp8Files, block_of
from model.weights.huggingface import HuggingFaceFolder
from model.weights.safetensors_files import SafetensorsFiles
from tests.family_cases import FOLDER

FP8 = ml_dtypes.float8_e4m3fn
BLOCK = (8, 16)
CASE = "deepseek_v3"


def in_blocks(array: np.ndarray, block: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Codes, and for each block the number to multiply them with."""
    rows, columns = array.shape
    scales = np.zeros([-(-n // b) for n, b in zip(array.shape, block, strict=True)], np.float32)
    codes = np.zeros(array.shape, FP8)
    for i, j in np.ndindex(scales.shape):
        part = np.s_[
            i * block[0] : min((i + 1) * block[0], rows),
            j * block[1] : min((j + 1) * block[1], columns),
        ]
        scales[i, j] = np.abs(array[part]).max() / 448
        codes[part] = (array[part] / scales[i, j]).astype(FP8)
    return codes, scales


def write(folder, tensors: dict[str, np.ndarray], block=BLOCK, end="_scale_inv") -> None:
    """The fixture's folder with these tensors, and a configuration that says how they are."""
    shutil.copytree(FOLDER / CASE, folder)
    save_file(tensors, folder / "model.safetensors")
    path = folder / "config.json"
    values = json.loads(path.read_text())
    values["quantization_config"] = {
        "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
        "weight_block_size": block and list(block),
    }  # fmt: skip
    path.write_text(json.dumps(values))


def test_a_folder_in_blocks_of_fp8_is_read_as_the_numbers_it_stands_for(tmp_path):
    """With the layer that predicts further tokens, which DeepSeek's files have and is left out."""
    stored, plain = {}, {}
    for name, array in load_file(FOLDER / CASE / "model.safetensors").items():
        stored[name] = plain[name] = array
        if array.ndim == 2 and "proj" in name:
            codes, scales = in_blocks(array, BLOCK)
            stored[name], stored[f"{name}_scale_inv"] = codes, scales
            spread = np.repeat(np.repeat(scales, BLOCK[0], 0), BLOCK[1], 1)
            plain[name] = codes.astype(np.float32) * spread[: array.shape[0], : array.shape[1]]
    further = {f"model.layers.3.{n}.weight": np.ones((4, 4), np.float32) for n in ("eh_proj", "x")}
    write(tmp_path / "fp8", stored | further)
    shutil.copytree(FOLDER / CASE, tmp_path / "plain")
    save_file(plain, tmp_path / "plain/model.safetensors")
    found, expected = (HuggingFaceFolder(tmp_path / name) for name in ("fp8", "plain"))
    assert found.dtype == "bfloat16"
    arrays = dict(expected.read_parameters(expected.config))
    for path, array in found.read_parameters(found.config):
        other = arrays.pop(path)
        whole = (slice(None),) * len(array.shape)
        np.testing.assert_array_equal(array[whole], other[whole])
        part = tuple(slice(n // 3, n // 3 + max(n // 2, 1)) for n in array.shape)
        np.testing.assert_array_equal(array[part], other[part])
    assert not arrays


@pytest.mark.parametrize("part", [None, "text_config"])
def test_blocks_are_those_of_the_model_or_of_its_text_part(tmp_path, part):
    said = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [8, 16]}}
    (tmp_path / "config.json").write_text(json.dumps({part: said} if part else said))
    assert block_of(tmp_path / "config.json") == (8, 16)


@pytest.mark.parametrize(
    ("shape", "end"), [((), "_scale"), ((1,), "_scale_inv"), ((6, 1), "_scale")]
)
def test_one_scale_is_of_a_whole_matrix_or_of_each_row(tmp_path, shape, end):
    codes = np.arange(-12, 12).reshape(6, 4).astype(FP8)
    scales = np.array(np.arange(1, 1 + int(np.prod(shape))) / 8, np.float32).reshape(shape)
    save_file({"w.weight": codes, "w.weight" + end: scales}, tmp_path / "model.safetensors")
    files = Fp8Files(SafetensorsFiles(tmp_path), None)
    np.testing.assert_array_equal(files.read("w.weight"), codes.astype(np.float32) * scales)
    assert [*files.tensors] == ["w.weight"]
    last = files.read("w.weight", (1, 3, 4), (slice(1), slice(1, 3), slice(2)), first=12)
    np.testing.assert_array_equal(last[0], files.read("w.weight")[4:, :2])


def test_scales_of_other_blocks_are_refused(tmp_path):
    codes, scales = in_blocks(np.ones((16, 32), np.float32), (8, 8))
    save_file({"a.weight": codes, "a.weight_scale_inv": scales}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"a.weight have shape \(2, 4\), not \(2, 2\) as blocks"):
        Fp8Files(SafetensorsFiles(tmp_path), BLOCK)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, FP8])
def test_scales_that_are_no_floats_are_refused(tmp_path, dtype):
    """Such as exponents in bytes, which are no numbers to multiply with."""
    codes, scales = in_blocks(np.ones((16, 32), np.float32), BLOCK)
    tensors = {"a.weight": codes, "a.weight_scale_inv": (scales * 1000).astype(dtype)}
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=f"scales of tensor a.weight.*{np.dtype(dtype)}"):
        Fp8Files(SafetensorsFiles(tmp_path), BLOCK)


def test_a_matrix_in_fp8_without_scales_is_told_by_what_is_missing(tmp_path):
    tensors = load_file(FOLDER / CASE / "model.safetensors")
    name = "model.layers.0.self_attn.o_proj.weight"
    write(tmp_path / "fp8", tensors | {name: tensors[name].astype(FP8)})
    with pytest.raises(WeightsError, match=f"{name} is in fp8 without its scales"):
        HuggingFaceFolder(tmp_path / "fp8")


@pytest.mark.parametrize(
    "change", [{"fmt": "e5m2"}, {"weight_block_size": [0, 128]}, {"quant_method": "gptq"}]
)
def test_other_quantized_folders_are_refused_by_name(tmp_path, change):
    write(tmp_path / "other", load_file(FOLDER / CASE / "model.safetensors"))
    path = tmp_path / "other/config.json"
    values = json.loads(path.read_text())
    values["quantization_config"] |= change
    path.write_text(json.dumps(values))
    with pytest.raises(WeightsError, match=r"quantization_config.*not read"):
        find_source(str(tmp_path / "other"))
