"""Paths that JAX writes, and the blocks that they name."""

import re
from pathlib import Path

import pytest

from profiles.explained.blocks import SCOPES, block_of_scope, collective_kind

STEP = "jit(_advance_step)/decode_step/"
ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("path", "block"),
    [
        (f"{STEP}layer_12/mlp/jit(silu)/div", "MLP"),
        (f"{STEP}layer_0/query_key_value/norm/mul", "query/key/value"),
        (f"{STEP}rotary_angles/cos", "query/key/value"),
        (f"{STEP}layer_3/attention/cond/branch_1_fun/while/body/exp", "attention"),
        (f"{STEP}layer_3/attention/shard_map/pallas_call[name=attend]/dot", "attention"),
        (f"{STEP}layer_0/mixture/router/dot_general", "experts"),
        (f"{STEP}layer_0/add", "sums and positions"),
        (f"{STEP}norm/rsqrt", "norms"),
        ("jit(_prefill_step)/prefill/layer_0/vmap(mlp)/dot_general", "MLP"),
        ("jit(_advance_step)/add", "sampling"),
        ("jit(_advance_step)/sample/reduce", "sampling"),
        (f"{STEP}layer_0/something_new/inside/sort", "something_new"),
        ("reduce_sum", None),
        ("", None),
    ],
)
def test_the_first_scope_of_a_path_is_its_block(path, block):
    assert block_of_scope(path) == block


@pytest.mark.parametrize(
    ("name", "kind"),
    [("all-reduce.3", "all-reduce"), ("all-gather-start.1", "all-gather"),
     ("collective-permute-done", "permute"), ("ragged-all-to-all.2.1", "all-to-all"),
     ("all_reduce_fusion", None), ("dot.5", None)],
)  # fmt: skip
def test_a_collective_is_known_by_its_name(name, kind):
    assert collective_kind(name) == kind


def test_every_scope_of_the_model_is_listed():
    """Those of programs that are not explained, and of parts of a listed scope, need not be."""
    paths = [path for folder in ("model", "decode") for path in (ROOT / folder).rglob("*.py")]
    opened = {
        scope
        for path in paths
        for scope in re.findall(r'jax\.named_scope\("(\w+)"\)', path.read_text())
    }
    inner = {"decode_step", "prefill", "router", "threshold"}
    batching = {"take_rows", "put_rows", "exchange_rows", "alternatives"}
    drafts = {"draft", "look_up_ngram", "verify_step", "judge"}
    assert opened - {*SCOPES} == inner | batching | drafts
