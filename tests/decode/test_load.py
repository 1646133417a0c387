"""From a path to an engine: formats that hold one model give one model."""

import dataclasses
import json
import re
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file, save_file

from decode.load import ModelSource, find_source
from decode.tokenizer_files import read_files
from model.catalog import find_model
from model.dtypes import BFLOAT16, FLOAT32, Dtypes
from model.parameters import Parameters
from model.weights import WeightsError, orbax_checkpoint
from model.weights.orbax_checkpoint import MANIFEST, OrbaxFolder, save
from sharding.catalog import LAYOUTS
from sharding.error_types import FloorlineError
from sharding.mesh import parse_mesh
from sharding.quantization import QUANTIZATIONS
from tests.family_cases import CASES, FOLDER
from tests.gguf_samples import write_tiny_gguf
from tests.processes import run_processes
from tests.tokenizers import byte_level

INT8 = QUANTIZATIONS["int8"]
LAYOUT, TWO_D = LAYOUTS["weight_stationary_1d"], LAYOUTS["weight_stationary_2d"]


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=() if case == "gemma2" else pytest.mark.slow) for case in CASES],
)
def test_a_converted_model_gives_the_same_logits(case, tmp_path):
    source = find_source(str(FOLDER / case))
    engine = source.engine(LAYOUT, parse_mesh("1x1"), FLOAT32)
    save(tmp_path / case, source.config, engine.parameters, source.tokenizer_files())
    converted = find_source(str(tmp_path / case))
    assert isinstance(converted.file, OrbaxFolder) and converted.config == source.config
    assert converted.tokenizer is None and converted.stored_dtype() == "float32"
    tokens = np.arange(3, 40, dtype=np.int32)[None]  # as many as in `test_families`: one program
    expected = engine.forward(tokens)
    # The same compiled pass, for the configurations are equal.
    engine.parameters = converted.engine(LAYOUT, parse_mesh("1x1"), FLOAT32).parameters
    np.testing.assert_array_equal(engine.forward(tokens), expected)


@pytest.mark.parametrize("case", ["gemma3", pytest.param("qwen3", marks=pytest.mark.slow)])
def test_a_bfloat16_checkpoint_is_converted_without_losing_a_bit(case, tmp_path):
    """Gemma's norms are stored less one: the scale itself needs more bits than bfloat16 has."""
    shutil.copytree(FOLDER / case, tmp_path / case)
    weights = tmp_path / case / "model.safetensors"
    rounded = {name: a.astype(ml_dtypes.bfloat16) for name, a in load_file(weights).items()}
    save_file(rounded, weights)
    source = find_source(str(tmp_path / case))
    assert source.stored_dtype() == "bfloat16"
    engine = source.engine(LAYOUT, parse_mesh("1x1"), BFLOAT16)
    save(tmp_path / "saved", source.config, engine.parameters)
    tokens = np.arange(3, 23, dtype=np.int32)[None]
    ours, theirs = (
        s.engine(LAYOUT, parse_mesh("1x1"), FLOAT32).forward(tokens)
        for s in (find_source(str(tmp_path / "saved")), source)
    )
    np.testing.assert_array_equal(ours, theirs)


_PROCESS = """
import numpy as np
from decode.load import find_source
from model.dtypes import FLOAT32
from flax.traverse_util import flatten_dict
from model.weights.safetensors_files import SafetensorsFiles
from sharding.catalog import LAYOUTS
from sharding.mesh import parse_mesh
folder, out = ARGUMENTS
source, elements, read = find_source(folder), [0], SafetensorsFiles.read
def counted(*arguments):
    part = read(*arguments)
    elements[0] += part.size
    return part
SafetensorsFiles.read = counted
engine = source.engine(LAYOUTS["weight_stationary_1d"], parse_mesh("8"), FLOAT32)
parts = {
    f"{'.'.join(map(str, path))}@{shard.index}": np.asarray(shard.data)
    for path, array in flatten_dict(engine.parameters).items()
    for shard in array.addressable_shards
}
np.savez(f"{out}/{PROCESS}.npz", elements=elements[0], **parts)
"""


def test_each_process_reads_its_part_of_a_folder_and_no_more(tmp_path):
    run_processes(_PROCESS, FOLDER / "gemma3", tmp_path)
    engine = find_source(str(FOLDER / "gemma3")).engine(LAYOUT, parse_mesh("1x1"), FLOAT32)
    whole = {
        ".".join(map(str, path)): np.asarray(a)
        for path, a in flatten_dict(engine.parameters).items()
    }
    total = sum(array.size for array in whole.values())
    for number in range(2):
        found = dict(np.load(tmp_path / f"{number}.npz"))
        assert found.pop("elements") < 0.55 * total
        for key, part in found.items():
            name, index = key.split("@")
            np.testing.assert_array_equal(part, whole[name][eval(index, {"slice": slice})])


def test_a_gguf_tokenizer_goes_with_the_converted_weights(smollm2, tiny_engine, tmp_path):
    engine = tiny_engine()  # whose weights are few; no tokenizer looks at them
    save(tmp_path / "m", engine.config, engine.parameters, smollm2.tokenizer_files())
    converted = find_source(str(tmp_path / "m"))
    messages = [{"role": "user", "content": "Why is the sky blue? 3.14 ¡né 你好"}]
    ours, theirs = converted.tokenizer, smollm2.tokenizer
    assert ours.chat(messages) == theirs.chat(messages)
    assert ours.encode(ours.chat(messages), special=True) == theirs.encode(
        theirs.chat(messages), special=True
    )
    assert ours.stop_ids == theirs.stop_ids


def test_further_chat_templates_go_with_the_converted_weights(tiny_engine, tmp_path):
    folder, engine = tmp_path / "folder", tiny_engine()
    (folder / "additional_chat_templates").mkdir(parents=True)
    (folder / "additional_chat_templates/rag.jinja").write_text("{{ messages[0].content }}")
    (folder / "chat_template.jinja").write_text("default")
    (folder / "tokenizer.json").write_text(byte_level().to_str())
    save(tmp_path / "m", engine.config, engine.parameters, read_files(folder))
    converted = find_source(str(tmp_path / "m"))
    hello = [{"role": "user", "content": "hello"}]
    assert converted.tokenizer.chat(hello) == "default"
    assert converted.tokenizer.with_template("rag").chat(hello) == "hello"
    assert converted.tokenizer_files() == read_files(folder)  # to be converted once more


def test_progress_tells_of_every_byte(tmp_path):
    done, totals = [], []

    class Watch:
        def __init__(self, total):
            totals.append(total)

        def __enter__(self):
            return done.append

        def __exit__(self, *_):
            pass

    source = find_source(str(FOLDER / "qwen2"))
    engine = source.engine(LAYOUT, parse_mesh("1x2"), FLOAT32, progress=Watch)
    assert sum(done) == totals[0] == 4 * sum(a.size for a in _leaves(engine.parameters))
    save(tmp_path / "m", source.config, engine.parameters)
    done.clear()
    find_source(str(tmp_path / "m")).engine(LAYOUT, parse_mesh("1x2"), FLOAT32, progress=Watch)
    assert sum(done) == totals[1] > 0


def _leaves(tree):
    for value in tree.values():
        yield from _leaves(value) if isinstance(value, dict) else (value,)


def test_a_folder_that_is_no_model_is_refused_by_what_is_missing(tmp_path):
    with pytest.raises(Exception, match=r"config\.json"):
        find_source(str(tmp_path))
    shutil.copy(FOLDER / "qwen2" / "config.json", tmp_path)
    with pytest.raises(Exception, match="safetensors"):
        find_source(str(tmp_path))


@pytest.mark.parametrize(
    ("file", "remedy"),
    [
        ("tokenizer.model", "with transformers and sentencepiece: .*save_pretrained"),
        ("tokenizer.model.v3", "with transformers and sentencepiece"),
        ("vocab.json", "with transformers: python -c .*from_pretrained"),
        ("tekken.json", ".*convert_tekken_tokenizer"),
    ],
)
def test_a_tokenizer_of_another_form_is_named_with_how_to_make_ours(tmp_path, file, remedy):
    shutil.copytree(FOLDER / "qwen2", tmp_path, dirs_exist_ok=True)
    (tmp_path / file).write_text("{}")
    why, remedies = find_source(str(tmp_path)).without_tokenizer()
    assert why.endswith(f"has its tokenizer in {file}, which is not read")
    assert re.match(f"make tokenizer.json {remedy}", remedies[0])


def test_a_checkpoint_converted_without_a_tokenizer_says_so(tmp_path):
    source = _wide()
    assert source.without_tokenizer() == ("tiny has no tokenizer", [])
    save(tmp_path / "m", source.config, source.engine(LAYOUT, parse_mesh("1"), FLOAT32).parameters)
    why, remedies = find_source(str(tmp_path / "m")).without_tokenizer()
    assert why == "tiny was converted without a tokenizer" and "tokenizer.json" in remedies[0]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (
            {"do_sample": True, "temperature": 0.6, "top_k": 5},
            "do_sample True, temperature 0.6, to",
        ),
        (
            {"do_sample": False, "temperature": 0.6, "repetition_penalty": 1.5},
            "repetition_penalty 1",
        ),
        (
            {"stop_strings": ["\n\n"], "suppress_tokens": [3]},
            r"suppress_tokens \[3\], stop_strings",
        ),
        (
            {"temperature": 0.6, "repetition_penalty": 1.0, "num_beams": 1, "bad_words_ids": []},
            None,
        ),
        ([1], None),
    ],
)
def test_what_a_file_asks_of_generation_and_does_not_get_is_told(tmp_path, asked, words):
    shutil.copytree(FOLDER / "qwen2", tmp_path, dirs_exist_ok=True)
    (tmp_path / "generation_config.json").write_text(json.dumps(asked))
    told = []
    find_source(str(tmp_path), report=told.append)
    assert len(told) == (words is not None)
    for line in told:
        assert re.match(f"generation_config.json asks for {words}.*, which is not used", line)


def test_what_a_gguf_file_says_that_is_passed_over_is_told(tmp_path):
    change = {
        "general.sampling.temp": 0.6,
        "tokenizer.ggml.eos_token_id": 4_294_967_295,
        "tokenizer.ggml.suppress_tokens": [3],
    }
    write_tiny_gguf(tmp_path / "m.gguf", metadata=change)
    told = []
    find_source(str(tmp_path / "m.gguf"), report=told.append)
    assert "eos_token_id is 4294967295, outside the 288 tokens; it is left out" in told[0]
    assert told[1].startswith("metadata asks for general.sampling.temp 0.6")
    assert "tokenizer.ggml.suppress_tokens [3], which is not used" in told[1] and len(told) == 2


@pytest.mark.parametrize(
    "name",
    # Groups with offsets of their own; the slow set has those without, and scales of outputs.
    [pytest.param(name, marks=() if name == "int4" else pytest.mark.slow)
     for name in QUANTIZATIONS],
)  # fmt: skip
def test_a_checkpoint_in_few_bits_gives_the_same_parameters_on_another_mesh(name, tmp_path):
    source, dtypes = _wide(), Dtypes(jnp.float32, QUANTIZATIONS[name])
    engine = source.engine(LAYOUT, parse_mesh("1x2"), dtypes)
    save(tmp_path / "m", source.config, engine.parameters, quantization=dtypes.quantization)
    saved = find_source(str(tmp_path / "m"))
    assert saved.stored_quantization() is dtypes.quantization and saved.stored_dtype() == "float32"
    again = saved.engine(TWO_D, parse_mesh("2x2"), dtypes)
    _assert_same(again.parameters, engine.parameters)
    for other in (FLOAT32, Dtypes(jnp.float32, QUANTIZATIONS["int8" if name != "int8" else "fp8"])):
        with pytest.raises(
            WeightsError, match=f"{other.weights.name}, but .* in {name}; leave out"
        ):
            saved.engine(LAYOUT, parse_mesh("1x1"), other)


def test_a_plain_checkpoint_is_brought_to_few_bits_as_its_source_is(tmp_path):
    source, dtypes = _wide(), Dtypes(jnp.float32, QUANTIZATIONS["int8"])
    plain = source.engine(LAYOUT, parse_mesh("1x1"), FLOAT32)
    save(tmp_path / "m", source.config, plain.parameters)
    saved = find_source(str(tmp_path / "m"))
    assert saved.stored_quantization() is None
    few = saved.engine(TWO_D, parse_mesh("2x2"), dtypes)
    _assert_same(few.parameters, source.engine(LAYOUT, parse_mesh("1x1"), dtypes).parameters)


def test_a_checkpoint_of_an_unknown_scheme_is_refused_by_name(tmp_path):
    source = _wide()
    save(tmp_path / "m", source.config, source.engine(LAYOUT, parse_mesh("1"), FLOAT32).parameters)
    content = json.loads((tmp_path / "m" / MANIFEST).read_text())
    content["weight_dtype"] = "int3"
    content.pop("sha256")
    content["sha256"] = orbax_checkpoint._own_digest(content)
    (tmp_path / "m" / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(WeightsError, match=r"weight_dtype of .* is 'int3', which is not known"):
        find_source(str(tmp_path / "m"))


def test_weights_that_are_not_finite_are_refused_whatever_they_come_from(tmp_path):
    source, path = _wide(), ("layers", 0, "mlp", "gate_up")
    flat = flatten_dict(source.engine(LAYOUT, parse_mesh("1"), FLOAT32).parameters)
    flat[path] = flat[path].at[3, 1, 5, 7].set(jnp.nan)  # one expert's
    save(tmp_path / "m", source.config, unflatten_dict(flat))
    with pytest.raises(FloorlineError, match=r"layers\.0\.mlp\.gate_up is not finite everywhere"):
        find_source(str(tmp_path / "m")).engine(LAYOUT, parse_mesh("2"), Dtypes("float32", INT8))


def _wide() -> ModelSource:
    """Random weights whose inputs groups of up to 128 divide on four devices."""
    config = dataclasses.replace(
        find_model("tiny"), layers=1, d_model=256, d_ff=512, head_size=128, experts=4,
        experts_per_token=2,
    )  # fmt: skip
    return ModelSource(config, None, None)


def _assert_same(mine: Parameters, expected: Parameters) -> None:
    for one, other in zip(jax.tree.leaves(mine), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(*(np.asarray(a, np.float32) for a in (one, other)))
