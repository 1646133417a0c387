"""The data folder that one save writes to, beside those of the old model and of other saves.

If two processes save at once, the last to finish wins; the other notices and raises an error.
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
"""Returns the name of the data folder that holds the current model; None if there is none."""


def check_writable(folder: Path) -> None:
    """Refuses a folder that no file can be written to; it need not exist, and is not created.

    Raises:
      WeightsError: the folder, or if it does not exist the nearest one above, is not writable.
    """
    existing = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise _not_saved(folder, error) from error


@contextlib.contextmanager
def new_folder(data: Path, current: Current) -> Iterator[Callable[[], bool]]:
    """Makes a data folder, and removes it if the body fails, with its parent if that is new.

    Args:
      data: the data folder to make, inside the model's folder.
      current: the name of the current model's data folder, which is never removed.

    Yields:
      A function that tells whether the data folder is still there: another process that saves
      meanwhile moves it away.

    Raises:
      WeightsError: replaces an OSError or ValueError of the body or the folder; TensorStore raises
        the latter when a disk is full.
    """
    was_there, made = data.parent.exists(), None

    def stands() -> bool:
        try:
            return os.path.samestat(data.stat(), os.fstat(made))
        except FileNotFoundError:
            return False

    try:
        data.mkdir(parents=True, exist_ok=True)
        made = os.open(data, os.O_RDONLY)  # kept open, so that no other folder gets its inode
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


def remove_others(data: Path, is_data: Callable[[str], object], current: Current) -> None:
    """Removes all other data folders: of the old model and of interrupted or concurrent saves.

    Each is moved away first, so that a process that writes to it notices, and moved back if it has
    become the current model meanwhile.

    Args:
      data: the folder that stays.
      is_data: whether a name is that of a data folder.
      current: the name of the current model's data folder.
    """
    for entry in data.parent.iterdir():
        if is_data(entry.name) and entry.name != data.name:
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
