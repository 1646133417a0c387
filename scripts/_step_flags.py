"""Flags of scripts that compile one step for a slice that need not be at hand."""

import _array_flags
from absl import flags

TOPOLOGY = flags.DEFINE_string(
    "topology", None, "Chip and shape of the slice, such as v5p:2x2x4 or h100:8."
)
MESH = flags.DEFINE_string("mesh", None, "Sizes of mesh axes x, y and z; by default the best.")
BATCH = flags.DEFINE_integer("batch", 8, "Sequences; padded if the layout divides batches.", 1)
CONTEXT = flags.DEFINE_integer(
    "context", 2048, "Tokens in each sequence's cache; for prefill, tokens of each prompt.", 1
)
PHASE = flags.DEFINE_enum("phase", "decode", ["decode", "prefill"], "Which pass.")
CHUNK = _array_flags.define_chunk(
    "Tokens of a prompt that run at once, a multiple of 16; of a longer prompt the last whole one "
    "is compiled, after all tokens before it. Default: 2048."
)
LAYERS = flags.DEFINE_integer(
    "layers", None, "Number of layers in place of the model's own, to compile faster.", 1
)
_array_flags.define_step_flags()
_array_flags.define_gpu_kernels()
_array_flags.leave_open()
