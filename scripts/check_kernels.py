"""Check GPU kernels that no device has run against the plain form, on this device, in a minute.

Every kernel of --gpu_kernels multiplies, attends or norms at the shapes of a model's step, and its
largest error, of the largest number that should be there, is printed. One beyond rounding fails.
On a CPU kernels are interpreted, which is slow: use a small model.

Examples:
  python scripts/check_kernels.py
  python scripts/check_kernels.py --model=llama3-8b --batch=1,64
  python scripts/check_kernels.py --model=tiny --batch=1,2 --context=64
"""

import datetime
import sys
from pathlib import Path

import _common
from absl import flags

_BATCH = flags.DEFINE_list("batch", ["1", "8", "64", "256"], "Sequences per step, a list.")
_CONTEXT = flags.DEFINE_integer("context", 2048, "Slots of attention's cache.", 1)
_OUTPUT_DIR = flags.DEFINE(_common.PATH, "output_dir", "out/check_kernels", "Folder for results.")
_SHOWN = (*_common.OF_RUNS, "model")

if __name__ == "__main__":
    for name in _SHOWN:
        flags.declare_key_flag(name)

with _common.importing(__name__):
    from model.catalog import find_model
    from profiles.measured.kernel_checks import LIMIT, Check, kernel_checks
    from profiles.report.document import document
    from profiles.report.files import check_writable, write_json
    from profiles.report.table import Table
    from sharding.devices import default_platform, devices
    from sharding.error_types import FloorlineError


def main() -> None:
    """Runs the checks, writes and prints all of them, and then refuses those that are wrong."""
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    _common.check_json()
    output = Path(_OUTPUT_DIR.value)
    check_writable(output)
    batches = _common.integers(_BATCH.name, _BATCH.value)
    config, interpret = find_model(_common.MODEL.value), default_platform() == "cpu"
    checks = []
    for check in kernel_checks(config, batches, _CONTEXT.value, interpret):
        _common.say(f"{check.kernel}, {check.case}: {check.error:.2g}")
        checks.append(check)
    whole = document(
        sys.argv, [], device_kind=devices()[0].device_kind, started=started, bandwidth=None,
        checks=[each._asdict() | {"right": each.right} for each in checks],
        interpreted=interpret,
    )  # fmt: skip
    write_json(output / "kernels.json", whole)
    if _common.JSON.value:
        write_json(_common.JSON.value, whole)
    _common.show(_table(checks))
    wrong = [each for each in checks if not each.right]
    if wrong:
        worst = max(wrong, key=lambda each: each.error)
        raise FloorlineError(
            f"error of {worst.kernel} is {worst.error:.2g} at {worst.case}, above {LIMIT:.2g}, and "
            f"{len(wrong)} of {len(checks)} are; leave it out of --gpu_kernels"
        )


def _table(checks: list[Check]) -> str:
    rows = [
        (each.kernel, each.case, f"{each.error:.2g}", "" if each.right else "WRONG")
        for each in checks
    ]
    return Table(("kernel", "of", "largest error", ""), rows).terminal()


if __name__ == "__main__":
    _common.start(main, _SHOWN)
