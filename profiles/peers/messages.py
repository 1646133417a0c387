"""What the process that compares engines and the processes of the engines tell each other.

Each message is one line of JSON. The first to an engine is its `Job`; it answers with an `About`
once it is loaded. Each later line to it is a `Work`, which it runs and answers with a `Round`.
Where it fails it tells a `Failure` and ends.
"""

import dataclasses
from typing import Literal

Status = Literal["ok", "missing", "unsupported", "failed"]


@dataclasses.dataclass(frozen=True)
class Job:
    """What an engine is to load, and what of this machine it may use.

    Attributes:
      engine: its name, one of `engine_process.ENGINES`.
      model: path of the weights, or a name of the catalogue for random ones.
      form: what `model` is.
      dtype: arithmetic, and weights as far as they are not quantized; empty for a default.
      batch: sequences decoded together.
      slots: tokens of each sequence that the cache has room for.
      threads: processors that it may use, and threads of its own making.
      platform: JAX's name of the devices that Floorline runs on; empty where that is not known.
      scratch: a folder for files that it makes.
      config: with random weights, the shapes as the fields of a Llama in transformers.
      max_context: tokens that the model goes to, in place of its own number; None to keep that.
    """

    engine: str
    model: str
    form: Literal["gguf", "huggingface", "orbax", "random"]
    dtype: str = ""
    batch: int = 1
    slots: int = 64
    threads: int = 1
    platform: str = ""
    scratch: str = ""
    config: dict | None = None
    max_context: int | None = None


@dataclasses.dataclass(frozen=True)
class About:
    """What an engine says of itself once it is loaded.

    Attributes:
      version: of the library.
      device: what it runs on.
      dtype: how its weights are stored.
      platform: JAX's name of that device, from Floorline alone.
    """

    version: str
    device: str
    dtype: str
    platform: str = ""


@dataclasses.dataclass(frozen=True)
class Work:
    """One round: prompts of equal lengths, continued greedily by so many tokens, two at least.

    Attributes:
      prompts: token ids of each sequence.
      new_tokens: tokens that each sequence gets. The first comes of the prompt, each other one of
        a decode step; none ends a sequence early.
    """

    prompts: list[list[int]]
    new_tokens: int


@dataclasses.dataclass(frozen=True)
class Round:
    """One engine's answer to a `Work`.

    Attributes:
      first_token_s: seconds from the prompts to the first token of each sequence.
      step_s: seconds of a decode step, the mean over the steps after that.
      tokens: the new tokens of each sequence; none where the engine does not tell them.
    """

    first_token_s: float
    step_s: float
    tokens: list[list[int]]


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why an engine gives no answer."""

    status: Status
    message: str
