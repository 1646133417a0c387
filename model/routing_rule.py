"""A router's rule for choosing experts, as data; `model.routing` applies it.

Softmax over all experts: Jiang et al. 2024 (Mixtral), section 2.1. Of groups of experts the best
first: DeepSeek-AI 2024 (DeepSeek-V2), section 2.1.3. Sigmoid scores, to which a bias is added for
the choice alone: DeepSeek-AI 2024 (DeepSeek-V3), section 2.1.2.
"""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Routing:
    """A router's rule.

    Attributes:
      score: what makes a score of a router's product.
      bias: a bias for each expert is added to its score for the choice, not for its share.
      groups: equal groups of neighbouring experts; 1 for no groups.
      chosen_groups: groups that experts are chosen from.
      group_scores: how many of a group's best scores are added to rank the group.
      scale: multiplies the shares.
      of_inputs: an expert's share multiplies what the expert reads, not what it answers (Llama 4).
    """

    score: Literal["softmax", "sigmoid"] = "softmax"
    bias: bool = False
    groups: int = 1
    chosen_groups: int = 1
    group_scores: int = 1
    scale: float = 1.0
    of_inputs: bool = False

    def fault(self, experts: int, chosen: int) -> str:
        """What is wrong with this rule for so many experts; empty if nothing is."""
        if self.score not in ("softmax", "sigmoid"):
            return f"score is {self.score!r}; use softmax or sigmoid"
        if self.groups < 1 or experts % self.groups:
            return f"groups is {self.groups}, which does not divide {experts} experts"
        size = experts // self.groups
        if not 1 <= self.chosen_groups <= self.groups:
            return f"chosen_groups is {self.chosen_groups}; it must be 1 to {self.groups}"
        if self.groups > 1 and not 1 <= self.group_scores <= size:
            return f"group_scores is {self.group_scores}; groups have {size} experts"
        if chosen > self.chosen_groups * size:
            return f"chosen_groups is {self.chosen_groups}, too few for {chosen} experts per token"
        if not 0 < self.scale < float("inf"):
            return f"scale is {self.scale}; it must be positive"
        return ""


SOFTMAX = Routing()
"""Softmax over all experts."""
