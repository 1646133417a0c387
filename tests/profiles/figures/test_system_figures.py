"""Figures of whole systems hold the numbers of closed forms worked out by hand."""

import dataclasses

import numpy as np
import pytest

from model.dtypes import BFLOAT16
from profiles.chips.calibration import calibration_of
from profiles.chips.slices import parse_slice
from profiles.expected.candidates import LayoutNames
from profiles.figures import system_figures
from profiles.figures.study import Study, StudyOptions
from profiles.floor.deployment import Deployment
from profiles.floor.sized_models import SizedModel

MODEL = SizedModel(
    "mixture", "this test", 8, 1000, 10**10, 10**9, cached=10**5, attention_flops=0,
    in_experts=9 * 10**9, experts=256, experts_per_token=4,
)  # fmt: skip


def study(model: SizedModel = MODEL, topology: str = "gb200:72") -> Study:
    slice = parse_slice(topology)
    calibration = calibration_of(slice.chip.name)
    deployment = Deployment(model=model, slice=slice, dtypes=BFLOAT16, calibration=calibration)
    names = LayoutNames("auto", "auto")
    sizes = {"batches": (1, 16), "contexts": (999,), "chips_batch": 144}
    return Study(StudyOptions(deployment=deployment, names=names, **sizes))


def drawn(figure, tmp_path, name) -> tuple[dict[str, np.ndarray], str]:
    """The lines of all panels by label, and the words around them."""
    one = study()
    made = figure(one, one.data(name), tmp_path / f"{name}.png")
    lines = [line for panel in made.axes for line in panel.get_lines()]
    texts = [text.get_text() for text in made.texts]
    return {line.get_label(): np.array(line.get_ydata()) for line in lines}, " ".join(texts)


def test_a_pipeline_divides_weights_adds_hops_and_leaves_the_cache(tmp_path):
    lines, words = drawn(system_figures.pipeline, tmp_path, "pipeline")
    stages = np.array([1, 2, 4, 8])  # no more than layers
    np.testing.assert_allclose(lines["weights"], 2e10 / 72 / stages / 1e9)
    cache = lines["KV cache: as many batches in flight as stages"]
    np.testing.assert_allclose(cache, 144 * 2e5 * 1000 / 72 / 1e9)
    late = lines["with 2.50 ms for each hop, as many as stages"]
    plain = lines["floor, hops without latency"]
    np.testing.assert_allclose(late - plain, np.where(stages > 1, 2.5 * stages, 0), atol=1e-9)
    assert f"{100 / 900 * 4 * 2:.3f} at 8 stages" in words  # a layer a stage: not hidden


def test_of_more_racks_more_bytes_go_between_them(tmp_path):
    lines, words = drawn(system_figures.racks, tmp_path, "racks")
    sent, racks = 2 * 2 * 4 * 1000 * 2, np.array([1, 2, 4, 8, 16])  # of 2 sequences a chip
    between = sent * (1 - 1 / racks) / 100e9 * 1e6
    np.testing.assert_allclose(lines["between racks: network"], between)
    inside = sent * 71 / (72 * racks) / 900e9 * 1e6
    np.testing.assert_allclose(lines["inside them: fabric"], inside)
    assert "over two racks takes 4.56 times as long as in one" in words  # 9 / 2 x 72 / 71


def test_training_is_as_far_past_the_optimum_as_two_of_six_flops_of_what_is_served(tmp_path):
    lines, _ = drawn(system_figures.training, tmp_path, "training")
    (alike,) = (line for label, line in lines.items() if label.startswith("at the same MFU"))
    assert alike[0] == pytest.approx(1e12 / 3 / (20 * 1e9))
    (third,) = (line for label, line in lines.items() if label.startswith("serving at a third"))
    np.testing.assert_allclose(third, 3 * alike)


def test_mfu_falls_as_one_over_context_from_the_balanced_one(tmp_path):
    one = study()
    data = one.data("mfu")
    balanced = 2 * 1e9 / 2.5e15 * 8e12 / 2e5  # FLOPs of a token over bytes of a cached one
    assert data.balanced == pytest.approx(balanced, abs=2)
    assert data.halved == pytest.approx(2 * balanced, abs=2)
    expected = np.minimum(balanced / (np.round(data.contexts) + 1), 1)
    np.testing.assert_allclose(data.whole, expected, rtol=1e-6)
    expected = np.minimum(balanced / (np.round(np.sqrt(data.contexts)) + 1), 1)
    np.testing.assert_allclose(data.root, expected, rtol=1e-6)
    lines, words = drawn(system_figures.mfu, tmp_path, "mfu")
    np.testing.assert_allclose(lines["attention reads all"], data.whole)
    assert "MFU falls, whatever the batch" in words


def test_what_has_no_experts_or_no_known_rates_has_no_such_figure():
    dense = dataclasses.replace(MODEL, experts=0, experts_per_token=0, in_experts=0)
    assert study(dense).data("racks") is None and study(dense).data("pipeline").hidden is None
    assert study(topology="l4:2").data("pipeline") is None
