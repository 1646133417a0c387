"""Figures of curves hold the numbers of their data, and say in words what those are."""

import itertools

import numpy as np
import pytest
from PIL import Image

from model.catalog import find_model
from model.dtypes import BFLOAT16
from profiles.chips.calibration import calibration_of
from profiles.chips.chip import Price
from profiles.chips.slices import parse_slice
from profiles.expected.candidates import LayoutNames
from profiles.figures import curve_figures, slice_figures
from profiles.figures.curves import limit
from profiles.figures.steps import COLOURS
from profiles.figures.study import Study, StudyOptions
from profiles.floor.deployment import Deployment
from profiles.floor.sized_models import sized_models
from tests.profiles.sized import WINDOWED


def study(model="llama2-13b", topology="v5e:2x2", price: float | None = 1.5, **more) -> Study:
    slice = parse_slice(topology)
    known = sized_models() | {WINDOWED.name: WINDOWED}
    config = known.get(model) or find_model(model)
    calibration = calibration_of(slice.chip.name)
    deployment = Deployment(
        model=config,
        slice=slice,
        dtypes=BFLOAT16,
        calibration=calibration,
        price=price and Price(price),
    )
    sizes = {"batches": (1, 16, 2048), "contexts": (32, 0, 4096), "max_chips": 8}
    names = LayoutNames(more.pop("layout", "weight_stationary_1d"), more.pop("attention", "heads"))
    sizes |= {"names": names, "chips_batch": 16}
    return Study(StudyOptions(deployment=deployment, **sizes | more))


@pytest.fixture(scope="module")
def small() -> Study:
    return study()


def lines(panel) -> dict[str, np.ndarray]:
    """A panel's lines by label, each as [points, (x, y)]."""
    return {line.get_label(): np.array(line.get_data()).T for line in panel.get_lines()}


def words(figure) -> str:
    texts = [text.get_text() for text in figure.texts]
    texts += [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    return " ".join(texts)


def test_step_time_is_drawn_with_its_terms_in_ms(small, tmp_path):
    figure = curve_figures.latency(small, tmp_path / "latency.png")
    curves = small.steps[0]
    for panel in figure.axes:
        found = lines(panel)
        for label, name in (("weights", "weights"), ("KV cache", "kv_cache"), ("floor", "floor"),
                            ("compute", "compute"), ("expected", "expected")):  # fmt: skip
            np.testing.assert_allclose(found[label][:, 1], getattr(curves, name) * 1e3)
        memory = (curves.weights + curves.kv_cache) * 1e3
        np.testing.assert_allclose(found["memory: weights + KV cache"][:, 1], memory)
        assert found[f"compute takes over at batch {curves.takeover}"][0, 0] == curves.takeover
        assert panel.get_xlabel() == "batch (sequences)" and "ms" in panel.get_ylabel()
    said = words(figure)
    for part in ("llama2-13b", "bfloat16", "v5e:2x2 (4 chips)", "context 32", "mesh 1x1x4",
                 "weight_stationary_1d", "attention by heads", "859 GB/s", "197 TFLOP/s",
                 "tpu-v5e-2025", f"beyond batch {curves.fits_to}", "Balanced context"):  # fmt: skip
        assert part in said


def test_a_picture_keeps_the_hues_that_are_drawn(small, tmp_path):
    curve_figures.latency(small, tmp_path / "latency.png")
    picture = Image.open(tmp_path / "latency.png")
    counted = {c: n for n, c in picture.convert("RGB").getcolors(10**7)}
    assert max(counted, key=counted.get) == (255, 255, 255)
    for colour in COLOURS:
        assert counted[tuple(bytes.fromhex(colour[1:]))] > 50
    assert (tmp_path / "latency.png").stat().st_size < 120e3


def test_cost_is_drawn_in_usd_over_the_limit_of_its_floor(small, tmp_path):
    figure = curve_figures.cost(small, tmp_path / "cost.png")
    found, curves = lines(figure.axes[1]), small.steps[0]
    per_second = 4 * 1.5 / 3600 * 1e6
    np.testing.assert_allclose(found["floor"][:, 1], per_second * curves.floor / curves.batches)
    (bound,) = (line for label, line in found.items() if label.startswith("limit of the floor"))
    np.testing.assert_allclose(bound[:, 1], per_second * limit(small.estimator, 32))
    assert "1.5 USD per chip-hour" in words(figure)
    assert figure.axes[0].get_ylabel() == "cost (USD per million tokens)"


def test_without_a_price_cost_is_in_chip_seconds(tmp_path):
    unpriced = study(price=None)
    figure = curve_figures.cost(unpriced, tmp_path / "cost.png")
    assert figure.axes[0].get_ylabel() == "cost (chip-seconds per token)"
    assert "No price of the chip is known" in words(figure)


def test_each_context_has_its_crossing_or_the_words_that_it_has_none(small, tmp_path):
    figure = curve_figures.contexts(small, tmp_path / "contexts.png")
    said = words(figure)
    for curves in small.steps[:2]:
        label = f"takeover, context {curves.context}"
        assert lines(figure.axes[0])[label][0, 0] == curves.takeover
        assert f"context {curves.context}: compute takes over at batch {curves.takeover}" in said
    assert "context 4096: compute never takes over" in said
    assert f"Balanced context: {small.balanced:.0f} tokens" in said
    assert {"floor, context 4096", "expected, context 4096"} <= lines(figure.axes[1]).keys()


def test_slices_on_which_a_model_does_not_fit_have_hollow_marks(small, tmp_path):
    found = small.scaling()
    figure = slice_figures.chips(small, found, tmp_path / "chips.png")
    (panel,) = figure.axes
    (curve,) = found.curves
    drawn = lines(panel)
    np.testing.assert_allclose(drawn[f"expected, {curve.name}"][:, 1], curve.expected * 1e3)
    hollow = drawn[f"_does not fit, {curve.name}"]
    assert hollow[:, 0].tolist() == curve.chips[~curve.fits].tolist() == [1]
    ideal = drawn["weights / chips"]
    np.testing.assert_allclose(ideal[:, 0] * ideal[:, 1], ideal[0, 1])
    assert "slices of v5e, batch 16, context 32" in words(figure)


def test_cost_against_latency_names_slices_and_batches_of_the_front(small, tmp_path):
    found = small.tradeoffs()
    figure = slice_figures.pareto(small, found, tmp_path / "pareto.png")
    (panel,) = figure.axes
    drawn = lines(panel)
    for each in found.slices:
        line = drawn[f"expected, {each.topology}"]
        np.testing.assert_allclose(line, np.stack([each.expected * 1e3, each.expected_cost], -1))
    assert len(drawn["front, expected"]) == len(found.front) and len(drawn["front, floor"]) > 1
    written = {text.get_text() for text in panel.texts}
    assert written and written <= {str(batch) for _, batch in found.front}
    assert "Does not fit on v5e:1x1" in words(figure)


@pytest.mark.parametrize(
    "names",
    [{}, pytest.param({"layout": "auto", "attention": "auto"}, marks=pytest.mark.slow)],
    ids=["one layout", "all layouts"],
)
def test_batches_of_the_front_lie_on_no_line_and_in_no_column_of_another_slice(tmp_path, names):
    # Where floors run close to the front, and the front goes from slice to slice and back.
    many = study("llama3-70b", "v5e:4x4", batches=(1, 256), contexts=(1024,), max_chips=256,
                 price=1.2, **names)  # fmt: skip
    found = many.tradeoffs()
    assert len({topology for topology, _ in found.front}) > 2
    figure = slice_figures.pareto(many, found, tmp_path / "pareto.png")
    (panel,) = figure.axes
    boxes = [text.get_window_extent() for text in panel.texts]
    colours = [text.get_color() for text in panel.texts]
    assert len(boxes) == len(found.front)
    for line in panel.get_lines():
        drawn = line.get_transform().transform_path(line.get_path())
        assert not any(drawn.intersects_bbox(box, filled=False) for box in boxes)
    for (one, first), (other, second) in itertools.combinations(
        zip(boxes, colours, strict=True), 2
    ):
        assert not one.overlaps(other)
        column = one.x0 < other.x1 and other.x0 < one.x1 and abs(one.y0 - other.y0) < 40
        assert first == second or not column


def test_models_are_drawn_at_their_sparsity_beside_the_rule_of_thumb(small, tmp_path):
    found = small.sparsities()
    figure = slice_figures.sparsity(small, found, tmp_path / "sparsity.png")
    drawn = lines(figure.axes[0])
    for name, point in found.models.items():
        assert drawn[name][0].tolist() == list(point)
        assert f"{name}: {point[1]:,.0f}" in words(figure)
    assert drawn["_thumb"][0].tolist() == [8, 2400]
    line = drawn[f"v5e: {found.dense:.0f} x total / active"]
    np.testing.assert_allclose(line[:, 1] / line[:, 0], found.dense)


def test_communication_says_from_how_many_tokens_each_layout_is_best(small, tmp_path):
    found = small.volumes()
    figure = slice_figures.communication(small, found, tmp_path / "communication.png")
    drawn, said = lines(figure.axes[0]), words(figure)
    for name, sent in found.sent.items():
        np.testing.assert_allclose(drawn[name][:, 1], sent / 1e6)
    first, *others = found.begins()
    assert f"{first}: least up to" in said
    assert all(f"{name}: least from" in said for name in others)
    assert all(f"{name}: never least" in said for name in found.sent.keys() - found.begins().keys())


def test_a_model_that_does_not_fit_is_drawn_with_a_note(tmp_path):
    large = study("llama3-405b")
    assert "does not fit in memory at any" in words(
        curve_figures.latency(large, tmp_path / "l.png")
    )
    figure = slice_figures.pareto(large, large.tradeoffs(), tmp_path / "pareto.png")
    assert "Does not fit on v5e:1x1, v5e:2x2, v5e:2x4" in words(figure)


def test_a_model_known_by_its_sizes_says_what_its_floor_leaves_out(tmp_path):
    sized = study(WINDOWED.name, "h200:8")
    for name in ("latency", "contexts"):
        figure = getattr(curve_figures, name)(sized, tmp_path / f"{name}.png")
        assert "known by its sizes alone" in words(figure)
    assert "divided evenly over the chips" in words(figure)
