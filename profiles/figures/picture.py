"""Parts that all pictures share: text without formulas, wrapped lines, and PNG bytes."""

import contextlib
import io
import textwrap
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def lay_out(figure: "Figure", **room: object) -> None:
    """Makes room for the text of each panel; the arguments are those of ``tight_layout``."""
    with _words_as_they_are(figure):
        figure.tight_layout(**room)


def png(figure: "Figure") -> bytes:
    """The picture as a PNG file."""
    drawn = io.BytesIO()
    with _words_as_they_are(figure):
        figure.savefig(drawn, format="png")
    return drawn.getvalue()


@contextlib.contextmanager
def _words_as_they_are(figure: "Figure") -> Iterator[None]:
    """Draws text literally: dollar signs in a model's name begin no formula.

    A letter that the font lacks becomes a box without a warning.
    """
    import matplotlib
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)
    with matplotlib.rc_context({"text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .*missing from")
        yield


def lines(text: str, width: int) -> list[str]:
    """Wraps text into the fewest lines of at most `width` characters, of about equal length."""
    few = len(textwrap.wrap(text, width))
    narrowest = min(len(text) // max(few, 1), width)
    widths = range(max(narrowest, 1), width + 1)
    return textwrap.wrap(text, next(w for w in widths if len(textwrap.wrap(text, w)) <= few))
