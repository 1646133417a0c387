"""Pipelines over racks in closed form: when a stage hides the hop to the next, and what hops add.

A stage sends each token's activations on once. Inside it, each layer of experts sends them to k
experts and back. Both go at once, so the network hides behind the fabric if

    network / fabric x k x 2 x layers of experts per stage >= 1.

Source: Reiner Pope x Dwarkesh Patel podcast, 29 Apr 2026 (transcript), with 1/8 for the ratio.
"""

import math


def inside_over_between(
    network_over_fabric: float, experts_per_token: int, layers_per_stage: float
) -> float:
    """Time to send inside a stage over time to send to the next; from 1 on the hop is hidden.

    Args:
      network_over_fabric: rate between racks over rate inside one.
      experts_per_token: experts that a token is sent to in each layer.
      layers_per_stage: layers of experts in a stage.
    """
    return network_over_fabric * experts_per_token * 2 * layers_per_stage


def least_layers(network_over_fabric: float, experts_per_token: int) -> int:
    """Fewest layers of experts in a stage that hide its hop."""
    return math.ceil(1 / inside_over_between(network_over_fabric, experts_per_token, 1))


def sent_s(stages: int, size: float, rate: float) -> float:
    """Seconds in which activations of so many bytes go through all stages, one hop after another.

    The last stage sends back no activations, but tokens, whose bytes are next to none.

    Args:
      stages: number of stages.
      size: bytes of the activations of a batch.
      rate: bytes per second from one stage to the next, of all its chips together.
    """
    return (stages - 1) * size / rate


def with_hops(step_s: float, stages: int, hop_s: float) -> float:
    """Seconds from a token to the next with the latency of hops, of which a ring has one a stage.

    The last stage sends the token to the first: one stage alone has no hop.
    """
    return step_s + (stages * hop_s if stages > 1 else 0.0)
