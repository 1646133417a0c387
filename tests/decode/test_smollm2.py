"""SmolLM2-135M in float32 against what Hugging Face transformers answered.

The references are made by scripts/make_references.py; the extra `parity` compares live.
"""

import json

import numpy as np
import pytest

from decode.generate import Request, cache_slots, generate, pad
from decode.load import ModelSource
from tests.conftest import REFERENCES

FOUND = json.loads((REFERENCES / "smollm2_135m.json").read_text())
LOGITS = np.load(REFERENCES / "smollm2_135m.npz")
PROMPTS = FOUND["prompts"]
NEW_TOKENS = 64


def finish(steps):
    *_, last = steps
    return last


def expected_tokens(prompt: dict) -> list[int]:
    return [token for token in prompt["new_ids"] if token != FOUND["eos_id"]]


def request(prompts: list[dict], new: int = NEW_TOKENS) -> Request:
    ids = [prompt["prompt_ids"] for prompt in prompts]
    return Request(prompts=ids, max_new_tokens=new, stop_ids=frozenset({FOUND["eos_id"]}))


# The text until the first prompt's ends; the slow set has all of it, on 3 and 8 devices, too.
FEW_TOKENS = 32
RUNS = [
    ("1x1x1", FEW_TOKENS),
    *(pytest.param(f"1x1x{n}", NEW_TOKENS, marks=pytest.mark.slow) for n in (1, 3, 8)),
    *(pytest.param(f"1x1x{n}", NEW_TOKENS, marks=pytest.mark.long) for n in (2, 4)),
]


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda prompt: prompt["name"])
def test_text_becomes_the_same_tokens_and_back(smollm2: ModelSource, prompt):
    special = "messages" in prompt
    assert smollm2.tokenizer.encode(prompt["text"], special=special) == prompt["prompt_ids"]
    assert smollm2.tokenizer.decode(expected_tokens(prompt)) == prompt["new_text"]
    if special:
        assert smollm2.tokenizer.chat(prompt["messages"]) == prompt["text"]


@pytest.mark.parametrize(("mesh", "new"), RUNS)
def test_greedy_text_equals_transformers_in_a_ragged_batch(smollm2_engine, mesh, new):
    completions = finish(generate(smollm2_engine(mesh), request(PROMPTS, new)))
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        tokens = expected_tokens(prompt)
        assert completion.tokens == tokens[:new]
        ended = prompt["stopped"] == "eos" and len(tokens) < new
        assert completion.finish_reason == ("stop" if ended else "length")
        logprobs = prompt["log_probs"][: len(completion.tokens)]
        np.testing.assert_allclose(completion.logprobs, logprobs, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("prompt", PROMPTS[:1], ids=lambda prompt: prompt["name"])
def test_a_prompt_alone_gives_the_same_text(smollm2_engine, prompt):
    (completion,) = finish(generate(smollm2_engine("1x1x1"), request([prompt])))
    assert completion.tokens == expected_tokens(prompt)


def test_prompt_logits_equal_transformers(smollm2_engine):
    engine = smollm2_engine("1x1x1")
    # In the shapes of the ragged batch above, whose prefill is compiled.
    tokens, lengths = pad([prompt["prompt_ids"] for prompt in PROMPTS], 128)
    cache = engine.new_cache(len(PROMPTS), cache_slots(int(lengths.max()), FEW_TOKENS, 8192))
    found = np.asarray(engine.prefill(cache, tokens, lengths)[0])
    for prompt, logits in zip(PROMPTS, found, strict=True):
        name, scale = prompt["name"], prompt["largest_magnitude"]
        for tokens, values in (
            (LOGITS[f"{name}_largest_ids"], LOGITS[f"{name}_largest_logits"]),
            (LOGITS["spaced_ids"], LOGITS[f"{name}_spaced_logits"]),
        ):
            assert np.abs(logits[tokens] - values).max() < 1e-4 * scale


@pytest.mark.slow  # `test_families` has as much of every family's small model
def test_decode_step_logits_equal_one_full_forward_pass(smollm2_engine):
    engine = smollm2_engine("1x1x1")
    prompt = PROMPTS[0]["prompt_ids"]
    slots = cache_slots(len(prompt), NEW_TOKENS, 8192)
    sequence = np.array([(prompt + PROMPTS[0]["new_ids"])[:24]], np.int32)
    full = np.asarray(engine.forward(sequence))[0]  # [T, V]
    first = np.array([16], np.int32)
    logits, cache = engine.prefill(engine.new_cache(1, slots), sequence[:, :16], first)
    for position in range(16, 24):
        difference = np.abs(np.asarray(logits)[0] - full[position - 1]).max()
        assert difference < 1e-4 * np.abs(full[position - 1]).max()
        where = engine.put(np.array([position], np.int32))
        logits, cache = engine.decode_step(cache, engine.put(sequence[:, position]), where)


@pytest.mark.slow
@pytest.mark.parity
def test_transformers_still_gives_the_committed_references(smollm2: ModelSource):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    path = smollm2.file.path
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    for prompt in PROMPTS:
        ids = torch.tensor([prompt["prompt_ids"]])
        with torch.inference_mode():
            out = model.generate(ids, do_sample=False, max_new_tokens=64, eos_token_id=2)
        assert out[0, ids.shape[1] :].tolist() == prompt["new_ids"]
