"""Gemma 3 270M in float32 against what llama.cpp answered with the same weights.

The references are made by scripts/make_gemma_references.py. Fetches 238 MB, hence `slow`.
"""

import json

import pytest

from decode.generate import Request, generate
from decode.load import find_source
from model.catalog import find_model
from model.declarations import count
from model.dtypes import FLOAT32
from model.transformer import Transformer
from sharding.catalog import LAYOUTS
from sharding.mesh import parse_mesh
from tests.conftest import REFERENCES

FOUND = json.loads((REFERENCES / "gemma3_270m.json").read_text())
PROMPTS = FOUND["prompts"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("all_optimizations"),
]


@pytest.fixture(scope="module")
def gemma3():
    return find_source("gemma3-270m", accept_terms=True)


@pytest.mark.parametrize("mesh", ["1x1x1", "1x1x8"])
def test_greedy_text_equals_llama_cpp_in_a_ragged_batch(gemma3, mesh):
    """On eight devices its one KV head is whole on each, and the head size is divided."""
    engine = gemma3.engine(LAYOUTS["weight_stationary_1d"], parse_mesh(mesh), FLOAT32)
    ids = [prompt["prompt_ids"] for prompt in PROMPTS.values()]
    assert max(map(len, ids)) > 512  # the window
    *_, completions = generate(engine, Request(prompts=ids, max_new_tokens=32))
    for prompt, completion in zip(PROMPTS.values(), completions, strict=True):
        assert completion.tokens == prompt["new_ids"]


@pytest.mark.parametrize("name", PROMPTS)
def test_text_becomes_the_tokens_of_llama_cpp_and_back(gemma3, name):
    prompt = PROMPTS[name]
    assert gemma3.tokenizer.encode(prompt["text"]) == prompt["prompt_ids"]
    assert gemma3.tokenizer.decode(prompt["new_ids"]) == prompt["new_text"]


def test_the_file_has_the_shape_of_the_catalogue(gemma3):
    published = find_model("gemma3-270m")
    assert gemma3.config.windows == published.windows
    assert gemma3.config.attention_scale == published.attention_scale
    assert count(Transformer(gemma3.config, FLOAT32)) == 268_098_176
