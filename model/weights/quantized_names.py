"""Recognizes weights that other tools quantized, by the names of tensors and files.

Such weights cannot be read. The names are those that each tool's `save_pretrained` or
`save_quantized` writes.
"""

from collections.abc import Iterable

NOT_READ = "are not read; give them in BF16, F16 or F32, or as a GGUF file"

_FILES = {"quantize_config.json": "GPTQ", "quant_config.json": "AWQ"}
_TENSORS = {
    ".g_idx": "GPTQ",
    ".qweight": "GPTQ or AWQ",
    ".qzeros": "GPTQ or AWQ",
    ".absmax": "bitsandbytes",
    ".quant_map": "bitsandbytes",
    ".SCB": "bitsandbytes",
    ".weight_packed": "compressed-tensors",
    ".weight_scale": "FP8 or compressed-tensors",
    ".weight_scale_inv": "FP8",
    ".W_q": "HQQ",
    ".codebooks": "AQLM",
    ".biases": "MLX",
}


def file_of(names: Iterable[str]) -> str | None:
    """The file in a folder that says how it is quantized, from the names of all its files."""
    return next((name for name in _FILES if name in names), None)


def quantized(tensors: Iterable[str], files: Iterable[str]) -> str | None:
    """The tool that quantized these tensors and the name that shows it, to begin an error with.

    Args:
      tensors: names of the tensors.
      files: names of the other files in their folder.

    Returns:
      A text such as "tensor a.qweight is quantized by GPTQ (quantize_config.json)"; None if no name
      shows any quantization.
    """
    seen = ((kind, name) for kind in _TENSORS for name in tensors if name.endswith(kind))
    kind, name = next(seen, ("", ""))
    if not kind:
        return None
    file = file_of(files)
    by = f"{_FILES[file]} ({file})" if file else _TENSORS[kind]
    return f"tensor {name:.100} is quantized by {by}"
