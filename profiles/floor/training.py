"""Training and serving alike: tokens that cost as much, and how far they are past the optimum.

A token trained on takes 6 FLOPs per active parameter, forward and backward, a token served 2
(Kaplan et al. 2020, arXiv 2001.08361). The most capable model for some training takes 20 tokens per
parameter (Hoffmann et al. 2022, arXiv 2203.15556); one that is to be served much takes more.
"""

TRAINED, SERVED = 6, 2  # FLOPs per active parameter and token
OPTIMAL = 20  # tokens per parameter
TRAINING_MFU = 0.4  # 38 to 43% in Grattafiori et al. 2024 (arXiv 2407.21783), table 4


def balanced_tokens(served: float, served_mfu: float = 1.0, trained_mfu: float = 1.0) -> float:
    """Tokens to train on that cost as much as serving does: 6 N D / m' = 2 N S / m.

    Costs that pull in opposite directions are least in sum about where they are alike.

    Args:
      served: S, tokens served over the model's life.
      served_mfu: m, fraction of peak arithmetic that serving reaches.
      trained_mfu: m', the same of training.
    """
    return served * SERVED / TRAINED * trained_mfu / served_mfu


def past_optimal(tokens: float, active: float) -> float:
    """Tokens trained on over those that are compute-optimal for so many active parameters."""
    return tokens / (OPTIMAL * active)
