"""Runs a program as several JAX processes on this machine, as a cluster would."""

import itertools
import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
_START = f"""
import sys
import jax
sys.path.insert(0, {str(ROOT)!r})
jax.config.update("jax_num_cpu_devices", int(sys.argv[3]))
jax.distributed.initialize(sys.argv[1], num_processes=int(sys.argv[2]), process_id=int(sys.argv[4]))
PROCESS, ARGUMENTS = int(sys.argv[4]), sys.argv[5:]
"""


_PORTS = itertools.count(os.getpid() * 101 % 20_000)


def free_address() -> str:
    """An address on this machine at which nobody listens until it is given to a process that does.

    Its port is none that systems give to connections of their own accord, from 32,768 on, and each
    process that runs tests begins elsewhere.
    """
    while True:
        port = 10_000 + next(_PORTS) % 20_000
        with socket.socket() as free:
            try:
                free.bind(("localhost", port))
            except OSError:
                continue
            return f"localhost:{port}"


def run_processes(program: str, *arguments: object, count: int = 2, devices: int = 8) -> None:
    """Runs Python source in `count` processes that share `devices` CPU devices between them.

    The source finds its number in PROCESS and `arguments`, as text, in ARGUMENTS.
    """
    sizes = str(count), str(devices // count)
    start = [sys.executable, "-c", _START + program, free_address(), *sizes]
    processes = [
        subprocess.Popen(
            [*start, str(number), *map(str, arguments)],
            env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        )
        for number in range(count)
    ]
    try:
        assert [process.wait(timeout=600) for process in processes] == [0] * count
    finally:
        for process in processes:
            process.kill()
