"""Runs one script for many lists of arguments: `running.run_many` starts this.

Reads a job as JSON on standard input and writes how each run ended as JSON on standard output.
"""

import contextlib
import gc
import importlib
import io
import json
import pkgutil
import sys
from pathlib import Path
from unittest import mock


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


def main() -> None:
    gc.set_threshold(200_000, 50, 100)  # as in the default set of tests, see its conftest
    job = json.load(sys.stdin)
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
    json.dump(ended, sys.stdout)


if __name__ == "__main__":
    main()
