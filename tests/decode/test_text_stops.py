"""Stop strings in text that comes in pieces, wherever the pieces begin and end."""

import itertools

import numpy as np
import pytest

from decode.text_stops import StoppedText


class Pieces:
    """A stream whose tokens are numbers of these texts; what is flushed is "?"."""

    def __init__(self, *pieces: str, rest: str = ""):
        self.pieces, self.rest = pieces, rest

    def push(self, token: int) -> str:
        return self.pieces[token]

    def flush(self) -> str:
        return self.rest


def run(pieces, stops, rest="") -> tuple[list[str], str, str | None]:
    """Texts that came at once, the rest, and the stop string that was found."""
    text = StoppedText(Pieces(*pieces, rest=rest), stops)
    told = []
    for token in range(len(pieces)):
        told.append(text.push(token))
        if text.found:
            return told, "", text.found
    return told, text.flush(), text.found


@pytest.mark.parametrize(
    ("pieces", "stops", "told", "rest", "found"),
    [(["a", "bc"], [], ["a", "bc"], "", None),
     (["ab<", "stop>c"], ["<stop>"], ["ab", ""], "", "<stop>"),
     (["ab<st", "art>"], ["<stop>"], ["ab", "<start>"], "", None),
     (["ab<st"], ["<stop>"], ["ab"], "<st", None),
     (["aab"], ["aab", "ab"], [""], "", "aab"),
     (["xyz"], ["yz!", "y"], ["x"], "", "y"),
     (["aaa", "ab"], ["aab"], ["a", "a"], "", "aab"),
     (["\n", "\nQ"], ["\n\n", "\nQ"], ["", ""], "", "\n\n")],
)  # fmt: skip
def test_text_is_told_as_soon_as_no_stop_string_can_begin_in_it(pieces, stops, told, rest, found):
    assert run(pieces, stops) == (told, rest, found)


def test_a_stop_string_may_be_complete_only_with_what_is_flushed():
    assert run(["ab\n"], ["\n\N{REPLACEMENT CHARACTER}"], "\N{REPLACEMENT CHARACTER}") == (
        ["ab"],
        "",
        "\n\N{REPLACEMENT CHARACTER}",
    )


def test_the_text_does_not_depend_on_how_its_letters_come_in_tokens():
    draw = np.random.default_rng(0)
    for _ in range(300):
        letters = "".join(draw.choice(list("ab"), 12))
        stops = ["".join(draw.choice(list("ab"), draw.integers(1, 5))) for _ in range(2)]
        cuts = sorted(draw.integers(0, 13, 4))
        pieces = [letters[a:b] for a, b in itertools.pairwise([0, *cuts, 12])]
        whole, parts = run(list(letters), stops), run(pieces, stops)
        assert "".join(whole[0]) + whole[1] == "".join(parts[0]) + parts[1]
        assert whole[2] == parts[2]
        assert not any(stop in "".join(parts[0]) + parts[1] for stop in stops)
