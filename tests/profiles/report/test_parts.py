"""Commands in one folder: kept, repeated, ended and killed; planted ones."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from profiles.report.parts import (
    CommandPart,
    State,
    read_state,
    report_markdown,
    run_parts,
)
from sharding.error_types import FloorlineError, UsageError

ROOT = Path(__file__).parents[3]
COUNTED = "import sys; open(sys.argv[1], 'a').write('ran '); print('a table')"
FAILING = "import sys; print('error: memory is full; use less', file=sys.stderr); sys.exit(1)"
LONG = """
import time
try:
    print("a row", flush=True)
    time.sleep(600)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""
SETTINGS = {"model": "tiny", "batch": ["1"]}


def part(name: str, code: str, *words: str, **more) -> CommandPart:
    return CommandPart(name, [sys.executable, "-c", code, *words], **more)


def run(parts: list[CommandPart], folder: Path, seconds: float = 300) -> tuple[State, list[str]]:
    said: list[str] = []
    state = read_state(folder, SETTINGS)
    run_parts(parts, folder, state, seconds, said.append, lambda state: None)
    return state, said


def wait_for(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 300
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_part_that_fails_is_named_and_run_again_while_others_are_kept(tmp_path):
    parts = [part("first", COUNTED, str(tmp_path / "count")), part("second", FAILING)]
    state, _ = run(parts, tmp_path / "out")
    assert state.done("first") and state.parts["second"]["status"] == "failed"
    assert state.parts["second"]["message"] == "error: memory is full; use less"
    parts[1] = part("second", COUNTED, str(tmp_path / "other"))
    state, said = run(parts, tmp_path / "out")
    assert said[0] == "1 of 2 parts are kept; going on" and state.done("second")
    assert (tmp_path / "count").read_text() == "ran "


def test_a_part_beyond_its_share_is_ended_and_the_rest_goes_on(tmp_path):
    parts = [part("long", LONG, share=1), part("short", COUNTED, str(tmp_path / "c"), share=119)]
    begin = time.monotonic()
    state, _ = run(parts, tmp_path / "out", seconds=120)
    assert time.monotonic() - begin < 120
    assert state.parts["long"]["status"] == "out_of_time" and state.done("short")


def test_a_killed_run_goes_on_with_what_it_had_not_finished(tmp_path):
    code = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from tests.profiles.report.test_parts import *
folder = Path(sys.argv[1])
parts = [part("first", COUNTED, str(folder / "count")), part("long", LONG)]
run(parts, folder / "out", seconds=600)
"""
    running = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT)
    printed = tmp_path / "out/long/output.txt"
    wait_for(lambda: printed.exists() and "a row" in printed.read_text())
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    if sys.platform == "linux":  # its part ends with it, and holds no device then
        wait_for(lambda: "interrupted" in printed.read_text())
    parts = [part("first", COUNTED, str(tmp_path / "count")),
             part("long", COUNTED, str(tmp_path / "count"))]  # fmt: skip
    state, said = run(parts, tmp_path / "out")
    assert said[0] == "1 of 2 parts are kept; going on" and state.done("long")
    assert (tmp_path / "count").read_text() == "ran ran "


def test_other_settings_are_refused_and_nothing_is_overwritten(tmp_path):
    run([part("first", COUNTED, str(tmp_path / "count"))], tmp_path)
    before = (tmp_path / "state.json").read_bytes()
    with pytest.raises(UsageError, match=r"model is llama3-8b here and tiny in .*; give the same"):
        read_state(tmp_path, SETTINGS | {"model": "llama3-8b"})
    assert (tmp_path / "state.json").read_bytes() == before


@pytest.mark.parametrize("text", ["{", "[]", '{"settings": {}, "parts": {"a": 1}}'])
def test_a_damaged_state_is_one_line(tmp_path, text):
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(FloorlineError, match=r"state of .* is not readable .*; name another"):
        read_state(tmp_path, SETTINGS)


def test_an_argument_is_added_where_its_file_is_there(tmp_path):
    there = {tmp_path / "a": "--a=1", tmp_path / "b": "--b=2"}
    (tmp_path / "a").touch()
    state, _ = run([part("one", "print(1)", where_there=there)], tmp_path / "out")
    assert state.parts["one"]["command"][-1] == "--a=1"


def test_the_page_has_what_was_printed_and_what_was_not_run(tmp_path):
    parts = [part("first", COUNTED, str(tmp_path / "count")), part("second", FAILING)]
    state, _ = run(parts[:1], tmp_path / "out")
    (tmp_path / "out/first/steps.png").touch()
    text = report_markdown("title", parts, state, tmp_path / "out")
    assert "# title" in text and "a table" in text and "| second | not run | 0 |  |" in text
    assert "![steps of first](first/steps.png)" in text
