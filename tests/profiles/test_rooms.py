"""The rooms of `profiles` and the packages beside it import one way alone."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Of each room those that it may import, beside what these may.
ROOMS = {
    "report": (),
    "chips": ("report",),
    "floor": ("chips",),
    "expected": ("floor",),
    "hlo": ("floor",),
    "compiled": ("expected", "hlo"),
    "measured": ("hlo",),
    "explained": ("measured", "compiled"),
    "serving": ("expected", "measured"),
    "peers": ("report",),
    "plan": ("expected",),
    "published": ("expected",),
    "figures": ("expected",),
}
FLOORS = ("sharding", "model", "decode", "profiles")


def within(room: str) -> set[str]:
    """A room and all that it may import."""
    return {room}.union(*(within(below) for below in ROOMS[room]))


def imported(path: Path) -> set[str]:
    """Modules that a file imports, whole names."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{each.name}" for each in node.names}
        elif isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_it_may(room):
    files = sorted((ROOT / "profiles" / room).glob("*.py"))
    assert len(files) > 2
    for path in files:
        others = {name.split(".")[1] for name in imported(path) if name.startswith("profiles.")}
        assert others <= within(room), path


def test_every_file_of_profiles_is_in_a_room():
    assert {path.name for path in (ROOT / "profiles").glob("*.py")} == {"__init__.py"}
    folders = {path.name for path in (ROOT / "profiles").iterdir() if path.is_dir()}
    assert folders - {"results", "__pycache__"} == {*ROOMS}


@pytest.mark.parametrize("place", range(len(FLOORS)))
def test_a_package_imports_only_those_below_it(place):
    above = {*FLOORS[place + 1 :], "scripts", "tests"}
    for path in (ROOT / FLOORS[place]).rglob("*.py"):
        assert not {name.split(".")[0] for name in imported(path)} & above, path


def test_no_file_is_longer_than_a_sitting():
    for folder in (*FLOORS, "scripts", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            assert len(path.read_text().splitlines()) <= 400, path
