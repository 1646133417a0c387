"""The engines that are compared: the module that runs each, and what it is."""

from typing import NamedTuple

OWN = "floorline"


class Kind(NamedTuple):
    """An engine.

    Attributes:
      module: what ``python -m`` runs, see `serve`.
      summary: what it is, in a few words.
    """

    module: str
    summary: str


ENGINES = {
    OWN: Kind("profiles.peers.floorline", "this project, on one device"),
    "transformers": Kind(
        "profiles.peers.hugging_face", "a plain loop over the model, with a growing cache"
    ),
    "transformers-generate": Kind("profiles.peers.hugging_face", "its own `generate`"),
    "transformers-compiled": Kind(
        "profiles.peers.hugging_face", "a static cache, and steps compiled by torch.compile"
    ),
    "llama.cpp": Kind("profiles.peers.llama_cpp", "its server, on the same weights in one type"),
    "llama.cpp-quantized": Kind("profiles.peers.llama_cpp", "its server, on the file as it is"),
}
DEFAULT = [name for name in ENGINES if name != "transformers-generate"]
"""Those that are compared unless others are asked for."""
