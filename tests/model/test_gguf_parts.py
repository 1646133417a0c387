"""GGUF models in several files: read as one, and refused where the files do not belong together."""

import re
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFValueType, GGUFWriter

from decode.tokenizer import Tokenizer
from model.weights import WeightsError
from model.weights.gguf import read_config, read_parameters
from model.weights.gguf_file import GGUFFile
from model.weights.gguf_parts import open_model
from tests.gguf_samples import write_tiny_gguf

TINY = {"layers": 1, "tied": False, "seed": 3, "quantization": "Q8_0"}  # 12 tensors
EXTRA = {"zz.weight": np.ones(32, np.float32)}
FIRST, SECOND, THIRD = (f"m-0000{n}-of-00003.gguf" for n in (1, 2, 3))
ANEW = "; fetch all parts again"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """One model as a file, in two parts, and in three with tensors in all or but the first.

    Two others of three parts: one with a tensor more, and one as large whose parts are others.
    """
    folder = tmp_path_factory.mktemp("parts")
    for name, choices in {
        "whole": {},
        "two": {"tensors_per_part": 6},
        "m": {"tensors_per_part": 4},
        "bare": {"tensors_per_part": 6, "empty_first_part": True},
        "larger": {"tensors_per_part": 5, "tensors": EXTRA},
        "shifted": {"tensors_per_part": 4, "tensors": {"token_embd.weight": None} | EXTRA},
    }.items():
        write_tiny_gguf(folder / f"{name}.gguf", **TINY, **choices)
    return folder


@pytest.fixture
def parts(written, tmp_path):
    """The three parts of "m", to be damaged."""
    return [Path(shutil.copy(written / name, tmp_path)) for name in (FIRST, SECOND, THIRD)]


@pytest.mark.parametrize(("name", "count"), [("two", 2), ("m", 3), ("bare", 3)])
def test_a_model_in_parts_is_that_of_one_file(written, name, count):
    whole = open_model(written / "whole.gguf")
    several = open_model(written / f"{name}-00001-of-{count:05d}.gguf")
    assert (len(whole.paths), len(several.paths)) == (1, count)
    assert list(several.tensors) == list(whole.tensors)
    config = read_config(whole)
    assert read_config(several) == config
    found = dict(read_parameters(several, config))
    for path, value in read_parameters(whole, config):
        np.testing.assert_array_equal(found[path], value, err_msg=str(path))
    for matrix in ("blk.0.ffn_up.weight", "output.weight"):
        for mine, theirs in zip(several.read_kept(matrix), whole.read_kept(matrix), strict=True):
            np.testing.assert_array_equal(mine, theirs)
    mine, theirs = (Tokenizer.from_gguf(file.metadata) for file in (several, whole))
    assert mine.encode("the end of a story") == theirs.encode("the end of a story")


def test_a_file_that_parts_were_merged_into_is_whole(tmp_path):
    """`llama-gguf-split --merge` leaves the keys of parts, with a count of 0."""
    path, merged = tmp_path / "m.gguf", {"split.no": 0, "split.count": 0, "split.tensors.count": 12}
    write_tiny_gguf(path, **TINY, metadata=merged)
    file = open_model(path)
    assert file.paths == (path,)
    assert read_config(file).layers == 1


def test_the_memory_of_all_parts_is_given_back(parts):
    maps = Path("/proc/self/smaps")
    if not maps.exists():
        pytest.skip("only Linux tells which pages of a file are in memory")
    held = re.compile(rf"{parts[0].parent}/\S+\n(?:.*\n){{3}}Rss: +(\d+) kB")
    file = open_model(parts[0])
    for name in file.tensors:
        file.read(name)
    before = held.findall(maps.read_text())
    file.let_go()
    assert len(before) == 3 and "0" not in before
    assert held.findall(maps.read_text()) == ["0", "0", "0"]
    assert np.isfinite(file.read("output.weight")).all()  # read again


def put(path: Path, key: str, code: str, value: int) -> None:
    """Overwrites a number of the metadata."""
    content = bytearray(path.read_bytes())
    struct.pack_into(code, content, content.index(key.encode()) + len(key) + 4, value)
    path.write_bytes(content)


def without(parts, written):
    parts[1].unlink()


def out_of_turn(parts, written):
    shutil.copy(parts[2], parts[1])


def of_fewer_parts(parts, written):
    put(parts[1], "split.count", "<H", 2)


def of_a_larger_model(parts, written):
    shutil.copy(written / "larger-00002-of-00003.gguf", parts[1])


def of_a_shifted_model(parts, written):
    """As many tensors in all, but the second part has one that is in the third here."""
    shutil.copy(written / "shifted-00002-of-00003.gguf", parts[1])


def of_no_parts(parts, written):
    shutil.copy(written / "whole.gguf", parts[1])


def with_a_wrong_total(parts, written):
    for path in parts:
        put(path, "split.tensors.count", "<i", 13)


def cut_in_its_header(parts, written):
    parts[1].write_bytes(parts[1].read_bytes()[:200])


def cut_in_its_tensors(parts, written):
    parts[2].write_bytes(parts[2].read_bytes()[:-33])


def infinite(parts, written):
    """The scale of the first block of the last tensor of the second part."""
    info = list(GGUFFile(parts[1]).tensors.values())[-1]
    content = bytearray(parts[1].read_bytes())
    content[info.offset : info.offset + 2] = b"\x00\x7c"
    parts[1].write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (without, f"model file {SECOND} is part 2 of 3 but missing from .*; fetch it too"),
        (out_of_turn, f"'split.no' of {SECOND} is 2, not 1, so .* not belong to {FIRST}{ANEW}"),
        (of_fewer_parts, f"'split.count' of {SECOND} is 2, not 3, so that it .*{ANEW}"),
        (of_a_larger_model, f"'split.tensors.count' of {SECOND} is 13, not 12, so that .*{ANEW}"),
        (of_a_shifted_model, f"tensor 'blk.0.ffn_up.*' of {THIRD} is also in {SECOND}{ANEW}"),
        (of_no_parts, f"'split.no' of {SECOND} is missing; the file is damaged"),
        (with_a_wrong_total, f"count' of {FIRST} is 13, but its 3 parts have 12 .*{ANEW}"),
        (cut_in_its_header, f"of {SECOND} is .* bytes at byte .* of 200; .* cut short"),
        (cut_in_its_tensors, f"tensor 'output.weight' of {THIRD} is stored up to .* cut short"),
        (infinite, f"tensor 'blk.0.ffn_gate.weight' of {SECOND} is not finite everywhere"),
    ],
)
def test_parts_that_do_not_make_one_model_are_refused_by_name(parts, written, damage, words):
    damage(parts, written)
    with pytest.raises(WeightsError, match=words) as caught:
        file = open_model(parts[0])
        dict(read_parameters(file, read_config(file)))
    assert "\n" not in str(caught.value)


def test_another_part_than_the_first_is_refused_with_the_first(parts):
    with pytest.raises(WeightsError, match=f"{SECOND}, part 2 of 3; give the first, {parts[0]}"):
        open_model(parts[1])


def test_a_part_under_another_name_is_refused(parts):
    """So is a file that parts were joined into byte by byte: its metadata are the first part's."""
    joined = parts[0].with_name("joined.gguf")
    joined.write_bytes(b"".join(path.read_bytes() for path in parts))
    with pytest.raises(WeightsError, match=r"joined.gguf, part 1 of 3 by .*; .*, not with cat"):
        open_model(joined)


@pytest.mark.parametrize("count", ["three", 2.5, [3, 4]])
def test_a_count_of_parts_that_is_no_number_is_refused(tmp_path, count):
    writer = GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_key_value("split.count", count, GGUFValueType.get_type(count))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(WeightsError, match=r"'split.count' of m.gguf is .*, not a number; "):
        open_model(tmp_path / "m.gguf")
