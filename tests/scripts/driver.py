"""Runs one script for many lists of arguments in a process of its own: for `running.run_many`.

That process is a fork of one that has imported what most scripts import, which takes longer than
many of them run, and has started nothing: JAX has no devices and no threads yet.
"""

import contextlib
import gc
import importlib
import io
import multiprocessing
import os
import pkgutil
import sys
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path
from unittest import mock

IMPORTED = [
    "decode.batching.batcher",
    "decode.load",
    "profiles.measured.sweep",
    "profiles.report.document",
    "matplotlib.figure",
]


def jax_started() -> bool:
    """Whether JAX has made its devices, after which their number cannot be changed."""
    import jax

    count = jax.config.jax_num_cpu_devices
    try:
        jax.config.update("jax_num_cpu_devices", count + 1)
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:
        return True
    return False


class Full(io.StringIO):
    """An output on a disk that has no room left."""

    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


def end_of(script, common, arguments: list[str], full: bool, typed: str) -> dict:
    from absl.testing import flagsaver

    out, err = Full() if full else io.StringIO(), io.StringIO()
    with (
        flagsaver.flagsaver(),
        mock.patch.object(sys, "argv", [script.__file__, *arguments]),
        mock.patch.object(sys, "stdin", io.StringIO(typed)),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            common.start(script.main)
            code = 0
        except SystemExit as end:
            code = end.code or 0
    return {
        "code": code,
        "stdout": out.getvalue(),
        "stderr": err.getvalue(),
        "jax_started": jax_started(),
    }


def optimize(fully: bool) -> None:
    """Lets what is compiled from now on have all optimizations, or few as in the default set."""
    import jax

    jax.config.update("jax_disable_most_optimizations", not fully)


def read_environment(variables: dict[str, str]) -> None:
    """Takes an environment in place of this process's, with what JAX read as it was imported."""
    import jax

    os.environ.clear()
    os.environ.update(variables)
    for name, text in variables.items():
        if name.startswith("JAX_") and name.lower() in jax.config.values:
            kind = type(jax.config.values[name.lower()])
            value = text == "1" if kind is bool else text if kind is type(None) else kind(text)
            jax.config.update(name.lower(), value)


def work(job: dict, answer: Connection, said: str) -> None:
    """Runs a job in this process, whose own output goes to the file `said`."""
    with open(said, "w") as file:
        os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
    gc.set_threshold(200_000, 50, 100)  # as in the default set of tests, see its conftest
    read_environment(job["environment"])
    importlib.import_module("tests.kept_programs").keep_whole()
    os.chdir(job["folder"])
    sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
    common = importlib.import_module("_common")
    script = importlib.import_module(job["script"].removesuffix(".py"))
    with contextlib.ExitStack() as stack:
        for name, value in job["patches"].items():
            before = pkgutil.resolve_name(name)
            stack.enter_context(mock.patch(name, type(before)(value)))
        ended = []
        for name, arguments in job["cases"].items():
            if job["optimized"]:
                optimize(name in job["optimized"])
            typed = job["typed"].get(name, "")
            ended.append(end_of(script, common, arguments, name in job["full"], typed))
    answer.send(ended)


def run_job(job: dict, seconds: float) -> list[dict]:
    """How each case of a job ended: the fields of `running.Ended`.

    Raises:
      AssertionError: with what the process said, where it gave no answer in time.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    receiver, sender = context.Pipe(duplex=False)
    with tempfile.NamedTemporaryFile("r") as said:
        process = context.Process(target=work, args=(job, sender, said.name))
        process.start()
        sender.close()
        try:
            with contextlib.suppress(EOFError):  # it ended without an answer
                if receiver.poll(seconds):
                    return receiver.recv()
        finally:
            process.kill()
            process.join()
            receiver.close()
        raise AssertionError(said.read())
