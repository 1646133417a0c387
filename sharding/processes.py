"""One program in many processes: how they find each other, agree, and end together.

Every process (one per host, or one per GPU) runs the same program over one mesh of all their
devices. Process 0 speaks and writes for all. JAX's coordination service, which process 0 runs,
watches for processes that are gone; nothing here waits for one without a limit.
"""

import ctypes
import dataclasses
import itertools
import json
import os
import re
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable
from typing import IO, Any, NoReturn, TypeVar

from sharding.error_types import FloorlineError, UsageError

Answer = TypeVar("Answer")

PEER_TIMEOUT = 60
"""Default seconds for a process to come, or to be silent, before all others give it up."""
EXIT_SECONDS = 5.0  # for the other processes of a run that failed to fail alike
_WITH_ADDRESS = ("slurm", "ompi")  # clusters whose variables say where process 0 is
_DETECTED = (*_WITH_ADDRESS, "gketpu", "gcetpu")
_LOST = re.compile(r"stopped sending heartbeats\):\s+((?:\d+\s+)+)")
LONG_MS = 7 * 24 * 3600 * 1000  # a peer that is gone ends this process before that


@dataclasses.dataclass(frozen=True)
class Membership:
    """This process among those that run together.

    Attributes:
      count: how many there are.
      index: this one's number, from 0.
      coordinator: ``HOST:PORT`` of process 0; None where JAX finds it.
    """

    count: int = 1
    index: int = 0
    coordinator: str | None = None

    def check(self) -> None:
        """Refuses what cannot be one.

        Raises:
          UsageError: a number out of range, or an address that is none.
        """
        if not 0 <= self.index < self.count:
            raise UsageError(
                f"process id is {self.index} of {self.count}; use 0 to {self.count - 1}"
            )
        match = re.fullmatch(r"([^\s:/\[\]]+|\[[0-9a-fA-F:.]+\]):(\d{1,5})", self.coordinator or "")
        if not match or not 0 < int(match[2]) < 2**16:
            raise UsageError(
                f"coordinator is {self.coordinator!r}; use HOST:PORT of process 0, "
                "such as 10.0.0.1:8476"
            )

    def __str__(self) -> str:
        return f"process {self.index} of {self.count}"


_membership = Membership()
_peer_timeout = PEER_TIMEOUT
_exit_code: int | None = None  # the exit code, once this process is about to end
_numbers = itertools.count()
_referenced_by_c: list[object] = []  # what C holds a pointer to


def count() -> int:
    """How many processes run together."""
    return _membership.count


def peer_timeout() -> int:
    """Seconds that one of them may be silent before all others give it up."""
    return _peer_timeout


def is_first() -> bool:
    """Whether this is process 0, which speaks and writes for all."""
    return _membership.index == 0


def start(
    membership: Membership | None, peer_timeout: int = PEER_TIMEOUT, verbose: bool = False
) -> None:
    """Joins the other processes, if there are any; must run before JAX makes its devices.

    From here on only process 0 has a standard output, and a process that is gone ends all others
    within `peer_timeout` seconds (and up to ten more) with one line and exit code 1.

    Args:
      membership: which process this is; None to ask the clusters that JAX knows.
      peer_timeout: seconds for the others to come, and for one to be silent.
      verbose: let JAX's own messages through.

    Raises:
      FloorlineError: JAX cannot join, for another reason than that the others do not come, such as
        a coordinator's port that another program has.
    """
    import jax  # takes half a second: asked late here and below, as one process may end before it

    global _membership, _peer_timeout
    joined = membership or _detect()
    if joined.count == 1:
        return
    _membership, _peer_timeout = joined, peer_timeout
    _replace_stack_dump(_take_over_output(verbose), peer_timeout)
    jax.config.update("jax_enable_preemption_service", False)  # it would swallow SIGTERM
    jax.config.update("jax_check_proxy_envs", verbose)
    if is_first() and joined.coordinator:
        _try_port(joined)
    try:
        jax.distributed.initialize(
            joined.coordinator,
            joined.count if membership else None,
            joined.index if membership else None,
            cluster_detection_method="deactivate" if membership else None,
            initialization_timeout=peer_timeout,
            heartbeat_timeout_seconds=peer_timeout,
        )
    except Exception as error:
        raise _no_start(joined, _one_line(error)) from error


def _no_start(joined: Membership, why: str) -> FloorlineError:
    return FloorlineError(
        f"start of {joined} is failing ({why}); free the coordinator's port, or name another"
    )


def _try_port(joined: Membership) -> None:
    """Listens at the coordinator's port for a moment, as JAX's service will at all addresses.

    That service itself may end the process without a word where it cannot.

    Raises:
      FloorlineError: another program has the port.
    """
    port = int(joined.coordinator.rpartition(":")[2])
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    try:
        socket.create_server(
            ("", port), family=family, dualstack_ipv6=family is socket.AF_INET6
        ).close()
    except OSError as error:
        raise _no_start(joined, f"port {port}: {os.strerror(error.errno)}") from error


def _detect() -> Membership:
    """What a cluster that JAX knows says of this process.

    A TPU VM is asked (its metadata server, too) only where JAX may use the TPU.

    Raises:
      FloorlineError: there is a cluster, and it does not say.
    """
    import jax
    from jax._src import clusters  # has no public name

    platforms = jax.config.jax_platforms
    with_tpu = not platforms or "tpu" in platforms
    try:
        for cluster in clusters.ClusterEnv._cluster_types:
            known = cluster.name in _DETECTED and (with_tpu or "tpu" not in cluster.name)
            if known and cluster.is_env_present():
                number = cluster.get_process_count()
                if number == 1:
                    return Membership()
                address = None  # on a TPU slice JAX asks for it, and waits
                if cluster.name in _WITH_ADDRESS:
                    port = os.environ.get("JAX_COORDINATOR_PORT")
                    address = cluster.get_coordinator_address(None, port)
                return Membership(number, cluster.get_process_id(), address)
    except Exception as error:
        raise FloorlineError(
            f"cluster is {cluster.name}, which does not tell who this process is "
            f"({_one_line(error)}); give --coordinator, --num_processes and --process_id"
        ) from error
    return Membership()


def from_first_process(work: Callable[[], Answer]) -> Answer:
    """Process 0's answer, in all of them.

    Args:
      work: runs in process 0 alone; its answer is what JSON can hold.

    Raises:
      FloorlineError: where `work` raises one, in every process.
    """
    if count() == 1:
        return work()
    key = fresh_name()
    if is_first():
        try:
            outcome = {"answer": work()}
        except FloorlineError as error:
            outcome = {"error": str(error), "usage": isinstance(error, UsageError)}
        client().key_value_set(key, json.dumps(outcome))
    outcome = json.loads(client().blocking_key_value_get(key, LONG_MS))
    if "error" in outcome:
        raise (UsageError if outcome["usage"] else FloorlineError)(outcome["error"])
    return outcome["answer"]


def client() -> Any:
    """This process's client of JAX's coordination service; there is one where there are several."""
    from jax._src import distributed  # has no public name

    return distributed.global_state.client


def fresh_name() -> str:
    """A name for something in that service, the same in all processes, which ask as often."""
    return f"floorline/{next(_numbers)}"


def gone(text: str) -> str:
    """What this process says as it ends because another one is gone.

    Args:
      text: JAX's words, which may tell which one.
    """
    lost, total = _LOST.search(text), count()
    who = "another process" if is_first() else "process 0"
    if lost:
        who = f"process {', '.join(lost[1].split())}"
    return (
        f"{who} of {total} is gone, so {_membership} ends; see what it said itself, then start all "
        f"{total} again"
    )


def wait_for_all() -> None:
    """Waits until every process is done, so that none takes a peer for dead."""
    global _exit_code
    if count() > 1:
        import jax

        jax.distributed.shutdown()
        _exit_code = 0


def exit_failed(code: int) -> NoReturn:
    """Ends a run that failed, in seconds even where other processes do not.

    Those that fail alike part in order, each with its own code; any other takes this one's end for
    a death and ends, too.
    """
    global _exit_code
    if count() == 1:
        sys.exit(code)
    import jax

    _exit_code = code
    parting = threading.Thread(target=jax.distributed.shutdown, daemon=True)
    parting.start()
    parting.join(EXIT_SECONDS)
    sys.stderr.flush()
    os._exit(code)  # an orderly exit would wait for devices that wait for the others


def _take_over_output(verbose: bool) -> IO[bytes] | None:
    """Gives Python's output descriptors of its own, and C++'s to a file that is not shown.

    JAX's libraries write their own to both, stack dumps among it, in every process.
    """
    out = os.dup(1) if is_first() else os.open(os.devnull, os.O_WRONLY)
    letters = {"encoding": sys.stdout.encoding, "errors": sys.stdout.errors}
    sys.stdout.flush()
    sys.stderr.flush()
    buffering = 1 if os.isatty(out) else -1
    sys.stdout = open(out, "w", buffering, **letters)  # noqa: SIM115
    sys.stderr = open(os.dup(2), "w", 1, sys.stderr.encoding, sys.stderr.errors)  # noqa: SIM115
    unseen = None if verbose else tempfile.TemporaryFile()  # noqa: SIM115
    if unseen:
        os.dup2(unseen.fileno(), 2)
    os.dup2(2, 1)
    return unseen


def _replace_stack_dump(unseen: IO[bytes] | None, peer_timeout: int) -> None:
    """Replaces the stack dump of a process that JAX aborts, as it does where a peer is gone.

    JAX aborts in a thread of its own, while the program may wait in a collective for ever. Python's
    handlers would wait for the program; one that C calls does not. JAX's callback for this end
    cannot be written in Python: its argument has no Python type.
    """

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def aborted(_: int) -> None:
        if _exit_code is None:
            text = os.pread(unseen.fileno(), 1 << 20, 0).decode(errors="replace") if unseen else ""
            print(f"error: {_reason(text, peer_timeout)}", file=sys.stderr, flush=True)
        os._exit(1 if _exit_code is None else _exit_code)

    _referenced_by_c.append((aborted, unseen))
    library = ctypes.CDLL(None)
    library.signal.argtypes, library.signal.restype = [ctypes.c_int, ctypes.c_void_p], None
    library.signal(int(signal.SIGABRT), ctypes.cast(aborted, ctypes.c_void_p))


def _reason(text: str, peer_timeout: int) -> str:
    """Why JAX aborts, from what its libraries wrote."""
    this, total = _membership, _membership.count
    if "RegisterTask" in text:
        return (
            f"start of {this} is in vain: not all came within {peer_timeout} s; start all {total} "
            "with the same coordinator, or give a longer --peer_timeout"
        )
    if _LOST.search(text) or "JAX distributed service" in text or "oordination service" in text:
        return gone(text)
    if not text:
        return f"{this} is aborted by JAX; see its messages above"
    return f"{this} is aborted by JAX ({_one_line(text)}); see all with --verbose"


def _one_line(text: object) -> str:
    return f"{' '.join(str(text).split()):.300}"
