"""A progress bar for runs of minutes, on standard error and only where someone watches."""

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


def progress(
    items: Iterable[Item], describe: Callable[[Item], str], *, show: bool | None = None
) -> Iterator[Item]:
    """Yields items behind a bar that names the one being worked on.

    Args:
      items: the work; a list, for the bar to know its length.
      describe: an item's name in a few words.
      show: whether to draw the bar; None for where standard error is a terminal.
    """
    hidden = None if show is None else not show
    with tqdm(items, disable=hidden, file=sys.stderr, leave=False) as bar:
        for item in bar:
            bar.set_description_str(describe(item))
            yield item
