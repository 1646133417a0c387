"""Where a service loses time: the seconds of each token, from its floor to what was measured.

A service has R rows. Of a load that keeps at most C requests in flight, full steps are those of
``B = min(C, R)`` sequences; where requests come by themselves, B is R. In W seconds it makes N
tokens, in steps s of which each has

    d_s  seconds of its decode step (`StepStats.decode_seconds`),
    n_s  rows of that (`rows`), which may be fewer than R,
    p_s  seconds of its chunks of prompts (`prompt_seconds`),
    q_s  tokens of prompts in them, and g_s tokens that only fill them up (`padding`),
    u_s  rows whose token some request takes (``active - wasted``),

and z seconds pass without any request in the service. A fixed batch of n has steps of t_n seconds
in the same process, on a straight line between the numbers that were timed. A full step of B rows
alone would have taken the part t_B / t_n of d_s, where n is n_s, and u_s of its tokens the part

    f_s = min( (u_s / B) (t_B / t_n), 1 ).

The floor of a step of B sequences is F. Then, in seconds for each token,

    empty slots   ( sum_s d_s (1 - f_s) + z ) / N
    prompts         sum_s p_s q_s / (q_s + g_s) / N
    padding         sum_s p_s g_s / (q_s + g_s) / N
    host          ( W - z - sum_s d_s - sum_s p_s ) / N
    over floor      sum_s d_s f_s / N  -  F / B

and their sum is ``W / N - F / B``, the whole that is lost between the floor of full steps, prompts
free, and what was measured. The ideal, steps of t_B with every row taken, lies between: of what is
over the floor ``(t_B - F) / B`` is the fixed batch's own.

Where steps verify drafts, a row takes several tokens of a step, and F is the floor of such a step
over the tokens of a row in it, on average: the sum is as before. A row runs T tokens in it, those
that are refused among them, and all T count in that floor. The t_n are those of steps of one token
for each row still: they only tell which part of d_s a full step would have taken.

An answer's first token comes of its prompt and takes no row of a step, yet F counts it like all
others: over the floor is less by ``F / B`` of one token in each answer.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from decode.batching.stats import StepStats


class Lost(NamedTuple):
    """Seconds that each token takes beyond its floor, by cause; they add up to the whole.

    Attributes:
      empty_slots: rows without a request, tokens that nobody took, and times without requests.
      prompts: tokens of prompts, which run between steps.
      padding: tokens that only fill chunks of prompts up.
      host: devices wait for the host.
      over_floor: decode steps over the floor, as far as their rows were taken.
    """

    empty_slots: float
    prompts: float
    padding: float
    host: float
    over_floor: float

    @property
    def seconds(self) -> float:
        """The whole."""
        return sum(self)


def lost(
    steps: Sequence[StepStats],
    *,
    wall_s: float,
    paused_s: float,
    tokens: int,
    batch: int,
    step_s: Mapping[int, float],
    floor_s: float,
) -> Lost:
    """Where time went.

    Args:
      steps: of the load.
      wall_s: W.
      paused_s: z, of W.
      tokens: N.
      batch: B.
      step_s: t_n by n, of B and others.
      floor_s: F.
    """
    decode = sum(step.decode_seconds for step in steps)
    prompts = sum(step.prompt_seconds for step in steps)
    taken = sum(step.decode_seconds * _taken(step, batch, step_s) for step in steps if step.active)
    padding = sum(step.prompt_seconds * _padding(step) for step in steps)
    return Lost(
        empty_slots=(decode - taken + paused_s) / tokens,
        prompts=(prompts - padding) / tokens,
        padding=padding / tokens,
        host=(wall_s - paused_s - decode - prompts) / tokens,
        over_floor=taken / tokens - floor_s / batch,
    )


def _taken(step: StepStats, batch: int, step_s: Mapping[int, float]) -> float:
    """The part of a decode step that its tokens would take of full steps; f_s in the module."""
    timed = sorted(step_s)
    alone = np.interp(step.rows, timed, [step_s[rows] for rows in timed])
    return min((step.active - step.wasted) / batch * step_s[batch] / float(alone), 1.0)


def _padding(step: StepStats) -> float:
    """The part of a step's chunks that computed nothing."""
    return step.padding / ((step.prompt_tokens + step.padding) or 1)
