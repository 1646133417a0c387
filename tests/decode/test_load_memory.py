"""Loading and saving 8 GB must not need much more memory than the 8 GB."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

ROOT = Path(__file__).parents[2]
FILES = 16
CONFIG = {
    "model_type": "llama",
    "vocab_size": 32_000,
    "hidden_size": 2560,
    "intermediate_size": 8192,
    "num_hidden_layers": 50,
    "num_attention_heads": 20,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}


def shapes():
    D, F, V = CONFIG["hidden_size"], CONFIG["intermediate_size"], CONFIG["vocab_size"]
    kv = 128 * CONFIG["num_key_value_heads"]
    found = {"model.embed_tokens": (V, D), "model.norm": (D,), "lm_head": (V, D)}
    for layer in range(CONFIG["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        found |= {at + "input_layernorm": (D,), at + "post_attention_layernorm": (D,)}
        found |= {at + f"self_attn.{n}_proj": (D, D) for n in "qo"}
        found |= {at + f"self_attn.{n}_proj": (kv, D) for n in "kv"}
        found |= {at + f"mlp.{n}_proj": (F, D) for n in ("gate", "up")}
        found[at + "mlp.down_proj"] = (D, F)
    return {f"{name}.weight": shape for name, shape in found.items()}


def write_model(folder):
    """8 GB of bfloat16 in many files."""
    random, names = np.random.default_rng(0), list(shapes())
    weight_map = {}
    for number in range(FILES):
        file = f"model-{number:05}.safetensors"
        tensors = {}
        for name in names[number::FILES]:
            shape = shapes()[name]
            raw = random.integers(0, 2**14, math.prod(shape), dtype=np.uint16)
            tensors[name] = raw.view(ml_dtypes.bfloat16).reshape(shape)
        save_file(tensors, folder / file)
        weight_map |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(CONFIG))


# Asked from within: what the system says of a child that ended counts its parent's memory too,
# which is the child's until it starts its own program.
_STATUS = r"""
import re

def status(field):
    with open("/proc/self/status") as file:
        return 1024 * int(re.search(field + r":\s*(\d+) kB", file.read())[1])
"""

_LOADER = f"""
{_STATUS}
import json, sys, time
sys.path.insert(0, {str(ROOT)!r})
from sharding.mesh import parse_mesh, request_cpu_devices
request_cpu_devices(8)
import jax, jax.numpy as jnp
from decode.load import find_source
from model.dtypes import BFLOAT16
from flax.traverse_util import flatten_dict
from sharding.catalog import LAYOUTS
jax.jit(jnp.copy)(jnp.zeros(8)).block_until_ready()

before = status("VmRSS")
source = find_source(sys.argv[1])
started = time.perf_counter()
engine = source.engine(LAYOUTS["weight_stationary_1d"], parse_mesh("8"), BFLOAT16)
shards = [s.data for a in flatten_dict(engine.parameters).values() for s in a.addressable_shards]
jax.block_until_ready(shards)
print(json.dumps({{
    "seconds": time.perf_counter() - started,
    "before": before,
    "peak": status("VmHWM"),
    "resident": sum(shard.nbytes for shard in shards),
}}))
"""


_CONVERTER = f"""
{_STATUS}
import runpy, sys
sys.path.insert(0, {str(ROOT / "scripts")!r})
try:
    runpy.run_module("convert_checkpoint", run_name="__main__", alter_sys=True)
except SystemExit as ended:
    assert not ended.code
print(status("VmHWM"))
"""


def run(*command, env):
    """The last line that Python prints when it runs a text with arguments."""
    command = [sys.executable, "-c", *command]
    ran = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE)
    return ran.stdout.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["huggingface", "orbax"])
def test_loading_and_saving_need_little_more_memory_than_the_shards(tmp_path, form):
    folder = tmp_path / "model"
    folder.mkdir()
    write_model(folder)
    assert 7.9e9 < sum(path.stat().st_size for path in folder.iterdir()) < 9e9
    largest = max(path.stat().st_size for path in folder.glob("*.safetensors"))
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    if form == "orbax":
        options = [f"--model={folder}", f"--output_dir={tmp_path / 'o'}", "--devices=8"]
        peak = int(run(_CONVERTER, *options, env=env))
        print(f"saving: {peak / 1e9:.2f} GB at the peak")
        assert peak < 9.5e9, "saving holds the model twice"
        for path in folder.iterdir():
            path.unlink()
        folder = tmp_path / "o"
    found = json.loads(run(_LOADER, folder, env=env))
    spare = found["peak"] - found["before"] - found["resident"]
    print(
        f"{form}: {found['resident'] / 1e9:.2f} GB resident in {found['seconds']:.0f} s, "
        f"{spare / 1e6:.0f} MB more at the peak; largest file {largest / 1e6:.0f} MB"
    )
    assert spare < 1.2 * largest + 500e6
    for path in folder.rglob("*"):
        if path.is_file():
            path.unlink()
