"""A progress bar for runs of minutes, on standard error and only where someone watches."""

import contextlib
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from sharding import processes

Item = TypeVar("Item")


def progress(
    items: Iterable[Item], describe: Callable[[Item], str], *, show: bool | None = None
) -> Iterator[Item]:
    """Yields items behind a bar that names the one being worked on.

    Args:
      items: the work; a list, for the bar to know its length.
      describe: an item's name in a few words.
      show: whether to draw the bar; None for where standard error is process 0's terminal.
    """
    hidden = _hidden(show)
    with tqdm(items, disable=hidden, file=sys.stderr, leave=False) as bar:
        for item in bar:
            bar.set_description_str(describe(item))
            yield item


@contextlib.contextmanager
def byte_progress(total: int, *, show: bool | None = None) -> Iterator[Callable[[int], None]]:
    """Shows how many bytes of weights are loaded, and how many a second.

    Args:
      total: bytes in all.
      show: whether to draw the bar; None for where standard error is process 0's terminal.

    Yields:
      What threads tell of every so many bytes that are done.
    """
    hidden, lock = _hidden(show), threading.Lock()
    with tqdm(
        total=total,
        desc="loading weights",
        unit="B",
        unit_scale=True,
        disable=hidden,
        file=sys.stderr,
        leave=False,
    ) as bar:

        def advance(count: int) -> None:
            with lock:
                bar.update(count)

        yield advance


@contextlib.contextmanager
def counted(total: int, unit: str) -> Iterator[Callable[[str, int], None]]:
    """Shows how many of something are done, where standard error is process 0's terminal.

    Args:
      total: how many there are, in several parts.
      unit: what they are.

    Yields:
      What is told the part that is worked on, and how many of it are done.
    """
    done: dict[str, int] = {}
    with tqdm(
        total=total, unit=f" {unit}", disable=_hidden(None), file=sys.stderr, leave=False
    ) as bar:

        def tell(part: str, count: int) -> None:
            done[part] = count
            bar.set_description_str(part, refresh=False)
            bar.update(min(sum(done.values()), total) - bar.n)

        yield tell


def _hidden(show: bool | None) -> bool | None:
    """tqdm's `disable`, whose None asks whether it writes to a terminal."""
    if show is None:
        return None if processes.is_first() else True
    return not show
