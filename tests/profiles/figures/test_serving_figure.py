"""The picture of a measured service: its curves, its bars, and what it says of itself."""

import copy

import pytest
from PIL import Image

from profiles.figures.serving import LOST, drawn, serving_cost
from profiles.report.record import Record

LOAD = {
    "arrivals": "closed",
    "requests": 4,
    "rows": 8,
    "prompt_tokens": 4 * 128,
    "generated_tokens": 4 * 64,
}


def load(concurrency: int, seconds: float, **more) -> dict:
    ideal, floor = seconds / 2, seconds / 5
    lost = dict(zip(LOST, (0.4, 0.2, 0.1, 0.05, 0.05), strict=True))
    return LOAD | {
        "concurrency": concurrency,
        "s_per_token": seconds,
        "tokens_per_s": 1 / seconds,
        "ideal": {"s_per_token": ideal, "tokens_per_s": 1 / ideal},
        "floor": {"s_per_token": floor, "tokens_per_s": 1 / floor},
        "lost": {name: share * seconds for name, share in lost.items()},
        **more,
    }


@pytest.fixture
def document() -> dict:
    point = Record(model="tiny", phase="decode", dtype="float32", device_kind="cpu", batch=8)
    rates = {"bytes_per_s": 1e10, "source": "measured", "peak_flops_per_s": 1e11}
    return {
        "points": [point],
        "bandwidth": rates,
        "device_kind": "cpu",
        "load": [load(8, 0.02), load(1, 0.05)],
    }


def values(figure, label: str) -> list[float]:
    (line,) = [each for each in figure.axes[0].get_lines() if each.get_label() == label]
    assert list(line.get_xdata()) == [1, 8]
    return list(line.get_ydata())


def test_curves_are_costs_against_requests_at_once_on_logarithmic_axes(document, tmp_path):
    figure = serving_cost(document, tmp_path / "cost.png")
    assert values(figure, "measured") == pytest.approx([50, 20])
    assert values(figure, "ideal: steps full, prompts free") == pytest.approx([25, 10])
    assert values(figure, "floor of these steps") == pytest.approx([10, 4])
    assert figure.axes[0].get_xscale() == figure.axes[0].get_yscale() == "log"
    assert "ms of wall time" in figure.axes[0].get_ylabel()
    texts = " ".join(text.get_text() for text in figure.texts)
    for words in ("tiny, float32, on cpu", "8 rows", "prompts of 128 tokens", "10.0 GB/s"):
        assert words in texts
    assert Image.open(tmp_path / "cost.png").size == (1100, 590)


def test_bars_add_up_to_the_whole_cost(document, tmp_path):
    figure = serving_cost(document, tmp_path / "cost.png")
    bars = figure.axes[1].patches
    tops = [max(b.get_y() + b.get_height() for b in bars if round(b.get_x() + 0.31) == n)
            for n in range(2)]  # fmt: skip
    assert tops == pytest.approx([100, 100])


def test_costs_are_in_usd_where_every_load_has_a_price(document, tmp_path):
    priced = copy.deepcopy(document)
    for each in priced["load"]:
        each["usd_per_million_tokens"] = each["s_per_token"] * 100
    figure = serving_cost(priced, tmp_path / "cost.png")
    assert values(figure, "measured") == pytest.approx([5, 2])
    assert "USD per million tokens" in figure.axes[0].get_ylabel()


def test_what_is_below_zero_is_told_and_not_drawn(document, tmp_path):
    document["load"][0]["lost"]["over_floor"] = -0.001
    figure = serving_cost(document, tmp_path / "cost.png")
    assert any("Below zero" in text.get_text() for text in figure.texts)


def test_of_a_server_elsewhere_the_measured_cost_is_drawn_alone(tmp_path):
    known = LOAD | {"concurrency": 1, "s_per_token": 0.01, "tokens_per_s": 100}
    known.pop("rows")
    found = {"points": [], "subject": "m at http://here", "load": [known], "device_kind": ""}
    figure = serving_cost(found, tmp_path / "cost.png")
    assert len(figure.axes) == 1
    assert serving_cost(found | {"load": []}, tmp_path / "none.png") is None


def test_of_several_kinds_of_arrivals_one_is_drawn():
    several = [LOAD | {"arrivals": "poisson", "rate": 2.0}, LOAD | {"concurrency": 1}]
    assert drawn(several) == ([several[1]], "closed")
    assert drawn(several[:1]) == (several[:1], "poisson")
