"""Quantized weights of other makers, known by what their tensors and files are called.

None of them is read. Names: what each maker's `save_pretrained` or `save_quantized` writes.
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
    """The file that says of a folder, given the names of all its files, how it is quantized."""
    return next((name for name in _FILES if name in names), None)


def quantized(tensors: Iterable[str], files: Iterable[str]) -> str | None:
    """What quantized these tensors, and by what one sees it, as the beginning of an error.

    Args:
      tensors: their names.
      files: names of the files beside them.

    Returns:
      Such as "tensor a.qweight is quantized by GPTQ (quantize_config.json)"; None where no name
      tells of it.
    """
    seen = ((kind, name) for kind in _TENSORS for name in tensors if name.endswith(kind))
    kind, name = next(seen, ("", ""))
    if not kind:
        return None
    file = file_of(files)
    by = f"{_FILES[file]} ({file})" if file else _TENSORS[kind]
    return f"tensor {name:.100} is quantized by {by}"
