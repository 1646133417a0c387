"""What the flags of `_economics_flags` and --economics ask of a decode step, answered."""

import dataclasses
from typing import Any

import _economics_flags
from _economics_flags import ACCEPTANCE, DAYS, DRAFTED, HOP_MS, SERVED, STAGES

from profiles.expected import answers, economics_text
from profiles.expected.estimate import Estimate, Estimator
from profiles.report.numbers import several
from sharding.error_types import UsageError


def asked(estimator: Estimator, step: Estimate, economics: bool) -> dict[str, Any]:
    """Answers by name, for a decode step; `economics` asks for those of the slice itself."""
    found, last, deployment = {}, step.pass_, estimator.deployment
    if economics:
        found["traffic"] = answers.traffic(estimator)
        found["utilization"] = answers.utilization(estimator)
        layer = deployment.model, deployment.slice, deployment.dtypes, last.batch
        found["expert_layer"] = answers.expert_layer(*layer)
    if DRAFTED.value:
        drafts = DRAFTED.value, ACCEPTANCE.value
        found["speculation"] = answers.speculation(estimator, last, *drafts)
    if seconds := _economics_flags.held():
        found["held"] = answers.held(estimator, last.context, seconds)
    if SERVED.value:
        active = estimator.describe().parameters["active"]
        found["training"] = answers.training(step, active, SERVED.value, DAYS.value)
    if count := stages(estimator, economics):
        found["pipeline"] = answers.pipelined(estimator, last, count, HOP_MS.value / 1e3)
    return {name: answer for name, answer in found.items() if answer is not None}


def in_words(found: dict[str, Any], step: Estimate) -> list[str]:
    """The answers in lines for people."""
    last, model = step.pass_, step.deployment.model
    said = {
        "traffic": lambda it: economics_text.filled(it),
        "utilization": lambda it: economics_text.halved(it),
        "expert_layer": lambda it: economics_text.expert_layer(it, model, last.batch),
        "speculation": lambda it: economics_text.speculation(it, last, model),
        "held": lambda it: economics_text.held(it),
        "training": lambda it: economics_text.trained(it, last, SERVED.value, DAYS.value),
        "pipeline": lambda it: economics_text.pipelined(it, model),
    }
    return [line for name, answer in found.items() for line in said[name](answer)]


def as_fields(found: dict[str, Any]) -> dict[str, Any] | None:
    """The answers as a record has them, without what is not known; None for none."""
    return {name: _known(dataclasses.asdict(answer)) for name, answer in found.items()} or None


def _known(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _known(each) for name, each in value.items() if each is not None}
    return [_known(each) for each in value] if isinstance(value, tuple | list) else value


def stages(estimator: Estimator, economics: bool) -> int | None:
    """Stages of the pipeline to report; None for no pipeline.

    Raises:
      UsageError: more stages than layers, or a chip without a known network.
    """
    count, slice = STAGES.value, estimator.deployment.slice
    model = estimator.deployment.model
    if count and count > model.layers:
        raise UsageError(
            f"--stages is {count}, but {model.name} has {several(model.layers, 'layer')}; "
            "use one stage a layer at most"
        )
    if count and not slice.chip.network:
        raise UsageError(
            f"--stages is {count}, but the rate of the network between slices of "
            f"{slice.chip.name} is not known; give --network_bandwidth"
        )
    return count or (4 if economics and slice.chip.network and model.layers >= 4 else None)
