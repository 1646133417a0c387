"""Plots hold the numbers of their document, and say in words what those are."""

import itertools
import textwrap

import numpy as np
import pytest

from profiles.figures import picture
from profiles.figures import steps as figures
from profiles.report.document import document as document_of
from profiles.report.document import summarise
from profiles.report.record import Record

BATCHES = (1, 4, 16, 64)


def record(batch: int, devices: int, context: int = 128, **changes) -> Record:
    step = (0.024 + 0.001 * batch) * (1 + 0.1 * devices)
    floor = 0.018 + 0.0005 * batch * context / 128
    fields = {
        "model": "tiny",
        "phase": "decode",
        "batch": batch,
        "context": context,
        "device_kind": "cpu",
        "devices": devices,
        "mesh": {"x": 1, "y": 1, "z": devices},
        "layout": "weight_stationary_1d",
        "dtype": "float32",
        "floor_s": floor,
        "weight_floor_s": 0.018,
        "step_s": summarise([step * 0.9, step, step * 1.2]),
        "status": "ok",
    }
    return Record(**(fields | changes))


def document(points: list[Record]) -> dict:
    return document_of(
        ["profile_decode.py"],
        points,
        device_kind=points[0].device_kind,
        started="2026-01-02T03:04:05",
        bandwidth={"bytes_per_s": 2.5e10, "source": "measured"},
    )


def drawn(panel) -> dict[str, np.ndarray]:
    """A panel's lines by label, each as [points, (batch, value)]."""
    return {line.get_label(): np.array(line.get_data()).T for line in panel.get_lines()}


def words(figure) -> str:
    texts = [text.get_text() for text in figure.texts]
    return " ".join(texts + [text.get_text() for text in figure.legends[0].get_texts()])


def test_step_time_draws_the_expected_time_where_it_is_known(tmp_path):
    points = [record(b, d, expected_s=0.02 * d + 0.001 * b) for d in (1, 2) for b in BATCHES]
    lost = record(128, 1, status="cache_resident", expected_s=0.5)  # no floor, but expected
    figure = figures.step_time(document([*points, lost]), tmp_path / "s.png")
    lines = drawn(figure.axes[0])
    expected = lines["expected, 1 device (1x1x1)"]
    np.testing.assert_allclose(expected[:4], [[b, 20 + b] for b in BATCHES])
    np.testing.assert_allclose(expected[4], [128, 500])
    assert len(lines["expected, 2 devices (1x1x2)"]) == len(BATCHES)
    assert "expected, in its line's colour" in words(figure)
    assert "expected" not in words(figures.step_time(document([record(1, 1)]), tmp_path / "t.png"))


def test_step_time_draws_each_device_count_in_ms_over_the_floor(tmp_path):
    points = [record(b, d) for d in (1, 2) for b in BATCHES]
    figure = figures.step_time(document(points), tmp_path / "step_time.png")
    (panel,) = figure.axes
    lines = drawn(panel)
    for devices, label in ((1, "measured, 1 device (1x1x1)"), (2, "measured, 2 devices (1x1x2)")):
        expected = [(b, record(b, devices).step_s["median"] * 1e3) for b in BATCHES]
        np.testing.assert_allclose(lines[label], expected)
    floor = [(b, record(b, 1).floor_s * 1e3) for b in BATCHES]
    np.testing.assert_allclose(lines["floor, all device counts"], floor)
    np.testing.assert_allclose(lines["weight floor, all device counts"][:, 1], 18.0)
    assert (tmp_path / "step_time.png").read_bytes().startswith(b"\x89PNG")


def test_axes_carry_units_and_the_batches_as_ticks(tmp_path):
    points = [record(b, 1) for b in BATCHES]
    figure = figures.step_time(document(points), tmp_path / "a.png")
    (panel,) = figure.axes
    assert panel.get_xlabel() == "batch (sequences)"
    assert figure.get_supylabel() == "step time (ms)"
    assert panel.get_xscale() == panel.get_yscale() == "linear"  # a step is a line in batch
    ticks = list(panel.get_xticks())
    assert {*ticks} <= {*BATCHES} and ticks[-1] == BATCHES[-1]
    assert min(b - a for a, b in itertools.pairwise(ticks)) > 0.03 * BATCHES[-1]
    assert panel.get_xlim()[0] == panel.get_ylim()[0] == 0


def test_a_plot_says_what_was_run_and_which_bandwidth_its_floor_is_at(tmp_path):
    said = words(figures.step_time(document([record(1, 1)]), tmp_path / "a.png"))
    for word in ("tiny", "float32", "cpu", "weight_stationary_1d", "context 128", "p10", "p90"):
        assert word in said
    assert "Floor at 25.0 GB/s (measured), one memory shared by all CPU devices" in said


def test_floors_that_differ_take_their_lines_colours(tmp_path):
    points = [
        record(b, d, floor_s=0.02 / d, weight_floor_s=0.018 / d) for d in (1, 2) for b in BATCHES
    ]
    (panel,) = figures.step_time(document(points), tmp_path / "a.png").axes
    colours = {line.get_label(): line.get_color() for line in panel.get_lines()}
    for devices in ("1 device (1x1x1)", "2 devices (1x1x2)"):
        assert colours[f"floor, {devices}"] == colours[f"measured, {devices}"]
        assert colours[f"weight floor, {devices}"] == colours[f"measured, {devices}"]
    assert colours["floor, 1 device (1x1x1)"] != colours["floor, 2 devices (1x1x2)"]


def test_each_context_has_a_panel_of_its_own_on_one_scale(tmp_path):
    points = [record(b, 1, context) for context in (128, 2048) for b in BATCHES]
    figure = figures.step_time(document(points), tmp_path / "a.png")
    assert [panel.get_title() for panel in figure.axes] == ["context 128", "context 2048"]
    floors = [drawn(panel)["floor, 1 device (1x1x1)"][-1, 1] for panel in figure.axes]
    np.testing.assert_allclose(floors, [50.0, 530.0])
    low, high = figure.axes[0].get_ylim()
    assert figure.axes[1].get_ylim() == (low, high) and low < 18 < 530 < high


def test_steps_that_did_not_run_are_left_out_with_a_note(tmp_path):
    lost = record(64, 2, status="out_of_memory", message="no room", step_s=None)
    resident = record(1, 2, status="cache_resident")
    figure = figures.step_time(document([resident, record(4, 2), lost]), tmp_path / "a.png")
    lines = drawn(figure.axes[0])
    assert lines["measured, 2 devices (1x1x2)"][:, 0].tolist() == [1, 4]
    assert 18.5 not in lines["floor, 2 devices (1x1x2)"][:, 1]
    assert "batch 64: not drawn (out_of_memory)" in words(figure)
    assert "batch 1: floor not drawn (cache_resident)" in words(figure)


def test_a_run_with_nothing_measured_still_makes_a_plot_that_says_so(tmp_path):
    lost = record(64, 2, status="out_of_memory", step_s=None)
    figure = figures.cost(document([lost]), tmp_path / "a.png")
    assert figure.axes[0].get_lines() == []
    assert "not drawn (out_of_memory)" in words(figure)


def test_two_meshes_of_as_many_devices_are_told_apart(tmp_path):
    meshes = ({"x": 1, "y": 1, "z": 2}, {"x": 1, "y": 2, "z": 1})
    points = [record(b, 2, mesh=mesh) for mesh in meshes for b in BATCHES]
    (panel,) = figures.step_time(document(points), tmp_path / "a.png").axes
    assert {"measured, 2 devices (1x1x2)", "measured, 2 devices (1x2x1)"} <= set(drawn(panel))


@pytest.mark.parametrize("price", [None, 3.6])
def test_cost_divides_the_step_by_its_tokens_in_time_or_in_money(tmp_path, price):
    points = [record(b, 1) for b in BATCHES]
    if price:
        costs = (price * p.step_s["median"] / 3600 / p.batch * 1e6 for p in points)
        points = [
            record(b, 1, usd_per_million_tokens=c) for b, c in zip(BATCHES, costs, strict=True)
        ]
    figure = figures.cost(document(points), tmp_path / "cost.png")
    (panel,) = figure.axes
    scale = 1e3 if price else price_per_token(3.6)
    for label, time in (
        ("measured", lambda p: p.step_s["median"]),
        ("floor", lambda p: p.floor_s),
    ):
        expected = [(p.batch, time(p) / p.batch * scale) for p in points]
        np.testing.assert_allclose(drawn(panel)[f"{label}, 1 device (1x1x1)"], expected)
    assert panel.get_xscale() == panel.get_yscale() == "log"
    assert ("USD per million tokens" if price else "time per token (ms)") in figure.get_supylabel()


def test_chunks_of_prompts_are_drawn_against_the_tokens_before_them(tmp_path):
    def chunk(length: int, context: int, batch: int) -> Record:
        tokens = min(512, length - context)
        sizes = {"prompt_length": length, "tokens_per_sequence": tokens, "phase": "prefill"}
        return record(batch, 1, context, floor_s=tokens * 1e-5 + context * 1e-6, **sizes)

    places = [(512, 0), (1200, 0), (1200, 512), (1200, 1024)]
    points = [chunk(*place, batch) for batch in (1, 4) for place in places]
    for draw, scale in (
        (figures.step_time, lambda p: 1e3),
        (figures.cost, lambda p: 1e3 / p.batch / p.tokens_per_sequence),
    ):
        figure = draw(document(points), tmp_path / "a.png")
        assert [panel.get_title() for panel in figure.axes] == ["batch 1", "batch 4"]
        for panel, batch in zip(figure.axes, (1, 4), strict=True):
            mine = [p for p in points if p.batch == batch and p.prompt_length == 1200]
            expected = [(p.context, p.step_s["median"] * scale(p)) for p in mine]
            found = drawn(panel)["measured, 1 device (1x1x1), prompt 1200"]
            np.testing.assert_allclose(found, expected)
            assert panel.get_xscale() == "linear" and panel.get_xlim()[0] < 0
            assert panel.get_xlabel() == "tokens in the cache before the chunk"
            assert not any(label.startswith("weight floor") for label in drawn(panel))
            floor = [(p.context, p.floor_s * scale(p)) for p in mine]
            np.testing.assert_allclose(drawn(panel)["floor, all device counts"], floor)
        said = words(figure)
        assert "batch 1, 4" in said and "prompts of 512, 1200 tokens" in said


NAMES = ["a$^$b", "pay$5^x$_{", r"cost$\alpha_{$", "\N{CJK UNIFIED IDEOGRAPH-6A21} ü"]


@pytest.mark.parametrize("name", NAMES)
def test_a_models_name_is_drawn_as_it_is(tmp_path, name, recwarn):
    figure = figures.step_time(document([record(1, 1, model=name)]), tmp_path / "a.png")
    title = next(text for text in figure.texts if name in text.get_text())
    assert not title.get_parse_math()
    assert [str(warning.message) for warning in recwarn] == []


def test_a_wrapped_title_leaves_no_word_alone(tmp_path):
    layout = "weight_stationary_1d_of_a_name_so_long_that_it_just_does_not_fit"
    figure = figures.step_time(
        document([record(1, 1, layout=layout, attention="heads")]), tmp_path / "a.png"
    )
    first, second = (text.get_text() for text in figure.texts[2:4])
    assert first.startswith("tiny, decode") and second.endswith("context 128")
    assert len(second) > len(first) / 2


def test_lines_are_as_few_as_they_can_be_and_about_as_long():
    for words in (1, 7, 30, 31, 60):
        text = " ".join(["word"] * words)
        found = picture.lines(text, 40)
        assert " ".join(found) == text and len(found) == len(textwrap.wrap(text, 40))
        assert max(map(len, found)) - min(map(len, found)) <= 5 * len(found)
    assert picture.lines("", 40) == [] and picture.lines("x" * 90, 40) == ["x" * 30] * 3


def price_per_token(per_hour: float) -> float:
    """USD per million tokens and second of step time."""
    return per_hour / 3600 * 1e6
