"""A GGUF model in several files, as llama.cpp's `gguf-split` writes it, opened as one.

Part 1 of 3 is called `NAME-00001-of-00003.gguf` and has all metadata; the others have tensors, and
of metadata what follows. `split.no` is the number of the part, from 0 on; `split.count` is how many
parts there are, and 0 in a file that parts were merged into; `split.tensors.count` is how many
tensors all parts have together. Source: llama.cpp's `tools/gguf-split/gguf-split.cpp` and
`src/llama-model-loader.cpp`.
"""

import os

from model.weights import WeightsError
from model.weights.gguf_file import DAMAGED, MIXED_PARTS, GGUFFile, short

NUMBER, COUNT, TENSORS = "split.no", "split.count", "split.tensors.count"


def open_model(path: str | os.PathLike[str]) -> GGUFFile:
    """A GGUF file with the tensors of all parts of its model.

    Args:
      path: a file that is complete, or the first of several parts, which lie beside it.

    Raises:
      WeightsError: a file breaks the format, is missing, is another part than the first, or does
        not belong to the others.
    """
    first = GGUFFile(path)
    count = _number(first, COUNT) if COUNT in first.metadata else 0
    if count <= 1:
        return first
    begin, tensors = _beginning(first, count), _number(first, TENSORS)
    for number in range(1, count):
        beside = first.path.with_name(begin + _ending(number, count))
        if not beside.exists():
            raise WeightsError(
                f"model file {beside.name} is part {number + 1} of {count} but missing from "
                f"{beside.parent}; fetch it too"
            )
        part = GGUFFile(beside)
        _check(part, first, {NUMBER: number, COUNT: count, TENSORS: tensors})
        first.join(part)
    if tensors != len(first.tensors):
        raise WeightsError(
            f"metadata '{TENSORS}' of {first.path.name} is {tensors}, but its {count} parts have "
            f"{len(first.tensors)} tensors; {MIXED_PARTS}"
        )
    return first


def _ending(number: int, count: int) -> str:
    """What the name of a part ends in; parts are counted from 0."""
    return f"-{number + 1:05d}-of-{count:05d}.gguf"


def _beginning(file: GGUFFile, count: int) -> str:
    """What the names of all parts begin with; refuses every part but the first."""
    number = _number(file, NUMBER)
    part, ending = f"part {number + 1} of {count}", _ending(number, count)
    if not file.path.name.endswith(ending):
        raise WeightsError(
            f"model file is {file.path.name}, {part} by its metadata, without the ending {ending} "
            "by which parts find each other; give parts the names they were published under, or "
            "join them with llama-gguf-split --merge, not with cat"
        )
    begin = file.path.name.removesuffix(ending)
    if number:
        raise WeightsError(
            f"model file is {file.path.name}, {part}; give the first, "
            f"{file.path.with_name(begin + _ending(0, count))}"
        )
    return begin


def _check(part: GGUFFile, first: GGUFFile, expected: dict[str, int]) -> None:
    """Refuses a file that is not the part of `first`'s model that its name says."""
    for key, value in expected.items():
        if (found := _number(part, key)) != value:
            raise WeightsError(
                f"metadata '{key}' of {part.path.name} is {found}, not {value}, so that it "
                f"does not belong to {first.path.name}; {MIXED_PARTS}"
            )


def _number(file: GGUFFile, key: str) -> int:
    value = file.metadata.get(key)
    if type(value) is not int:
        found = "missing" if value is None else f"{short(value)}, not a number"
        raise WeightsError(f"metadata '{key}' of {file.path.name} is {found}; {DAMAGED}")
    return value
