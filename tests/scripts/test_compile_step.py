"""compile_step.py without the compiler: what does not fit, what is missing, and mistakes."""

import pytest

from tests.scripts.running import named, run_many

CASES = {
    "too_large": ["--model=llama3-70b", "--topology=v5e:2x2", "--json=-"],
    "no_compiler": ["--model=llama3-8b", "--topology=v5e:2x4"],
    "other_chip": ["--topology=tpu8i:8"],
    "other_gpu": ["--topology=l4:8"],
    "two_domains": ["--topology=h100:16"],
    "no_gpu_compiler": ["--model=llama3-8b", "--topology=h100:8"],
    "mesh": ["--topology=tpu7x:2x2x1", "--mesh=2x2"],
    "layout": ["--layout=diagonal"],
    "sized": ["--model=deepseek-v3-even"],
    "short": ["--phase=prefill", "--context=1"],
    "long": ["--context=8192"],
    "chunk": ["--phase=prefill", "--chunk=100"],
    "chunk_of_steps": ["--chunk=128"],
    "chunks": ["--phase=prefill", "--context=5000", "--chunk=1024", "--batch=1"],
    "prompts_layout": ["--layout=weight_stationary_2d", "--prefill_layout=nonsense"],
    "no_experts": ["--expert_parallel"],
    "mixture": [
        "--model=qwen3-30b-a3b",
        "--topology=v5p:2x2x2",
        "--weight_dtype=int8",
        "--batch=64",
    ],
    "slice": ["--topology=v5e:3x5"],
    "to_output": ["--save_hlo=-"],
}
NO_COMPILER = {
    "profiles.compiled.toolchains.TPU_MODULES": "no_such_compiler",
    "profiles.compiled.toolchains.GPU_MODULES": "no_such_compiler",
}


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    return run_many(
        "compile_step.py",
        named(CASES, "llama3-8b"),
        folder=tmp_path_factory.mktemp("compile"),
        patches=NO_COMPILER,
    )


def test_what_cannot_fit_is_said_without_compiling_with_the_least_slice(ended):
    document = ended["too_large"].document
    (point,) = document["points"]
    assert ended["too_large"].code == 0 and "compiled" not in document
    assert point["status"] == "does_not_fit" and not point["fits"]
    assert "the least slice that fits is v5e:4x4" in point["message"]
    assert "floor" in ended["too_large"].stderr and "does not fit" in ended["too_large"].stderr


def test_without_the_compiler_one_line_says_how_to_get_it(ended):
    assert ended["no_compiler"].code == 1
    assert "pip install -e '.[tpu-compile]'" in ended["no_compiler"].error
    assert not ended["no_compiler"].jax_started
    assert ended["no_gpu_compiler"].code == 1
    assert "pip install -e '.[gpu-compile]'" in ended["no_gpu_compiler"].error


def test_of_a_mixture_the_expected_best_divides_experts_as_an_estimate_does(ended):
    text = " ".join(ended["mixture"].stdout.split())
    assert "data_parallel_x_1d, attention by heads, experts divided" in text
    assert "expected: 2.63 ms per step" in text


def test_of_a_long_prompt_the_last_whole_chunk_is_compiled(ended):
    text = " ".join(ended["chunks"].stdout.split())
    assert "cache of 5024 tokens, prefill of 1024 tokens after 3072, for v5e:2x4" in text
    assert "a prompt of 5,000 tokens runs in chunks of 1,024" in ended["chunks"].stderr


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("other_chip", "topology is tpu8i:8, which XLA's TPU compiler does not compile for; "),
        ("other_gpu", "topology is l4:8, of which profiles/chips/gpu_targets.json has no target"),
        ("two_domains", "topology is h100:16, more GPUs than the 8 of one NVLink domain"),
        ("mesh", "mesh is 1x2x2, of 4 devices, but tpu7x:2x2x1 has 8, two to a chip; use"),
        ("layout", "layout is 'diagonal'; use"),
        ("sized", "model is deepseek-v3-even, which is known by its sizes alone; use"),
        ("short", "--context is 1 with --phase=prefill; use"),
        (
            "long",
            "--context is 8,192 and 1 more token, beyond the 8,192 tokens that llama3-8b goes to",
        ),
        ("chunk", "chunk is 100 tokens, which is no positive multiple of 16; use 96 or 112"),
        ("chunk_of_steps", "--chunk is 128 of no prompt; give --phase=prefill with it"),
        ("prompts_layout", "layout is 'nonsense'; use"),
        ("no_experts", "--expert_parallel is true, but llama3-8b has no experts"),
        ("slice", "topology is v5e:3x5"),
        ("to_output", "--save_hlo is -, and only JSON goes to standard output; name a file"),
    ],
)
def test_a_mistake_is_one_line(ended, case, words):
    assert ended[case].code == 2
    assert ended[case].error.startswith(words)


GRIDS = {
    "attention": (["--attention=heads,rows"], "--attention is 'heads,rows' (use one of heads, b"),
    "one_flag": (["--attentions=heads"], "flag is --attentions, which is unknown (near attention"),
    "prompts_layout": (["--prefill_layout=nonsense"], "layout is 'nonsense'; use"),
    "no_experts": (["--expert_parallel"], "--expert_parallel is true, but llama3-8b has no"),
    "long": (
        ["--context=2048,8192"],
        "--context is 8,192 and 1 more token, beyond the 8,192 tokens",
    ),
    "no_model": (["--model=llama3-8b,gpt-9"], "model is 'gpt-9'"),
}


def test_a_grid_hears_the_flags_that_one_step_hears(tmp_path):
    """compile_matrix.py refuses what it cannot compile, and is then stopped by the compiler."""
    cases = {name: arguments for name, (arguments, _) in GRIDS.items()}
    lists = ["--attention=heads,batch", "--layout=auto,weight_stationary_2d"]
    cases["lists"] = [*lists, "--prefill_layout=auto", "--max_context=9000"]
    cases["gpus"] = ["--topology=h100:8"]
    ended = run_many(
        "compile_matrix.py",
        named(cases, "llama3-8b"),
        folder=tmp_path,
        patches=NO_COMPILER,
    )
    for name, (_, message) in GRIDS.items():
        assert ended[name].code == 2 and ended[name].error.startswith(message)
    assert ended["lists"].error.startswith("libtpu is not installed")
    assert ended["gpus"].error.startswith("jax-cuda13-plugin is not installed")
    assert not any(each.jax_started for each in ended.values())
