"""An engine in a process of its own: its threads and memory must not be shared with others."""

import contextlib
import dataclasses
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from profiles.peers.messages import About, Failure, Job, Round, Status, Work
from sharding.error_types import FloorlineError

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 1800.0
OWN = "floorline"
_HUGGING_FACE, _LLAMA_CPP = "profiles.peers.hugging_face", "profiles.peers.llama_cpp"
ENGINES = {
    OWN: "profiles.peers.floorline",  # this project, on one device
    "transformers": _HUGGING_FACE,  # a plain loop over the model, with a growing cache
    "transformers-compiled": _HUGGING_FACE,  # a static cache, and steps compiled by torch.compile
    "transformers-generate": _HUGGING_FACE,  # its own loop
    "llama.cpp": _LLAMA_CPP,  # its server, on the same weights in one plain type
    "llama.cpp-quantized": _LLAMA_CPP,  # its server, on the file as it is
}
"""The engines that are compared, and the module that runs each: see `serve`."""
DEFAULT = [name for name in ENGINES if name != "transformers-generate"]
"""Those that are compared unless others are asked for."""


class EngineError(FloorlineError):
    """An engine that gives no answer.

    Attributes:
      status: why, in a word.
    """

    def __init__(self, message: str, status: Status = "failed"):
        super().__init__(message)
        self.status = status


class EngineProcess:
    """The process of one engine; a context, at whose end it is gone.

    Attributes:
      job: what it was given.
      about: what it says of itself.
    """

    def __init__(
        self,
        job: Job,
        modules: Mapping[str, str] | None = None,
        python: str = sys.executable,
        timeout_s: float = TIMEOUT_S,
    ):
        """Starts the process and waits until the engine is loaded.

        Args:
          job: what it is to load.
          modules: engine -> the module that runs it; None for those of `ENGINES`.
          python: interpreter with the engine installed.
          timeout_s: seconds after which an answer does not come any more.

        Raises:
          EngineError: it cannot load.
        """
        module = (modules or ENGINES)[job.engine]
        self.job, self._timeout_s = job, timeout_s
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [python, "-m", module],
            cwd=ROOT,
            env=_environment(job),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,  # Ctrl-C is for the process that compares
        )
        self._unread = b""
        try:
            self.about = About(**self._ask(job))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "EngineProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def round(self, work: Work) -> Round:
        """Runs one round, while this process waits.

        Raises:
          EngineError: the engine fails, ends or takes too long.
        """
        return Round(**self._ask(work))

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            with contextlib.suppress(OSError):  # what was not sent is lost
                pipe.close()

    def _ask(self, message: Job | Work) -> dict:
        line = json.dumps(dataclasses.asdict(message)) + "\n"
        try:
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None
        answer = json.loads(self._line())
        if answer.keys() == {field.name for field in dataclasses.fields(Failure)}:
            raise EngineError(answer["message"], answer["status"])
        return answer

    def _line(self) -> bytes:
        """The next line of the process's answers."""
        end = time.monotonic() + self._timeout_s
        output = self._process.stdout.fileno()
        while b"\n" not in self._unread:
            ready, _, _ = select.select([output], [], [], max(end - time.monotonic(), 0))
            if not ready:
                raise EngineError(
                    f"time of {self.job.engine} is above {self._timeout_s:g} s; ask for less work"
                )
            found = os.read(output, 1 << 16)
            if not found:
                raise self._ended()
            self._unread += found
        line, self._unread = self._unread.split(b"\n", 1)
        return line

    def _ended(self) -> EngineError:
        """Why the process has ended without an answer: the last line that it said."""
        code = self._process.wait(self._timeout_s)
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(said) if line.strip()), "no word")
        return EngineError(
            f"exit code of {self.job.engine} is {code} ({last[:200]}); run it alone, or leave it "
            "out of --engines"
        )


def _environment(job: Job) -> dict[str, str]:
    threads = {"OMP_NUM_THREADS": str(job.threads), "NPROC": str(job.threads)}
    # Neither of JAX and torch may take the memory of a GPU from the other.
    shared = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    return os.environ | threads | shared
