"""A program in the form that XLA:GPU prints is read like those for TPUs and CPUs."""

import pytest

from profiles.compiled.compiler import Compilation
from profiles.compiled.step import read
from profiles.hlo.flow import walk
from profiles.hlo.kernels import kernels
from profiles.hlo.program import parse

# A layer on two GPUs: commands in a buffer, a matrix made wider before a library's product.
TEXT = """\
HloModule jit__advance_step, is_scheduled=true, input_output_alias={ALIAS}, \
entry_computation_layout={(s8[256,512]{1,0})->bf16[8,256]{1,0}}, num_partitions=2

%wrapped_convert_computation (param_0: s8[256,512]) -> bf16[256,512] {
  %param_0 = s8[256,512]{1,0} parameter(0)
  ROOT %convert.1 = bf16[256,512]{1,0} convert(%param_0)
}

%fused_update (param_0.1: bf16[8,64,128], param_1.1: bf16[8,1,128], param_2: s32[]) -> bf16[8,64,128] {
  %param_0.1 = bf16[8,64,128]{2,1,0} parameter(0)
  %param_1.1 = bf16[8,1,128]{2,1,0} parameter(1)
  %param_2 = s32[] parameter(2)
  %zero = s32[] constant(0)
  ROOT %dynamic-update-slice.1 = bf16[8,64,128]{2,1,0} dynamic-update-slice(%param_0.1, %param_1.1, %zero, %param_2, %zero)
}

%add (a: bf16[], b: bf16[]) -> bf16[] {
  %a = bf16[] parameter(0)
  %b = bf16[] parameter(1)
  ROOT %sum = bf16[] add(%a, %b)
}

%command_buffer (p: s8[256,512], p.1: bf16[8,512], p.2: bf16[8,64,128], p.3: bf16[8,1,128], p.4: s32[]) -> (bf16[8,256], bf16[8,64,128]) {
  %p = s8[256,512]{1,0} parameter(0)
  %p.1 = bf16[8,512]{1,0} parameter(1)
  %p.2 = bf16[8,64,128]{2,1,0} parameter(2)
  %p.3 = bf16[8,1,128]{2,1,0} parameter(3)
  %p.4 = s32[] parameter(4)
  %wrapped_convert = bf16[256,512]{1,0} fusion(%p), kind=kLoop, calls=%wrapped_convert_computation, metadata={op_name="jit(_advance_step)/decode_step/layer_0/mlp/convert_element_type"}
  %custom-call.1 = (bf16[8,256]{1,0}, s8[4194304]{0}) custom-call(%p.1, %wrapped_convert), custom_call_target="__cublas$gemm", metadata={op_name="jit(_advance_step)/decode_step/layer_0/mlp/dot_general"}, backend_config={"gemm_backend_config":{"alpha_real":1}}
  %get-tuple-element.1 = bf16[8,256]{1,0} get-tuple-element(%custom-call.1), index=0
  %update = bf16[8,64,128]{2,1,0} fusion(%p.2, %p.3, %p.4), kind=kLoop, calls=%fused_update, metadata={op_name="jit(_advance_step)/decode_step/layer_0/cache_write/dynamic_update_slice"}
  ROOT %tuple = (bf16[8,256]{1,0}, bf16[8,64,128]{2,1,0}) tuple(%get-tuple-element.1, %update)
}

ENTRY %main.9 (Arg_0: s8[256,512], Arg_1: bf16[8,512], Arg_2: bf16[8,64,128], Arg_3: bf16[8,1,128], Arg_4: s32[]) -> (bf16[8,64,128], bf16[8,256]) {
  %Arg_0 = s8[256,512]{1,0} parameter(0), metadata={op_name="parameters[\\'layers\\'][0][\\'mlp\\'][\\'down\\'][\\'values\\']"}
  %Arg_1 = bf16[8,512]{1,0} parameter(1), metadata={op_name="carry.tokens"}
  %Arg_2 = bf16[8,64,128]{2,1,0} parameter(2), metadata={op_name="cache.keys[0]"}
  %Arg_3 = bf16[8,1,128]{2,1,0} parameter(3), metadata={op_name="carry.lengths"}
  %Arg_4 = s32[] parameter(4), metadata={op_name="carry.index"}
  %call = (bf16[8,256]{1,0}, bf16[8,64,128]{2,1,0}) call(%Arg_0, %Arg_1, %Arg_2, %Arg_3, %Arg_4), to_apply=%command_buffer
  %get-tuple-element.2 = bf16[8,256]{1,0} get-tuple-element(%call), index=0
  %get-tuple-element.3 = bf16[8,64,128]{2,1,0} get-tuple-element(%call), index=1
  %all-reduce-start = bf16[8,256]{1,0} all-reduce-start(%get-tuple-element.2), channel_id=1, replica_groups={{0,1}}, use_global_device_ids=true, to_apply=%add, metadata={op_name="jit(_advance_step)/decode_step/layer_0/mlp/dot_general"}, backend_config={"collective_backend_config":{"is_sync":true}}
  %all-reduce-done = bf16[8,256]{1,0} all-reduce-done(%all-reduce-start)
  ROOT %tuple.1 = (bf16[8,64,128]{2,1,0}, bf16[8,256]{1,0}) tuple(%get-tuple-element.3, %all-reduce-done)
}
"""  # noqa: E501
ALIASES = {"in place": "{ {0}: (2, {}, may-alias) }", "elsewhere": "{}"}
FUSED = "fusion(%p), kind=kCustom, calls=%f"
SIZES = ("argument_bytes", "output_bytes", "aliased_bytes", "temporary_bytes")


def step(cache: str):
    text = TEXT.replace("{ALIAS}", ALIASES[cache])
    compilation = Compilation(status="ok", memory=dict.fromkeys(SIZES, 1 << 18), text=text)
    return read(compilation, {"z": 2}, "gpu")


def test_commands_in_a_buffer_are_followed_to_what_they_move_and_send():
    found = step("in place").as_record()
    assert found["cache_aliased"]
    (moved,) = found["copies"]
    assert moved["what"] == "layers/*/mlp/down/values converted from s8 to bf16"
    assert moved["widened"] and moved["bytes"] == 256 * 512 * (1 + 2)
    (sent,) = found["collectives"]
    assert (sent["kind"], sent["axes"], sent["payload_bytes"]) == ("all-reduce", ["z"], 8 * 256 * 2)
    assert sent["where"] == "layer_0/mlp"


@pytest.mark.parametrize("cache", ALIASES)
def test_a_cache_is_in_place_where_the_program_says_so(cache):
    assert step(cache).not_aliased == ([] if cache == "in place" else ["cache/keys/0"])


def test_each_kernel_has_its_sort_its_place_and_the_bytes_that_it_moves():
    matrix, product, token = 256 * 512, 8 * 256 * 2, 8 * 1 * 128 * 2
    found = [(each.sort, each.place, each.count) for each in step("in place").kernels]
    assert found == [
        ("fusion", "layer/mlp", 1),
        ("library call", "layer/mlp", 1),
        ("fusion", "layer/cache_write", 1),
        ("collective", "layer/mlp", 1),
    ]
    convert, product_of, write, send = step("in place").kernels
    assert (convert.bytes_read, convert.bytes_written) == (matrix, 2 * matrix)
    assert convert.weights_read == matrix and convert.cache_read == 0
    assert product_of.weights_read == 2 * matrix  # written and read again, in more bits
    assert (write.bytes_read, write.bytes_written) == (token + 4, 0)  # updates what is there
    assert (send.bytes_read, send.bytes_written) == (product, product)


def test_programs_for_other_platforms_have_no_kernels():
    text = TEXT.replace("{ALIAS}", ALIASES["in place"])
    compilation = Compilation(status="ok", memory=dict.fromkeys(SIZES, 1 << 18), text=text)
    assert "kernels" not in read(compilation, {"z": 2}).as_record()


@pytest.mark.parametrize(
    ("line", "sort"),
    [
        (FUSED, "fusion"),
        (FUSED + ', backend_config={"kind":"__triton"}', "Triton fusion"),
        (FUSED + ', backend_config={"kind":"__triton_nested_gemm_fusion"}', "Triton matmul"),
        (FUSED + ', backend_config={"kind":"__cudnn$fusion"}', "library call"),
        ('custom-call(%p), custom_call_target="__cublas$lt$matmul"', "library call"),
        ('custom-call(%p), custom_call_target="__gpu$xla.gpu.triton"', "Pallas kernel"),
        ('custom-call(%p), custom_call_target="mosaic_gpu_v2"', "Pallas kernel"),
        ('custom-call(%p), custom_call_target="topk"', "other"),
        ("copy(%p)", "copy"),
    ],
)
def test_a_kernel_is_known_by_who_makes_it(line, sort):
    text = f"""\
HloModule one, is_scheduled=true

%f (q: f32[8]) -> f32[8] {{
  ROOT %q = f32[8]{{0}} parameter(0)
}}

ENTRY %main (p: f32[8]) -> f32[8] {{
  %p = f32[8]{{0}} parameter(0)
  ROOT %made = f32[8]{{0}} {line}
}}
"""
    program = parse(text)
    (found,) = kernels(program, list(walk(program)), "cache/", ("carry/",))
    assert found.sort == sort and found.count == 1


DOT = """\
HloModule one, is_scheduled=true, entry_computation_layout={}

%add (a: s32[], b: s32[]) -> s32[] {
  %a = s32[] parameter(0)
  %b = s32[] parameter(1)
  ROOT %sum = s32[] add(%a, %b)
}

%f (w: s8[256,512], x: s8[64,512]) -> f32[256,64] {
  %w = s8[256,512]{1,0} parameter(0)
  %x = X[64,512]{1,0} parameter(1)
  LINES
}

ENTRY %main (p: s8[256,512], x: s8[64,512]) -> f32[256,64] {
  %p = s8[256,512]{1,0} parameter(0), metadata={op_name="parameters[\\'layers\\'][0][\\'mlp\\'][\\'down\\'][\\'values\\']"}
  %x = X[64,512]{1,0} parameter(1), metadata={op_name="carry.tokens"}
  ROOT %made = f32[256,64]{1,0} MADE
}
"""  # noqa: E501
TRITON_DOT = 'fusion(%p, %x), kind=kCustom, calls=%f, backend_config={"kind":"__triton_gemm"}'
SUM = "fusion(%p, %x), kind=kInput, calls=%f"
LIBRARY_DOT = 'custom-call(%p, %x), custom_call_target="__cublas$lt$matmul"'
INTEGER_DOT = """\
%d = s32[256,64]{1,0} dot(%w, %x), lhs_contracting_dims={1}, rhs_contracting_dims={1}
  ROOT %c = f32[256,64]{1,0} convert(%d)"""
FLOAT_DOT = """%c = bf16[256,512]{1,0} convert(%w)
  ROOT %d = f32[256,64]{1,0} dot(%c, %x), lhs_contracting_dims={1}, rhs_contracting_dims={1}"""
INTEGER_SUM = """%v = s32[256,512]{1,0} convert(%w)
  %m = s32[256,512]{1,0} multiply(%v, %v)
  %z = s32[] constant(0)
  %d = s32[256]{0} reduce(%m, %z), dimensions={1}, to_apply=%add
  %s = f32[256]{0} convert(%d)
  ROOT %c = f32[256,64]{1,0} broadcast(%s), dimensions={0}"""
FLOAT_SUM = INTEGER_SUM.replace("s32[256", "f32[256").replace("s32[]", "f32[]")


@pytest.mark.parametrize(
    ("made", "x", "lines", "converts"),
    [
        (TRITON_DOT, "bf16", FLOAT_DOT, True),
        (TRITON_DOT, "s8", INTEGER_DOT, False),
        (LIBRARY_DOT, "s8", INTEGER_DOT, False),
        (SUM, "f32", FLOAT_SUM, True),
        (SUM, "s8", INTEGER_SUM, False),
    ],
)
def test_integers_are_converted_only_where_they_are_multiplied_as_floats(made, x, lines, converts):
    text = DOT.replace("MADE", made).replace("LINES", lines).replace("X[", x + "[")
    program = parse(text)
    (found,) = kernels(program, list(walk(program)), "cache/", ("carry/",))
    assert found.weights_read == 256 * 512
    assert found.converted == (256 * 512 if converts else 0)
