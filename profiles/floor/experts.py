"""How many distinct experts of a mixture the tokens of a pass read."""

from typing import Protocol


class HasExperts(Protocol):
    """A model's numbers of experts, as far as this module needs them."""

    experts: int
    experts_per_token: int


def touched_experts(model: HasExperts, tokens: float, experts: float | str | None) -> float:
    """Distinct experts of a layer that tokens read; `PassCounter` explains `experts`."""
    if experts == "all":
        return model.experts
    if experts == "least":
        return model.experts_per_token
    return expected_experts(model, tokens) if experts in (None, "coverage") else experts


def expected_experts(config: HasExperts, tokens: float) -> float:
    """Expected number of distinct experts, if tokens choose independently and uniformly.

    E (1 - (1 - k / E) ** tokens); 0 for a model without experts.
    """
    if not config.experts:
        return 0.0
    missed = (1 - config.experts_per_token / config.experts) ** tokens
    return config.experts * (1 - missed)
