"""The generated parts of pages: each stands between two comments that name what writes it.

A part begins with ``<!-- name: python -m module -->`` and ends with ``<!-- end name -->``;
`tests/test_readme.py` holds every part to what its module makes.
"""

from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]


class Part(NamedTuple):
    """One generated part of a page.

    Attributes:
      page: the page's path below the repository's root.
      name: what its comments call it, once in a page.
      module: what ``python -m`` runs to write it.
    """

    page: str
    name: str
    module: str

    def text(self) -> str:
        """What stands there now; `ValueError` where the page has no such part, or more than one."""
        return self._split()[1]

    def write(self, text: str) -> None:
        """Puts `text`, which ends with a newline, in the place of what stands there."""
        before, _, after = self._split()
        (ROOT / self.page).write_text(before + self._begin + text + self._end + after)

    @property
    def _begin(self) -> str:
        return f"<!-- {self.name}: python -m {self.module} -->\n"

    @property
    def _end(self) -> str:
        return f"<!-- end {self.name} -->"

    def _split(self) -> tuple[str, str, str]:
        before, rest = (ROOT / self.page).read_text().split(self._begin)
        text, after = rest.split(self._end)
        return before, text, after
