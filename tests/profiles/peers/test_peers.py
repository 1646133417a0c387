"""What engines read: plain GGUF files, shapes of Llama; and live ones with a tiny model."""

import dataclasses
import json

import gguf
import numpy as np
import pytest

from model.catalog import find_model
from model.weights.gguf_file import GGUFFile
from model.weights.gguf_parts import open_model
from model.weights.huggingface_config import read_config
from profiles.peers import hugging_face, llama_cpp
from profiles.peers.comparison import compare, engine_rows, random_prompts
from profiles.peers.engine_process import EngineError, EngineProcess
from profiles.peers.messages import Job, Work
from profiles.peers.shapes import llama_fields
from sharding.error_types import UsageError
from tests.family_cases import FOLDER


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_files_become_one_of_a_plain_type_with_the_same_values(tmp_path, dtype):
    values = np.arange(128, dtype=np.float32).reshape(2, 64) / 64
    writer = gguf.GGUFWriter(tmp_path / "stored.gguf", "llama", split_max_tensors=1)
    writer.add_uint32("llama.block_count", 3)
    writer.add_array("some.names", ["a", "b"])
    kind = gguf.GGMLQuantizationType.Q8_0
    writer.add_tensor("weight", gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.add_tensor("norm", np.ones(3, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    stored = open_model(tmp_path / "stored-00001-of-00002.gguf")
    plain = GGUFFile(llama_cpp.write_plain(stored.path, tmp_path / "plain.gguf", dtype))
    kinds = {each.name: each.tensor_type.name for each in gguf.GGUFReader(plain.path).tensors}
    assert kinds == {"weight": {"float32": "F32", "bfloat16": "BF16"}[dtype], "norm": "F32"}
    precision = 0 if dtype == "float32" else 2**-8
    np.testing.assert_allclose(plain.read("weight"), stored.read("weight"), rtol=precision)
    assert plain.metadata["llama.block_count"] == 3
    assert list(plain.metadata["some.names"]) == ["a", "b"]
    assert not any(key.startswith("split.") for key in plain.metadata)
    assert llama_cpp._stored(stored.path) == "Q8_0"
    with pytest.raises(UsageError, match="GGUF file in 2 parts, of which transformers reads one; "):
        hugging_face.refuse_parts(stored.path)
    hugging_face.refuse_parts(plain.path)


def test_shapes_as_those_of_a_llama_are_read_back_the_same(tmp_path):
    config = find_model("llama3-8b")
    fields = llama_fields(config)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **fields}))
    read = dataclasses.replace(read_config(tmp_path)[0], name=config.name)
    assert read == dataclasses.replace(config, rotary_base=read.rotary_base)  # turns no shape


@pytest.mark.parametrize("name", ["palm-540b", "mixtral-8x7b", "gemma2-9b"])
def test_shapes_of_another_kind_are_no_llama(name):
    assert llama_fields(find_model(name)) is None


@pytest.mark.parametrize("form", ["orbax", "huggingface"])
def test_llama_cpp_takes_gguf_files_alone(form):
    pytest.importorskip("xllamacpp")
    with pytest.raises(EngineError, match="no GGUF file, which"):
        EngineProcess(Job(engine="llama.cpp", model="a", form=form, dtype="float32"))


@pytest.mark.parity
def test_transformers_decodes_the_same_text():
    pytest.importorskip("transformers")
    family = "llama3"
    config, _ = read_config(FOLDER / family)
    work = Work(random_prompts(config.vocabulary, 2, 9), 8)
    names = "floorline", "transformers", "transformers-generate", "transformers-compiled"
    jobs = [
        Job(name, str(FOLDER / family), "huggingface", batch=2, slots=17, threads=1)
        for name in names
    ]
    rows = engine_rows(compare(jobs, work, 1), 2)
    for row in rows[:3]:
        assert (row["status"], row.get("same_text")) == ("ok", True), row
    assert rows[3].get("same_text", True), rows[3]  # it may lack a C++ compiler


@pytest.mark.parity
def test_random_weights_are_timed_in_the_shapes_of_the_catalogue():
    pytest.importorskip("transformers")
    fields = llama_fields(find_model("tiny"))
    jobs = [
        Job(name, "tiny", "random", slots=17, threads=1, config=fields)
        for name in ("floorline", "transformers")
    ]
    for row in engine_rows(compare(jobs, Work([[1, 2, 3]], 4), 1), 1):
        assert row["status"] == "ok" and row["step_s"]["median"] > 0, row
        assert "same_text" not in row
