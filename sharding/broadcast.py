"""What process 0 tells all others, message after message, while devices are at work.

Messages go through JAX's coordination service, which process 0 runs. No device takes part, so a
message arrives while a step runs, and who waits for one sleeps.
"""

import json
from collections.abc import Callable
from typing import Any

from sharding import processes
from sharding.error_types import FloorlineError

_PIECE = 1 << 18
"""Characters that the service is given at once; gRPC refuses 4 MB and more."""
_FOLDER = 256
"""Pieces that lie in the service before all processes have read them, so 64 MB at most."""
_WAIT_MS = 3600 * 1000  # of one call; a message that takes longer is waited for once more
_MORE, _LAST = "+", "."  # what a piece begins with


class Broadcast:
    """A line of messages from process 0 to every other one; where there is none, they go nowhere.

    All processes make their lines in the same order. Each line belongs to one thread.
    """

    def __init__(self):
        self._name, self._pieces = processes.fresh_name(), 0

    def send(self, message: Any) -> None:
        """Tells the others something that JSON can hold; called by process 0.

        Raises:
          FloorlineError: another process is gone.
        """
        if processes.count() == 1:
            return
        text, client = json.dumps(message), processes.client()
        for start in range(0, len(text), _PIECE):
            kind = _MORE if start + _PIECE < len(text) else _LAST
            piece = kind + text[start : start + _PIECE]
            self._call(lambda key, piece=piece: client.key_value_set(key, piece), self._next_key())

    def receive(self) -> Any:
        """Waits for the next message; called by every process but the first.

        Raises:
          FloorlineError: process 0 is gone.
        """
        text, kind = "", _MORE
        while kind == _MORE:
            piece = self._call(_get, self._next_key())
            kind, text = piece[0], text + piece[1:]
        return json.loads(text)

    def _next_key(self) -> str:
        """The next piece's name; where a folder begins, the one before is read by all and goes."""
        folder, number = divmod(self._pieces, _FOLDER)
        self._pieces += 1
        if folder and not number:
            self._call(_wait_for_all, f"{self._name}/{folder}")
            if processes.is_first():
                self._call(processes.client().key_value_delete, f"{self._name}/{folder - 1}")
        return f"{self._name}/{folder}/{number}"

    def _call(self, work: Callable[[str], Any], key: str) -> Any:
        """Work of the service.

        Raises:
          FloorlineError: it fails, as it does where a process is gone.
        """
        try:
            return work(key)
        except Exception as error:
            raise FloorlineError(processes.gone(str(error))) from error


def _get(key: str) -> str:
    while True:
        try:
            return processes.client().blocking_key_value_get(key, _WAIT_MS)
        except Exception as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise


def _wait_for_all(name: str) -> None:
    processes.client().wait_at_barrier(name, processes.LONG_MS)
