"""A process of its own for a peer: its threads and memory must not be shared with JAX."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

from sharding.error_types import FloorlineError, UsageError


def run_peer(
    module: str,
    name: str,
    gguf: Path,
    sizes: Mapping[str, int],
    python: str = sys.executable,
    timeout_s: float = 1800.0,
) -> dict[str, Any]:
    """Runs a module that times a peer and prints one line of JSON.

    Args:
      module: the module of `profiles.measured`, which takes --gguf and a flag for each size.
      name: what messages call the peer.
      gguf: the checkpoint.
      sizes: values of its flags.
      python: interpreter with the peer installed.
      timeout_s: seconds after which the process is killed.

    Returns:
      What it printed last.

    Raises:
      FloorlineError: the process failed, ran out of time or printed no JSON.
    """
    command = [python, "-m", f"profiles.measured.{module}", f"--gguf={gguf.resolve()}"]
    command += [f"--{size}={value}" for size, value in sizes.items()]
    root = Path(__file__).resolve().parents[2]
    try:
        done = subprocess.run(
            command, cwd=root, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise FloorlineError(
            f"time of {name} is above {timeout_s:g} s; ask for fewer repeats or new tokens"
        ) from error
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        reason = (done.stderr.strip().splitlines() or ["nothing on standard error"])[-1]
        kind = UsageError if done.returncode == 2 else FloorlineError
        raise kind(
            f"{name}'s exit code is {done.returncode} ({reason.removeprefix('error: ')}); "
            f"run `{' '.join(command)}` from {root}"
        )
    return json.loads(lines[-1])


def summary(samples: Sequence[float]) -> dict[str, Any]:
    """The samples with their median and the tenth and ninetieth percentiles, in seconds."""
    p10, median, p90 = (float(value) for value in np.percentile(samples, (10, 50, 90)))
    return dict(samples_s=list(samples), median_s=median, p10_s=p10, p90_s=p90)


def print_times(time_decode: Callable[..., dict[str, Any]]) -> None:
    """The peer's process: parses its flags, prints what `time_decode` returns, and exits.

    Args:
      time_decode: takes the path of the checkpoint, and the other flags by name.
    """
    flags.DEFINE_string("gguf", None, "Path of the GGUF file to load.")
    counts = dict(
        context=(128, "Tokens in the cache before the first timed step."),
        batch=(1, "Sequences decoded together."),
        new_tokens=(
            32,
            "Steps that a sample is averaged over; 0 times the prompt, in some.",
        ),
        threads=(2, "Threads that the peer may use."),
        repeats=(7, "Samples of each way of decoding; the ways alternate."),
    )
    for name, (default, text) in counts.items():
        flags.DEFINE_integer(name, default, text, lower_bound=int(name != "new_tokens"))

    def main(argv: Sequence[str]) -> int:
        try:
            if len(argv) > 1:
                raise UsageError(f"argument is {argv[1]!r}, which no flag takes; see --help")
            if flags.FLAGS.gguf is None:
                raise UsageError("--gguf is not given; give the path of a GGUF file")
            sizes = {name: flags.FLAGS[name].value for name in counts}
            print(json.dumps(time_decode(Path(flags.FLAGS.gguf), **sizes)))
        except FloorlineError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2 if isinstance(error, UsageError) else 1
        return 0

    app.run(main)
