"""A model's parameters from a GGUF file: the stored tensors that each array is made of.

Sources: the tensor names of the GGUF specification
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md) and what llama.cpp's
`convert_hf_to_gguf.py` does to each tensor: it reorders the rows of Llama's query and key matrices
and adds to the norms of Gemma 2 and 3 the 1 that their files leave out.
"""

import re
from collections.abc import Iterator, Mapping

import numpy as np

from model.config import ModelConfig
from model.weights import WeightsError
from model.weights.gguf_architectures import ARCHITECTURES
from model.weights.gguf_blocks import GROUP
from model.weights.gguf_config import read_keys
from model.weights.gguf_file import DAMAGED, GGUFFile, TensorInfo, short
from model.weights.gguf_gemma4 import Gemma4Layer, borrowed, input_parameters
from model.weights.gguf_keys import further_layers
from model.weights.gguf_layers import KeyPath, Layer, Parameter
from model.weights.gguf_rotary import rotary_shapes, with_rotary
from sharding.quantization import QUANTIZATIONS, Quantization, QuantizedArray

_UNEMBEDDING = ("unembedding", "weight")
_BLOCK = re.compile(r"blk\.([0-9]{1,9})\.")


def read_config(file: GGUFFile) -> ModelConfig:
    """The model's configuration, checked against the tensors of the file.

    Args:
      file: a GGUF file of one of `model.weights.gguf_architectures.ARCHITECTURES`.

    Raises:
      WeightsError: another architecture, metadata that is missing, unknown or asks for something
        not supported, or tensors other than the configuration needs.
      ConfigError: sizes that contradict each other.
    """
    config, rotary = read_keys(file)
    # Rotary factors come last: their number is the head size, which the tensors must confirm first.
    _checked_parameters(file, config)
    return with_rotary(file, config, rotary)


def read_parameters(
    file: GGUFFile, config: ModelConfig, keep: Mapping[KeyPath, Quantization] | None = None
) -> Iterator[tuple[KeyPath, np.ndarray | QuantizedArray]]:
    """The model's parameters, one at a time, so that the host never holds all of them.

    Args:
      file: the GGUF file.
      config: the configuration that `read_config` gave for this file.
      keep: quantization to return each parameter in; those already stored so are not dequantized.

    Returns:
      An iterator of (path in the model, float32 array, or codes and scales) in the order of the
      model.

    Raises:
      WeightsError: at the call, for tensors that are missing, left over or of another shape; while
        iterating, for damaged values.
    """
    parameters = _checked_parameters(file, config)
    return ((p.path, _read(file, p, (keep or {}).get(p.path))) for p in parameters)


def stored_quantization(file: GGUFFile) -> Quantization | None:
    """MXFP4, if matrices are in it, as experts' are; others become whatever type is wanted."""
    name = "mxfp4"
    found = any(file.quantization(tensor) == name for tensor in file.tensors)
    return QUANTIZATIONS[name] if found else None


def _read(
    file: GGUFFile, parameter: Parameter, quantization: Quantization | None
) -> np.ndarray | QuantizedArray:
    sources, kinds = parameter.sources, {file.quantization(name) for name in parameter.sources}
    if quantization is not None and kinds == {quantization.name}:
        stored = [
            [part.reshape(*shape[:-1], -1) for part in file.read_kept(name)]
            for name, shape in sources.items()
        ]
        codes, *rest = zip(*stored, strict=True)  # and scales, perhaps offsets
        values = parameter.build(*codes)
        if values.shape[-1] % GROUP == 0:  # else inputs of two heads share a scale
            numbers = [parameter.build(*part) for part in rest]
            values = values.astype(quantization.dtype)
            return QuantizedArray(values, *numbers, group=quantization.group)
    return parameter.build(*(file.read(name).reshape(shape) for name, shape in sources.items()))


def _parameters(file: GGUFFile, c: ModelConfig) -> list[Parameter]:
    architecture = ARCHITECTURES[file.metadata["general.architecture"]]
    matrix, vector = (c.vocabulary, c.d_model), (c.d_model,)
    kind = Gemma4Layer if architecture.kinds_of_heads else Layer
    layers = (kind(c.at(number), number, architecture, file.tensors) for number in range(c.layers))
    return [
        Parameter(("embedding", "weight"), {"token_embd.weight": matrix}),
        *(parameter for layer in layers for parameter in layer.parameters()),
        *(input_parameters(c) if c.layer_inputs else []),
        Parameter(("final_norm", "scale"), {"output_norm.weight": vector}),
        *([] if c.tied_embedding else [Parameter(_UNEMBEDDING, {"output.weight": matrix})]),
    ]


def _tensors(file: GGUFFile, config: ModelConfig) -> Iterator[tuple[str, TensorInfo]]:
    """All tensors but those of layers that predict further tokens: these are left out."""
    further = further_layers(file)
    for name, info in file.tensors.items():
        number = _BLOCK.match(name)
        if not number or not config.layers <= int(number[1]) < config.layers + further:
            yield name, info


def _checked_parameters(file: GGUFFile, config: ModelConfig) -> list[Parameter]:
    """The model's parameters, after a check that the file holds exactly their tensors."""
    architecture = file.metadata["general.architecture"]
    if config.layers > len(file.tensors):
        raise WeightsError(
            f"metadata '{architecture}.block_count' of {file.path.name} is {config.layers}, with "
            f"only {len(file.tensors)} tensors; {DAMAGED}"
        )
    parameters = _parameters(file, config)
    needed = {name: shape for p in parameters for name, shape in p.sources.items()}
    unused = borrowed(file.tensors, config)
    needed |= rotary_shapes(file, config)
    stored = {name: info.shape for name, info in _tensors(file, config)}
    misshapen = [
        f"{name} {list(stored[name])} for {list(shape)}"
        for name, shape in needed.items()
        if name in stored and _ggml(stored[name]) != _ggml(shape)
    ]
    groups = {
        "missing": [name for name in needed if name not in stored],
        "left over": [short(n) for n in stored if n not in needed and n not in unused],
        "misshapen": misshapen,
    }
    wrong = [
        f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for what, names in groups.items()
        if names
    ]
    if wrong:
        raise WeightsError(
            f"tensor list of {file.path.name} is {', '.join(wrong)}; give a model that is complete"
        )
    return parameters


def _ggml(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The same without ones before it: GGML does not tell a row from a matrix of one row."""
    first = next((at for at, size in enumerate(shape) if size != 1), len(shape))
    return shape[first:]
