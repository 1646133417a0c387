"""What each step of a batching engine did, and how long it took: where a service loses time."""

import dataclasses


@dataclasses.dataclass
class StepStats:
    """One step: chunks of prompts, then a token for every row that decodes, or more with drafts.

    What a service loses against full steps with free prompts is told by sums over steps: empty
    slots by `rows` - `active` + `wasted` of `decode_seconds`; prompts by `prompt_seconds`, of which
    `padding` of `prompt_tokens` + `padding` computed nothing; the host by `idle_seconds`; the step
    over its floor by `decode_seconds` against the floor of `rows` rows.

    Attributes:
      rows: sequences of the decode step that ran, taken or not; 0 without one.
      active: rows that a token was launched for; 0: no decode step ran.
      wasted: those of `active` whose answer had ended at a stop or was cancelled when the token
        arrived.
      drafted: tokens of drafts that could have stood: limits leave room for no more, and rows that
        were wasted count none.
      accepted: those that stood, each a token more of its row.
      context: tokens in the caches of active rows, all together, before the step; with drafts, at
        most.
      chunks: programs that ran chunks of prompts.
      prompt_tokens: tokens of prompts in them.
      reused_tokens: tokens of prompts that were not run, because a row held them.
      padding: tokens that only filled chunks up.
      prompt_seconds: device's time for the chunks, as the host saw it pass.
      decode_seconds: device's time for the decode step, likewise. Where rows change places, their
        copies are in the first of both that there is.
      host_seconds: the host's own time in `Batcher.step`, without waiting for devices.
      idle_seconds: time in which devices had nothing to do before this step's programs came, from
        the arrival of the step's results before; 0 after a pause without requests.
    """

    rows: int
    active: int = 0
    wasted: int = 0
    drafted: int = 0
    accepted: int = 0
    context: int = 0
    chunks: int = 0
    prompt_tokens: int = 0
    reused_tokens: int = 0
    padding: int = 0
    prompt_seconds: float = 0.0
    decode_seconds: float = 0.0
    host_seconds: float = 0.0
    idle_seconds: float = 0.0
