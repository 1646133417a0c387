"""The folder that one save writes to, beside the model before and what other processes save.

Of two saves at once the one that is whole last is the model; the other notices, and says so.
"""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from model.weights import WeightsError

Current = Callable[[], str | None]
"""The name of the data folder that is the model by now."""


def check_writable(folder: Path) -> None:
    """Refuses a folder that no file can be put into; it need not be there, and is not made.

    Raises:
      WeightsError: neither it nor the nearest folder above it takes one.
    """
    there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise _not_saved(folder, error) from error


@contextlib.contextmanager
def new_folder(data: Path, current: Current) -> Iterator[Callable[[], bool]]:
    """Makes a data folder, and removes it where the body fails, with its parent if that is new.

    Args:
      data: the folder, in that of the model.
      current: which one is the model; that stays whatever fails.

    Yields:
      Whether it is still there: another process that saved meanwhile moves it away.

    Raises:
      WeightsError: for what the body, or the folder, raises as OSError or ValueError, which
        TensorStore does of a full disk.
    """
    was_there, made = data.parent.exists(), None

    def stands() -> bool:
        try:
            return os.path.samestat(data.stat(), os.fstat(made))
        except FileNotFoundError:
            return False

    try:
        data.mkdir(parents=True, exist_ok=True)
        made = os.open(data, os.O_RDONLY)  # held, so that no other folder gets its number
        yield stands
    except BaseException as error:
        moved = made is not None and not stands()
        if current() != data.name:
            shutil.rmtree(data, ignore_errors=True)
        if not was_there:
            with contextlib.suppress(OSError):
                data.parent.rmdir()
        if moved and isinstance(error, Exception):
            raise WeightsError(
                f"folder {data.parent} was saved to by another process meanwhile, which removed "
                "what this one wrote; save again, or name another folder"
            ) from error
        if isinstance(error, OSError | ValueError):
            raise _not_saved(data.parent, error) from error
        raise
    finally:
        if made is not None:
            os.close(made)


def remove_others(data: Path, wanted: Callable[[str], object], current: Current) -> None:
    """Removes the data folders beside one: of the model before, of saves cut off or under way.

    Each is moved away first, so that whoever writes it notices, and back if it is the model by now.

    Args:
      data: the folder that stays.
      wanted: whether one of this name is a data folder.
      current: as of `new_folder`.
    """
    for entry in data.parent.iterdir():
        if wanted(entry.name) and entry.name != data.name:
            with contextlib.suppress(OSError):
                moved = entry.rename(entry.with_name(f"{entry.name}.old"))
                if current() == entry.name:
                    moved.rename(entry)
                shutil.rmtree(moved, ignore_errors=True)


def _not_saved(folder: Path, error: OSError | ValueError) -> WeightsError:
    reasons = {os.strerror(number) for number in errno.errorcode}
    known = [reason for reason in reasons if reason in str(error)]  # TensorStore cites it
    reason = max(known, key=len, default=f"{' '.join(str(error).split()):.100}")
    return WeightsError(
        f"folder {folder} cannot be written to ({reason}); make room or name another one"
    )
