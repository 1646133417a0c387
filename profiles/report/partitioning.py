"""How a pass is divided over devices, as part of its record and in words."""

from model.config import ModelConfig
from profiles.report.record import Record
from sharding.placement import Placement


def partitioning(config: ModelConfig, placement: Placement, prompts: bool = False) -> Record:
    """The layout that a pass runs in, and how its cache lies where that differs, as a record.

    Args:
      config: the model.
      placement: the placement of decode steps, which says how the cache lies.
      prompts: the pass is over prompts, which may have a layout of their own.

    Returns:
      `mesh`, `layout`, `attention`, `collectives`; `expert_parallel` where experts are divided; and
      `cache_layout`, `cache_attention` of prompts that run otherwise than decode steps.
    """
    steps = placement.layout
    runs = placement.prefill.layout if prompts else steps
    other = (runs.name, runs.attends) != (steps.name, steps.attends)
    return Record(
        mesh=dict(placement.mesh),
        layout=runs.name,
        attention=runs.attends,
        collectives=runs.collectives,
        expert_parallel=True if runs.expert_parallel and config.experts else None,
        cache_layout=steps.name if other else None,
        cache_attention=steps.attends if other else None,
    )


def cache_words(record: Record) -> str:
    """How the cache lies, where it lies otherwise than the pass runs; else empty."""
    if record.cache_layout is None:
        return ""
    return f"cache as {record.cache_layout} by {record.cache_attention} has it"
