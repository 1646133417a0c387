"""The picture of published services: a bar for each entry, its runs, and the expected time."""

import pytest

from profiles.figures.league import COLOURS, Bar, league_bars

pytest.importorskip("matplotlib")
BARS = [
    Bar("one", [0.3, 0.5], 0.4, 1.1, "compute"),
    Bar("another", [0.2], 0.2, 0.9, "kv cache"),
]


def test_bars_runs_and_expected_times_are_drawn_in_order(tmp_path):
    path = tmp_path / "engines.png"
    figure = league_bars(BARS, path)
    assert path.read_bytes().startswith(b"\x89PNG")
    (panel,) = figure.axes
    assert [each.get_width() for each in panel.patches] == [0.4, 0.2]
    assert [each.get_text() for each in panel.get_yticklabels()] == ["one (2)", "another (1)"]
    low, high = panel.get_ylim()
    assert low > high  # the first above
    drawn = {line.get_marker(): [] for line in panel.lines}
    for line in panel.lines:
        drawn[line.get_marker()] += list(line.get_xdata())
    assert drawn["|"] == [0.3, 0.5, 0.2] and drawn["D"] == [1.1, 0.9]
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "floor, bound by compute" in words and "floor, bound by weights" not in words


def test_every_term_of_a_floor_has_a_colour():
    assert set(COLOURS) == {"weights", "kv cache", "compute", "communication"}
