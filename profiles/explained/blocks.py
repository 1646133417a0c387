"""The block of the model that an operation belongs to, by the scope in which JAX traced it.

Scopes are those that `model/` and `decode/` open with `jax.named_scope`. A scope that is not in
`SCOPES` is a block of its own, so that code that someone adds is seen under its own name.
"""

import re

from profiles.floor.block_counts import SAMPLING, SCOPES

RESIDUAL = "sums and positions"  # the residual stream, and what stands in no scope of its own
LAUNCHES = "between operations"  # no operation runs: a device goes from one to the next
HOST = "host"  # no operation runs, from one step to the next: a device waits for the host

COLLECTIVES = {
    "all-reduce": "all-reduce",
    "all-gather": "all-gather",
    "reduce-scatter": "reduce-scatter",
    "all-to-all": "all-to-all",
    "ragged-all-to-all": "all-to-all",
    "collective-permute": "permute",
    "collective-broadcast": "broadcast",
}
"""XLA's collectives, and their kinds as layouts name them. Each kind is a block."""

_STEP = ("decode_step", "prefill")
# Parts of a path that JAX adds by itself: layers, control flow and functions, which are no blocks.
_PLUMBING = re.compile(
    r"layer_\d+|while|body|cond|branch_\d+_fun|scan|closed_call|core_call|shard_map|checkpoint"
    r"|remat\d?|custom_[jv][vj]p_call\w*|pjit|jit\(.*\)|decode_step|prefill|\w*\[.*"
)


def block_of_scope(op_name: str) -> str | None:
    """The block of an operation, by the path that JAX gave it.

    Args:
      op_name: such as ``jit(_advance_step)/decode_step/layer_0/mlp/dot_general``.

    Returns:
      The first scope's block; that scope itself if it is none of the model's; None for no path.
    """
    *parts, _ = [_inside(part) for part in op_name.split("/")]
    if not parts:
        return None
    scopes = [part for part in parts if part and not _PLUMBING.fullmatch(part)]
    known = [SCOPES[scope] for scope in scopes if scope in SCOPES]
    if known or scopes:
        return (known or scopes)[0]
    return RESIDUAL if any(step in parts for step in _STEP) else SAMPLING


def collective_kind(operation: str) -> str | None:
    """The kind of a collective, by its opcode or by its name in a trace; None for others."""
    opcode = re.sub(r"(-start|-done)?(\.\d+)*$", "", operation)
    return COLLECTIVES.get(opcode)


def _inside(part: str) -> str:
    """A scope without the transformations that JAX writes round it, such as ``vmap(mlp)``."""
    found = re.fullmatch(r"(?!jit\b|pjit\b)\w+\((.*)\)", part)
    return _inside(found[1]) if found else part
