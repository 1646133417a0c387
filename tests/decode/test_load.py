"""From a path to an engine: formats that hold one model give one model."""

import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from decode.load import find_source
from model.weights.orbax_checkpoint import OrbaxFolder, save
from sharding.layout import LAYOUTS
from sharding.mesh import parse_mesh
from tests.family_cases import CASES, FOLDER

LAYOUT = LAYOUTS["weight_stationary_1d"]


@pytest.mark.parametrize("case", CASES)
def test_a_converted_model_gives_the_same_logits(case, tmp_path):
    source = find_source(str(FOLDER / case))
    engine = source.engine(LAYOUT, parse_mesh("1x1"), jnp.float32)
    save(tmp_path / case, source.config, engine.parameters, source.tokenizer_files())
    converted = find_source(str(tmp_path / case))
    assert isinstance(converted.file, OrbaxFolder) and converted.config == source.config
    assert converted.tokenizer is None and converted.stored_dtype() == "float32"
    tokens = np.arange(3, 23, dtype=np.int32)[None]
    again = converted.engine(LAYOUT, parse_mesh("1x1"), jnp.float32)
    np.testing.assert_array_equal(again.forward(tokens), engine.forward(tokens))


def test_a_gguf_tokenizer_goes_with_the_converted_weights(smollm2, smollm2_engine, tmp_path):
    engine = smollm2_engine("1x1x1")
    save(tmp_path / "m", smollm2.config, engine.parameters, smollm2.tokenizer_files())
    converted = find_source(str(tmp_path / "m"))
    messages = [{"role": "user", "content": "Why is the sky blue? 3.14 ¡né 你好"}]
    ours, theirs = converted.tokenizer, smollm2.tokenizer
    assert ours.chat(messages) == theirs.chat(messages)
    assert ours.encode(ours.chat(messages), special=True) == theirs.encode(
        theirs.chat(messages), special=True
    )
    assert ours.stop_ids == theirs.stop_ids


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
    engine = source.engine(LAYOUT, parse_mesh("1x2"), jnp.float32, progress=Watch)
    assert sum(done) == totals[0] == 4 * sum(a.size for a in _leaves(engine.parameters))
    save(tmp_path / "m", source.config, engine.parameters)
    done.clear()
    find_source(str(tmp_path / "m")).engine(LAYOUT, parse_mesh("1x2"), jnp.float32, progress=Watch)
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
