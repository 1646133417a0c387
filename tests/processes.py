"""Runs a program as several JAX processes on this machine, as a cluster would."""

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


def run_processes(program: str, *arguments: object, count: int = 2, devices: int = 8) -> None:
    """Runs Python source in `count` processes that share `devices` CPU devices between them.

    The source finds its number in PROCESS and `arguments`, as text, in ARGUMENTS.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    start = [sys.executable, "-c", _START + program, address, str(count), str(devices // count)]
    processes = [
        subprocess.Popen(
            [*start, str(number), *map(str, arguments)],
            env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        )
        for number in range(count)
    ]
    try:
        assert [process.wait(timeout=120) for process in processes] == [0] * count
    finally:
        for process in processes:
            process.kill()
