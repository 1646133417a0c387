"""The reader of safetensors: every part of every tensor, and every way a folder can be wrong."""

import json
import random
import struct

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from model.weights import WeightsError
from model.weights.safetensors_files import INDEX, SINGLE, SafetensorsFiles

TENSORS = {
    "a": np.arange(24, dtype=np.float32).reshape(4, 6),
    "b": np.arange(-5, 5, dtype=np.float16),
    "c": np.arange(12).reshape(3, 4).astype(ml_dtypes.bfloat16),
    "empty": np.zeros((0, 3), np.float32),
}


def split(folder, tensors=TENSORS):
    """One file per tensor, with their index."""
    places = {name: f"model-{name}.safetensors" for name in tensors}
    for name, file in places.items():
        save_file({name: tensors[name]}, folder / file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return places


def write_raw(path, header: bytes, data: bytes = b""):
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


@pytest.mark.parametrize("many", [False, True])
def test_every_tensor_is_read_as_it_was_saved(tmp_path, many):
    split(tmp_path) if many else save_file(TENSORS, tmp_path / SINGLE)
    files = SafetensorsFiles(tmp_path)
    assert files.tensors.keys() == TENSORS.keys()
    for name, values in TENSORS.items():
        np.testing.assert_array_equal(files.read(name), values)
        assert files.read(name).dtype == values.dtype


def test_any_part_in_any_view_is_what_numpy_would_cut_out(tmp_path):
    values = np.arange(120, dtype=np.float32).reshape(10, 12)
    save_file({"a": values}, tmp_path / SINGLE)
    files = SafetensorsFiles(tmp_path)
    draw = random.Random(0)
    for shape in ((10, 12), (120,), (2, 5, 3, 4), (1, 10, 12)):
        for _ in range(25):
            ends = [sorted(draw.choices(range(size + 1), k=2)) for size in shape]
            index = tuple(slice(*pair) for pair in ends)
            np.testing.assert_array_equal(
                files.read("a", shape, index), values.reshape(shape)[index]
            )


def test_an_unknown_tensor_or_a_view_of_another_size_is_refused(tmp_path):
    save_file(TENSORS, tmp_path / SINGLE)
    files = SafetensorsFiles(tmp_path)
    with pytest.raises(WeightsError, match="tensor 'x' is missing"):
        files.read("x")
    with pytest.raises(WeightsError, match=r"\[4, 6\], not to be viewed as \[5, 5\]"):
        files.read("a", (5, 5))


def test_a_shard_missing_from_the_folder_is_named(tmp_path):
    places = split(tmp_path)
    (tmp_path / places["b"]).unlink()
    with pytest.raises(WeightsError, match=r"model-b\.safetensors.* missing"):
        SafetensorsFiles(tmp_path)


def test_one_tensor_in_two_files_is_refused(tmp_path):
    places = split(tmp_path)
    save_file({"a": TENSORS["a"], "b": TENSORS["b"]}, tmp_path / places["b"])
    with pytest.raises(WeightsError, match=r"tensor 'a' of .* also in"):
        SafetensorsFiles(tmp_path)


def test_an_index_that_lies_about_where_tensors_are_is_refused(tmp_path):
    places = split(tmp_path)
    wrong = [
        places | {"a": places["b"], "b": places["a"]},
        places | {"more": places["a"]},
        places | {"a": "../model-a.safetensors"},
        {name: file for name, file in places.items() if name != "a"} | {"b": places["a"]},
    ]
    for weight_map in wrong:
        (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(WeightsError):
            SafetensorsFiles(tmp_path)


def test_rotary_frequencies_of_old_versions_are_passed_over_in_files_and_index(tmp_path):
    """Whether the index lists them or not, whichever file has them, and if none or two have."""
    frequencies = "model.layers.0.self_attn.rotary_emb.inv_freq"
    places = split(tmp_path)
    for listed, files in (({}, "a"), ({frequencies: places["a"]}, ""), ({}, "ab")):
        for name in files:
            tensors = {name: TENSORS[name], frequencies: np.ones(8, np.float32)}
            save_file(tensors, tmp_path / places[name])
        (tmp_path / INDEX).write_text(json.dumps({"weight_map": places | listed}))
        assert SafetensorsFiles(tmp_path).tensors.keys() == TENSORS.keys()
        split(tmp_path)


def test_an_index_and_files_may_disagree_on_the_unembedding(tmp_path):
    """In tied models it is the embedding once more; one that is needed is missed by name later."""
    name = "lm_head.weight"
    places = split(tmp_path)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": places | {name: places["a"]}}))
    assert SafetensorsFiles(tmp_path).tensors.keys() == TENSORS.keys()
    split(tmp_path)
    save_file({"a": TENSORS["a"], name: TENSORS["a"]}, tmp_path / places["a"])
    assert SafetensorsFiles(tmp_path).tensors.keys() == {*TENSORS, name}


@pytest.mark.parametrize(
    ("entry", "word"),
    [
        ({"dtype": "F4", "shape": [2], "data_offsets": [0, 8]}, "dtype"),
        ({"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}, "data_offsets"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 16]}, "data_offsets"),
        ({"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}, "shape"),
        ({"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}, "shape"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}, "byte"),
        ({"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "size"),
        ({"dtype": "F32", "shape": [2**62, 4, 0], "data_offsets": [0, 0]}, "too large"),
        ([], "JSON object"),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path, entry, word):
    write_raw(tmp_path / SINGLE, json.dumps({"a": entry}).encode(), bytes(8))
    with pytest.raises(WeightsError, match=word):
        SafetensorsFiles(tmp_path)


@pytest.mark.parametrize(
    "header", [b"{", b"[]", b"\xff", b'{"a": 1, "a": 2}', b'{"a": NaN}', b"[" * 100_000]
)
def test_a_header_that_is_no_header_is_refused(tmp_path, header):
    write_raw(tmp_path / SINGLE, header)
    with pytest.raises(WeightsError):
        SafetensorsFiles(tmp_path)


def test_pickled_weights_and_empty_folders_are_refused_with_the_remedy(tmp_path):
    with pytest.raises(WeightsError, match="neither"):
        SafetensorsFiles(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(WeightsError, match="convert the model to safetensors"):
        SafetensorsFiles(tmp_path)


@pytest.mark.parametrize(
    ("beside", "message"),
    [
        ("quantize_config.json", r"quantized as quantize_config.json says; .* BF16, F16 or F32"),
        ("notes.txt", f"'gptq-4bit.safetensors', which no {INDEX} names"),
    ],
)
def test_weights_under_another_name_are_named(tmp_path, beside, message):
    save_file(TENSORS, tmp_path / "gptq-4bit.safetensors")
    (tmp_path / beside).write_text("{}")
    with pytest.raises(WeightsError, match=message):
        SafetensorsFiles(tmp_path)


def test_a_file_cut_after_its_header_was_read_is_told(tmp_path):
    save_file(TENSORS, tmp_path / SINGLE)
    files = SafetensorsFiles(tmp_path)
    raw = (tmp_path / SINGLE).read_bytes()
    (tmp_path / SINGLE).write_bytes(raw[: len(raw) // 2])
    with pytest.raises(WeightsError):
        for name in TENSORS:
            files.read(name)


def test_no_damaged_file_crashes_or_gives_other_shapes(tmp_path):
    save_file(TENSORS, tmp_path / SINGLE)
    good, draw = (tmp_path / SINGLE).read_bytes(), random.Random(0)
    header = 8 + struct.unpack("<Q", good[:8])[0]
    refused = 0
    for trial in range(400):
        raw = bytearray(good)
        if trial % 4 == 0:
            del raw[draw.randrange(len(raw)) :]
        else:
            raw[draw.randrange(header)] ^= 1 << draw.randrange(8)
        (tmp_path / SINGLE).write_bytes(raw)
        try:
            files = SafetensorsFiles(tmp_path)
            for name in files.tensors:
                files.read(name)
        except WeightsError as error:
            refused += 1
            assert "\n" not in str(error)
        else:
            # Only names, equal-sized dtypes or equal products of sizes can change unseen here;
            # the model's own list of names, shapes and dtypes is what sees those.
            assert bytes(raw) != good
    assert refused > 300
