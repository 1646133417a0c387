"""Commands that run one after another into one folder, and go on where they were stopped.

Each is a process of its own with a share of the time. What became of it is in `state.json` at once,
so that a run that is killed can be started again: parts that were finished are kept, and the others
are run, each of which may keep what it had written itself.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from profiles.report.files import check_writable, write_json
from sharding.error_types import FloorlineError, UsageError

STATE = "state.json"
OUTPUT, ERRORS = "output.txt", "errors.txt"
GRACE_S = 15.0  # from an interrupt to the end by force
_ENDS_WITH_US = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGINT)  # 1 is PR_SET_PDEATHSIG
signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore it
os.execvp(sys.argv[1], sys.argv[1:])
"""
"""What becomes the program of its arguments, to be interrupted where this process is killed.

A program of its own sets that, not a function between fork and exec of this process: its threads
may hold locks at that moment, which nobody would open in the copy.
"""


@dataclasses.dataclass(frozen=True)
class CommandPart:
    """One command.

    Attributes:
      name: its folder in the results.
      command: the program and its arguments.
      share: of the time, beside the shares of the others.
      where_there: file -> an argument that is added where the file is there when the part begins.
    """

    name: str
    command: Sequence[str]
    share: float = 1.0
    where_there: Mapping[Path, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class State:
    """What became of the parts so far.

    Attributes:
      settings: what the parts were made from; a folder holds one run of one kind.
      parts: name -> `status` ("ok", "failed" or "out_of_time"), `seconds`, `message`, `command`.
    """

    settings: dict
    parts: dict[str, dict] = dataclasses.field(default_factory=dict)

    def done(self, name: str) -> bool:
        """Whether a part is finished."""
        return self.parts.get(name, {}).get("status") == "ok"


def read_state(folder: Path, settings: dict) -> State:
    """The state of an earlier run in a folder, or a new one.

    Args:
      folder: the results.
      settings: of this run, as JSON would give them back.

    Raises:
      UsageError: the folder holds a run of other settings.
      FloorlineError: its state cannot be read.
    """
    path = folder / STATE
    if not path.exists():
        return State(settings)
    try:
        state = State(**json.loads(path.read_text(encoding="utf-8")))
        different = [name for name in settings if state.settings.get(name) != settings[name]]
        for part in state.parts.values():
            _ = part["status"], part["seconds"]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise FloorlineError(
            f"state of {folder} is not readable ({type(error).__name__}); name another --output_dir"
        ) from error
    if different:
        name = different[0]
        raise UsageError(
            f"{name} is {settings[name]} here and {state.settings.get(name)} in {folder}; give the "
            "same flags to go on, or another --output_dir"
        )
    return state


def run_parts(
    parts: Sequence[CommandPart],
    folder: Path,
    state: State,
    seconds: float,
    say: Callable[[str], None],
    after_each: Callable[[State], None],
) -> None:
    """Runs all parts that are not finished; one that fails does not keep others from running.

    Args:
      parts: in order.
      folder: each part has the folder of its name in it.
      state: is kept in the folder.
      seconds: for all; what a part leaves of its share is shared by those after it.
      say: shows a line to the user.
      after_each: is called with the state after each part.
    """
    check_writable(folder)
    end = time.monotonic() + seconds
    left = [part for part in parts if not state.done(part.name)]
    if len(left) < len(parts):
        say(f"{len(parts) - len(left)} of {len(parts)} parts are kept; going on")
    while left:
        part, shares = left[0], sum(each.share for each in left)
        allowed = max(end - time.monotonic(), 0) * part.share / shares
        say(f"{part.name}: at most {allowed:.0f} s")
        found = _run(part, folder / part.name, allowed)
        say(f"{part.name}: {found['status']} after {found['seconds']:.0f} s {found['message']}")
        state.parts[part.name] = found
        write_json(folder / STATE, dataclasses.asdict(state))
        after_each(state)
        left.pop(0)


def _run(part: CommandPart, folder: Path, allowed: float) -> dict:
    check_writable(folder)
    command = [*part.command, *(word for path, word in part.where_there.items() if path.exists())]
    begin, status = time.monotonic(), "ok"
    with (folder / OUTPUT).open("wb") as output, (folder / ERRORS).open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _ENDS_WITH_US, *command],
            stdout=output,
            stderr=errors,
            stdin=subprocess.DEVNULL,
        )
        try:
            process.wait(allowed)
        except subprocess.TimeoutExpired:
            status = "out_of_time"
            _end(process)
        except BaseException:
            _end(process)
            raise
    if status == "ok" and process.returncode:
        status = "failed"
    return {
        "status": status,
        "seconds": time.monotonic() - begin,
        "message": "" if status == "ok" else _last_line(folder / ERRORS),
        "command": list(map(str, command)),
    }


def _end(process: subprocess.Popen) -> None:
    """Interrupts a process, which may then keep what it has, and kills it if it goes on."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _last_line(path: Path) -> str:
    lines = [line.strip() for line in path.read_text(errors="replace").split("\n") if line.strip()]
    return lines[-1][:300] if lines else ""


def report_markdown(
    title: str,
    parts: Sequence[CommandPart],
    state: State,
    folder: Path,
    table: Callable[[Path], str] = lambda folder: "",
) -> str:
    """All parts in one page: what each printed, its pictures, and which are not finished.

    Args:
      title: the first line.
      parts: in order.
      state: what became of them.
      folder: the results.
      table: of the folder of a part that printed nothing, what it wrote before it was ended.
    """
    lines = [f"# {title}", "", "| part | status | seconds | |", "|---|---|---:|---|"]
    for part in parts:
        found = state.parts.get(part.name, {"status": "not run", "seconds": 0, "message": ""})
        message = found["message"].replace("|", "\\|")
        lines.append(f"| {part.name} | {found['status']} | {found['seconds']:.0f} | {message} |")
    for part in parts:
        if part.name not in state.parts:
            continue
        own = folder / part.name
        command = " ".join(os.path.basename(word) if word == part.command[0] else word
                           for word in state.parts[part.name]["command"])  # fmt: skip
        printed = (own / OUTPUT).read_text(errors="replace") if (own / OUTPUT).exists() else ""
        text = printed.strip("\n") or table(own) or "Nothing was written."
        lines += ["", f"## {part.name}", "", "```", f"$ {command}", "", text, "```"]
        for picture in sorted(own.glob("*.png")):
            lines += ["", f"![{picture.stem} of {part.name}]({part.name}/{picture.name})"]
    return "\n".join(lines) + "\n"
