"""How a pass is divided over devices, as fields that every record of one has, and in words."""

from model.config import ModelConfig
from profiles.report.document import Record
from sharding.placement import Placement


def partitioning(config: ModelConfig, placement: Placement, prompts: bool = False) -> Record:
    """The fields of the layout that a pass runs in, and of how its cache lies where that differs.

    Args:
      config: the model.
      placement: of decode steps, which says how the cache lies.
      prompts: the pass is over prompts, which may have a layout of their own.

    Returns:
      `mesh`, `layout`, `attention`, `collectives`; `expert_parallel` where experts are divided; and
      `cache_layout`, `cache_attention` of prompts that run otherwise than decode steps.
    """
    steps = placement.layout
    runs = placement.prefill.layout if prompts else steps
    fields: Record = {
        "mesh": dict(placement.mesh),
        "layout": runs.name,
        "attention": runs.attends,
        "collectives": runs.collectives,
    }
    if runs.expert_parallel and config.experts:
        fields["expert_parallel"] = True
    if (runs.name, runs.attends) != (steps.name, steps.attends):
        fields |= {"cache_layout": steps.name, "cache_attention": steps.attends}
    return fields


def cache_words(fields: Record) -> str:
    """How the cache lies, where it lies otherwise than the pass runs; else empty."""
    if "cache_layout" not in fields:
        return ""
    return f"cache as {fields['cache_layout']} by {fields['cache_attention']} has it"
