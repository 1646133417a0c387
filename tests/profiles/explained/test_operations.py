"""Programs of steps of every kind of model: the block of each instruction."""

import gzip
from pathlib import Path

import pytest

from model.catalog import find_model
from model.dtypes import FLOAT32
from profiles.explained.operations import operations
from profiles.floor.block_counts import BLOCKS
from profiles.hlo.program import parse
from sharding.catalog import LAYOUTS
from tests.engines import config_of, random_engine

FREE = {"bitcast", "constant", "get-tuple-element", "parameter", "tuple"}


def known(family, mesh="1x1x1"):
    engine = random_engine(config_of(family), LAYOUTS["weight_stationary_1d"], mesh, FLOAT32)
    text = engine.lower_decode(2, 64).compile().as_text()
    return operations(parse(text), engine.config)


@pytest.mark.parametrize(
    "family",
    [
        "experts",
        "two_norms_and_caps",
        *(pytest.param(each, marks=pytest.mark.slow) for each in ("grouped", "delta")),
    ],
)
def test_nearly_every_instruction_has_a_block_and_every_product_the_one_of_its_weight(family):
    found = known(family)
    work = [name for name, opcode in found.opcodes.items() if opcode not in FREE]
    assert sum(name in found.blocks for name in work) >= 0.95 * len(work)
    products = {found.blocks[name] for name in work if found.opcodes[name] == "dot"}
    mlp = "experts" if family == "experts" else "MLP"
    assert {"query/key/value", "attention", "output projection", mlp, "unembedding"} <= products
    assert ("delta rule" in products) == (family == "delta")
    assert set(found.blocks.values()) <= {*BLOCKS, "sampling", "sums and positions"}


@pytest.mark.parametrize("name", ["sound", "overlapped", "gathered"])
def test_a_tpu_s_program_has_blocks_for_its_products_and_for_nearly_all_else(name):
    path = Path(__file__).parents[1] / f"programs/{name}.txt.gz"
    found = operations(parse(gzip.decompress(path.read_bytes()).decode()), find_model("llama3-70b"))
    work = [name for name, opcode in found.opcodes.items() if opcode not in FREE]
    assert sum(name in found.blocks for name in work) >= 0.92 * len(work)
    products = [name for name in work if found.opcodes[name] in ("dot", "convolution")]
    blocks = {found.blocks[name] for name in products}
    assert blocks == {"query/key/value", "output projection", "MLP", "unembedding"}


def test_collectives_are_blocks_of_their_own_kind():
    found = known("grouped", "1x1x2")
    kinds = {found.blocks[name] for name in found.blocks if found.opcodes[name] == "all-reduce"}
    assert kinds == {"all-reduce"} and "all-gather" in found.blocks.values()


PROGRAM = """HloModule step, is_scheduled=true

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[], f32[8]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[8] get-tuple-element(%p), index=1
  %inside = f32[8] negate(%x)
  ROOT %out = (s32[], f32[8]) tuple(%i, %inside)
}

%condition (q: (s32[], f32[8])) -> pred[] {
  %q = (s32[], f32[8]) parameter(0)
  %j = s32[] get-tuple-element(%q), index=0
  %two = s32[] constant(2)
  ROOT %less = pred[] compare(%j, %two), direction=LT
}

%fused (a: f32[8,8], b: f32[8]) -> f32[8] {
  %a = f32[8,8] parameter(0)
  %b = f32[8] parameter(1)
  %dot.1 = f32[8] dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %sum = f32[8] add(%dot.1, %b), metadata={op_name="jit(f)/decode_step/layer_0/add"}
}

ENTRY %main (w: f32[8,8], y: f32[8]) -> f32[8] {
  %w = f32[8,8] parameter(0), metadata={op_name="parameters['layers'][0]['mlp']['down']"}
  %y = f32[8] parameter(1), metadata={op_name="carry.tokens"}
  %zero = s32[] constant(0)
  %start = (s32[], f32[8]) tuple(%zero, %y)
  %while.1 = (s32[], f32[8]) while(%start), condition=%condition, body=%body, metadata={op_name="jit(f)/decode_step/layer_0/attention/while"}
  %z = f32[8] get-tuple-element(%while.1), index=1
  %copy.1 = f32[8] copy(%z)
  %fusion.1 = f32[8] fusion(%w, %copy.1), kind=kLoop, calls=%fused, metadata={op_name="jit(f)/decode_step/layer_0/add"}
  ROOT %call.1 = f32[8] custom-call(%fusion.1), custom_call_target="python_callback", metadata={op_name="jit(f)/decode_step/odd/pure_callback"}
}
"""  # noqa: E501


def test_what_xla_dropped_is_told_by_weights_neighbours_and_callers():
    found = operations(parse(PROGRAM), config_of("grouped"))
    assert found.blocks["fusion.1"] == "MLP"  # a product of its weight, though a sum comes last
    assert found.blocks["copy.1"] == "MLP"  # what uses it
    assert found.blocks["inside"] == "attention"  # what calls it
    assert found.blocks["call.1"] == "odd"
    assert found.opcodes["fusion.1"] == "dot"
    assert found.opcodes["call.1"] == "custom-call python_callback"
    assert found.containers == {"while.1"}
