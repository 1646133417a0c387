"""Layers of a GGUF file after the model's own, which predict further tokens and are left out.

`block_count` counts them too, and `nextn_predict_layers` says how many they are. Source:
`conversion/qwen.py` of https://github.com/ggml-org/llama.cpp.
"""

import re

from model.config import ModelConfig
from model.weights.gguf_file import GGUFFile
from model.weights.gguf_keys import Keys

_LAYER = re.compile(r"blk\.(\d{1,9})\.")


def model_layers(keys: Keys, further: bool) -> int:
    """Layers of the model itself.

    Args:
      keys: the file's.
      further: whether an architecture may have others after them.

    Raises:
      WeightsError: as many others as there are layers, or more.
    """
    count, name = keys.integer("block_count"), "nextn_predict_layers"
    others = keys.integer(name, 0) if further else 0
    if others and not 0 < others < count:
        keys.refuse(name, others, f", where there are {count} layers with them")
    return count - others


def all_layers(file: GGUFFile) -> int:
    """Layers of a file whose `model_layers` were read."""
    return file.metadata[f"{file.metadata['general.architecture']}.block_count"]


def is_further(file: GGUFFile, config: ModelConfig, tensor: str) -> bool:
    """Whether a tensor is of a layer after the model's own."""
    found = _LAYER.match(tensor)
    return found is not None and config.layers <= int(found[1]) < all_layers(file)
