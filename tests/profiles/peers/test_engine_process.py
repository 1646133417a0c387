"""Processes in which peers are timed; tests of the times themselves are in tests/speed."""

import os
from pathlib import Path

import gguf
import numpy as np
import pytest

from model.weights.gguf_file import GGUFFile
from profiles.compiled.compiler import environment
from profiles.measured import peer_llama_cpp, peer_process, peer_transformers
from sharding.error_types import UsageError

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("peer", [peer_llama_cpp, peer_transformers])
def test_a_peer_starts_beside_the_project_and_says_what_is_missing(peer, tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with pytest.raises(UsageError, match=r"exit code is 2 .*absent\.gguf, which is not a file"):
        peer.measure(tmp_path / "absent.gguf", context=8, batch=1)


def test_other_processes_find_the_project():
    assert environment()["PYTHONPATH"].split(os.pathsep)[0] == str(ROOT)


def test_a_file_becomes_one_of_float32_with_the_same_values(tmp_path):
    values = np.arange(128, dtype=np.float32).reshape(2, 64) / 64
    writer = gguf.GGUFWriter(tmp_path / "stored.gguf", "llama")
    writer.add_uint32("llama.block_count", 3)
    writer.add_array("some.names", ["a", "b"])
    kind = gguf.GGMLQuantizationType.Q8_0
    writer.add_tensor("weight", gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    stored = GGUFFile(tmp_path / "stored.gguf")
    peer_llama_cpp.write_float32(stored.path, tmp_path / "plain.gguf")
    plain = GGUFFile(tmp_path / "plain.gguf")
    tensor = gguf.GGUFReader(tmp_path / "plain.gguf").tensors[0]
    assert tensor.tensor_type == gguf.GGMLQuantizationType.F32
    np.testing.assert_array_equal(plain.read("weight"), stored.read("weight"))
    assert plain.metadata["llama.block_count"] == 3
    assert list(plain.metadata["some.names"]) == ["a", "b"]


def test_samples_are_summed_up():
    times = peer_process.summary([3.0, 1.0, 2.0])
    assert times["samples_s"] == [3.0, 1.0, 2.0] and times["median_s"] == 2.0
