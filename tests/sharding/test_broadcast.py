"""Messages from process 0 to another, through a service that threads stand in for."""

import threading

import pytest

from sharding import broadcast, processes
from sharding.broadcast import Broadcast
from sharding.error_types import FloorlineError


class PretendedService:
    """What JAX's coordination service does for its clients, for two threads of one process."""

    def __init__(self):
        self.pieces: dict[str, str] = {}
        self.most = 0
        self.in_vain = threading.Semaphore(0)  # of each wait that came to its end
        self._changed = threading.Condition()
        self._barrier = threading.Barrier(2)

    def key_value_set(self, key, value):
        with self._changed:
            assert key not in self.pieces
            self.pieces[key] = value
            self.most = max(self.most, len(self.pieces))
            self._changed.notify_all()

    def blocking_key_value_get(self, key, timeout_ms):
        with self._changed:
            if not self._changed.wait_for(lambda: key in self.pieces, timeout_ms / 1000):
                self.in_vain.release()
                raise RuntimeError("DEADLINE_EXCEEDED")
            return self.pieces[key]

    def key_value_delete(self, folder):
        with self._changed:
            for key in [key for key in self.pieces if key.startswith(f"{folder}/")]:
                del self.pieces[key]

    def wait_at_barrier(self, name, timeout_ms):
        self._barrier.wait(120)


@pytest.fixture
def service(monkeypatch):
    service, first = PretendedService(), threading.current_thread()
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "is_first", lambda: threading.current_thread() is first)
    monkeypatch.setattr(processes, "client", lambda: service)
    monkeypatch.setattr(processes, "fresh_name", lambda: "line")
    monkeypatch.setattr(broadcast, "_PIECE", 100)
    monkeypatch.setattr(broadcast, "_FOLDER", 8)
    return service


def test_messages_of_any_length_arrive_in_order_and_leave_nothing_behind(service):
    messages = [[], {"a": "\ud800é"}, "x" * 5000, None, *range(40), ["y" * 99] * 5]
    found = []

    def follow():
        line = Broadcast()
        found.extend(line.receive() for _ in messages)

    follower = threading.Thread(target=follow)
    follower.start()
    line = Broadcast()
    for message in messages:
        line.send(message)
    follower.join(120)
    assert found == messages
    assert service.most <= 16


def test_a_message_that_comes_late_is_waited_for_once_more(service, monkeypatch):
    monkeypatch.setattr(broadcast, "_WAIT_MS", 20)
    found = []
    follower = threading.Thread(target=lambda: found.append(Broadcast().receive()))
    follower.start()
    assert all(service.in_vain.acquire(timeout=120) for _ in range(2))
    Broadcast().send("at last")
    follower.join(120)
    assert found == ["at last"]


@pytest.mark.parametrize(
    ("text", "first", "who"),
    [("(stopped sending heartbeats):\n1 \n", True, "process 1"),
     ("Socket closed", False, "process 0"),
     ("UNAVAILABLE", True, "another process")],
)  # fmt: skip
def test_where_the_service_fails_a_process_is_gone(service, monkeypatch, text, first, who):
    def fail(key, *_):
        raise RuntimeError(text)

    monkeypatch.setattr(processes, "is_first", lambda: first)
    monkeypatch.setattr(service, "key_value_set", fail)
    monkeypatch.setattr(service, "blocking_key_value_get", fail)
    with pytest.raises(FloorlineError, match=f"^{who} of 2 is gone, so "):
        Broadcast().send(1) if first else Broadcast().receive()


def test_one_process_tells_nobody(monkeypatch):
    monkeypatch.setattr(processes, "client", pytest.fail)
    Broadcast().send(object())
