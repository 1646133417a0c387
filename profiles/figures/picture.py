"""What all pictures share: words that are never formulas, lines that fit, and the file's bytes."""

import contextlib
import io
import textwrap
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def lay_out(figure: "Figure", **room: object) -> None:
    """Gives each panel the room that its words need; arguments are those of ``tight_layout``."""
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
    """Draws a model's name as it is: dollar signs in it are no formula.

    A letter that the font has not got becomes a box without a warning.
    """
    import matplotlib
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)
    with matplotlib.rc_context({"text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .*missing from")
        yield


def lines(text: str, width: int) -> list[str]:
    """Text in as few lines of at most so many characters as it needs, all about as long."""
    few = len(textwrap.wrap(text, width))
    least = min(len(text) // max(few, 1), width)
    widths = range(max(least, 1), width + 1)
    return textwrap.wrap(text, next(w for w in widths if len(textwrap.wrap(text, w)) <= few))
