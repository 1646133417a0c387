"""Plans against looking at everything; and whether what they say of what lost is so."""

import dataclasses
import functools
import random
import re

import jax.numpy as jnp
import numpy as np
import pytest

from model.catalog import find_model
from model.dtypes import Dtypes
from profiles.chips.calibration import calibration_of
from profiles.chips.chip import Price, chips
from profiles.chips.slices import parse_slice, slices_of
from profiles.expected.balance import largest_batch
from profiles.expected.candidates import LayoutNames, candidates
from profiles.expected.serving import estimate_service
from profiles.floor.bytes_and_flops import PassCounter
from profiles.floor.deployment import Deployment
from profiles.floor.serving import Service
from profiles.floor.sized_models import sized_models
from profiles.plan import rows
from profiles.plan.cells import BATCHES, Cell
from profiles.plan.search import Search, Targets
from profiles.plan.space import Space
from profiles.plan.text import Plan, choice_words, front_table, plan, record
from profiles.report import numbers
from sharding.catalog import find_layout, prefill_by, schedule_by
from sharding.error_types import FloorlineError
from sharding.quantization import QUANTIZATIONS

BOTH = Dtypes(jnp.bfloat16), Dtypes(jnp.bfloat16, QUANTIZATIONS["int8"], QUANTIZATIONS["int8"])
CONTEXT = 2048
COMPILER = pytest.param("compiler", marks=pytest.mark.slow)  # by default the fronts' steps are its


def _space(model: str, slices: dict[str, float], **changes: object) -> Space:
    found = sized_models().get(model) or find_model(model)
    given = {
        "model": found,
        "slices": tuple((parse_slice(text), Price(price)) for text, price in slices.items()),
        "dtype_sets": BOTH,
        "layouts": tuple(LayoutNames().layouts(found)),
        "calibration": calibration_of,
        "context": CONTEXT,
        "slots": CONTEXT + 1,
    }
    return Space(**given | changes)


SMALL = _space("llama3-8b", {"v5e:2x2": 1.2, "v5e:2x4": 1.2, "h100:2": 5.0, "h100:4": 5.0})
FEW = _space("llama3-8b", {"v5e:2x2": 1.2, "h100:2": 5.0})
MORE = pytest.param(SMALL, marks=pytest.mark.slow)
MIXTRAL = find_model("mixtral-8x7b")
MIXTURE = _space(
    "mixtral-8x7b",
    {"v6e:2x4": 2.7, "mi300x:2": 6.0},
    dtype_sets=BOTH[1:],
    layouts=(
        *(
            each
            for each in LayoutNames(attention="heads").layouts(MIXTRAL)
            if not each.expert_parallel
        ),
        *LayoutNames(attention="batch", expert_parallel=True).layouts(MIXTRAL),
    ),
)


def _everything(space: Space) -> list[tuple[float, float]]:
    """Step and cost of every way, each estimated by itself."""
    found = []
    for slice, price in space.slices:
        for dtypes in space.dtype_sets:
            deployment = Deployment(
                model=space.model, slice=slice, dtypes=dtypes,
                calibration=space.calibration(slice.chip.name), price=price,
            )  # fmt: skip
            for estimator in candidates(deployment, space.layouts):
                batches = {*map(int, BATCHES), largest_batch(estimator, space.context)}
                for batch in sorted(batches - {0}):
                    step = estimator.decode(batch, space.context)
                    if not step.fits:
                        break
                    found.append((step.expected.seconds, step.cost(step.expected.seconds)))
    return found


def _unbettered(ways: list[tuple[float, float]]) -> list[tuple[float, float]]:
    front, least = [], float("inf")
    for step, cost in sorted(ways):
        if cost < least * (1 - 1e-9):
            front.append((step, cost))
            least = cost
    return front


@functools.cache
def _plan(targets: Targets) -> Plan:
    return plan(SMALL, targets)


TARGETS = Targets(step_s=0.012, chips=8, usd_per_hour=12.0)
SERVICE = Service(None, 1500, 300)


@pytest.mark.parametrize("space", [FEW, MIXTURE, MORE], ids=["dense", "mixture", "more slices"])
def test_the_front_is_that_of_looking_at_everything(space):
    everything = _everything(space)
    for limit in (None, 0.012):
        found = Search(space, Targets(step_s=limit)).front(space.cells)
        wanted = _unbettered([way for way in everything if way[0] <= (limit or 1e9)])
        assert [(p.step_s, p.usd) for p in found] == [pytest.approx(w, rel=1e-8) for w in wanted]


@pytest.mark.parametrize("count", [3, pytest.param(24, marks=pytest.mark.slow)])
@pytest.mark.parametrize("schedule", [COMPILER, "overlapped"])
def test_steps_that_a_plan_compares_are_those_of_estimates(schedule, count):
    """Also where forms share what they send: the first form is not the one that is checked."""
    wanted = LayoutNames(collectives=schedule).layouts(find_model("llama3-8b"))
    few = Dtypes(jnp.bfloat16, QUANTIZATIONS["int4"], QUANTIZATIONS["int8"])
    pick = random.Random(0)
    for model, slice in (("palm-540b", "v4:4x4x4"), ("qwen3-30b-a3b", "v6e:2x4"),
                         ("llama3-8b", "h100:4")):  # fmt: skip
        space = _space(model, {slice: 1.0}, dtype_sets=(*BOTH, few), layouts=tuple(wanted))
        for cell in space.cells:
            for number in random.Random(0).sample(range(len(cell.rows)), count):
                fitting = cell.batches[number] > 0
                if not fitting.any():
                    continue
                fits = (each[number][fitting] for each in (cell.batches, cell.steps))
                batch, step = pick.choice(list(zip(*fits, strict=True)))
                found = cell.estimate(number, int(batch)).expected.seconds
                assert step == pytest.approx(found, rel=1e-9), (cell.rows[number], cell.dtypes)


@pytest.mark.parametrize("schedule", [COMPILER, "overlapped"])
def test_steps_of_a_service_that_a_plan_compares_are_those_of_estimates(schedule):
    """Also with windows, where prompts gather weights that steps do not, and of models by sizes."""
    prompts = find_layout("weight_gathered_xy")
    wanted = [
        schedule_by(prefill_by(layout, prompts) if gathers else layout, schedule)
        for layout in LayoutNames("weight_stationary_2d").layouts(find_model("gemma3-4b"))
        for gathers in (False, True)
    ] + [schedule_by(find_layout("data_parallel_x_1d"), schedule)]
    for model, slice in (("qwen3-30b-a3b", "v6e:2x4"), ("gemma3-4b", "mi300x:4"),
                         ("deepseek-v3-even", "h200:8")):  # fmt: skip
        layouts = (None,) if model in sized_models() else tuple(wanted)
        size = {"slots": 1800, "prompt": 1500, "service": SERVICE, "layouts": layouts}
        for cell in _space(model, {slice: 1.0}, **size).cells:
            for number in random.Random(0).sample(range(len(cell.rows)), min(len(cell.rows), 6)):
                fitting = np.flatnonzero(cell.batches[number])
                for place in fitting[:: max(len(fitting) // 3, 1)]:
                    found = cell.estimate(number, int(cell.batches[number][place]))
                    step = cell.steps[number][place]
                    assert step == pytest.approx(found.expected_beside_s, rel=1e-9)


def test_the_front_of_a_service_pays_for_prompts_and_is_that_of_looking_at_everything():
    size = {"slots": 1800, "prompt": 1500, "dtype_sets": BOTH[1:]}
    given = _space("llama3-8b", {"v5e:2x2": 1.2, "h100:2": 5.0}, service=SERVICE, **size)
    found = plan(given, Targets(prompt=1500))
    every = []
    for cell in given.cells:
        for number in range(len(cell.rows)):
            for batch in cell.batches[number][cell.batches[number] > 0].tolist():
                step = estimate_service(cell.estimator(number), Service(batch, 1500, 300))
                every.append((step.expected_beside_s, step.cost(step.expected_beside_s)))
    wanted = _unbettered(every)
    assert [(p.step_s, p.usd) for p in found.front] == [pytest.approx(w, rel=1e-8) for w in wanted]
    made = record(found.choice)
    assert made.phase == "serving" and made.concurrency == found.choice.batch
    assert made.expected_s == pytest.approx(found.choice.step_s)
    assert f"batch {found.choice.batch:,}" in choice_words(found.choice, Targets())
    assert f"{found.choice.batch:,}" in front_table([made], 0)
    alone = plan(_space("llama3-8b", {"v5e:2x2": 1.2, "h100:2": 5.0}, context=1650, **size),
                 Targets(prompt=1500))  # fmt: skip
    assert found.choice.usd > 2 * alone.choice.usd


@pytest.mark.parametrize("schedule", [COMPILER, "overlapped"])
def test_first_tokens_that_a_plan_compares_are_those_of_estimates(schedule):
    """Also where prompts gather weights that decode steps do not, in few bits or not."""
    prompts = find_layout("weight_gathered_xy")
    wanted = [
        schedule_by(prefill_by(layout, prompts) if gathers else layout, schedule)
        for layout in LayoutNames("weight_stationary_2d").layouts(find_model("llama3-8b"))
        for gathers in (False, True)
    ]
    for model, slice in (("mixtral-8x7b", "v6e:2x4"), ("llama3-8b", "mi300x:8")):
        space = _space(model, {slice: 1.0}, layouts=tuple(wanted))
        for cell in space.cells:
            for number in random.Random(0).sample(range(len(cell.rows)), 8):
                found = cell.estimator(number).prefill(1, 1000).expected.seconds
                assert cell.first_tokens(1000)[number] == pytest.approx(found, rel=1e-9)


def test_what_is_on_the_front_fits_and_meets_the_targets_and_the_choice_is_the_cheapest():
    found = _plan(TARGETS)
    records = [record(point) for point in found.front]
    assert len(records) > 3
    for each, point in zip(records, found.front, strict=True):
        assert each.fits
        assert each.expected_s == pytest.approx(point.step_s)
        assert point.step_s <= TARGETS.step_s
        assert each.floor_s <= each.expected_s
        assert each.chips <= TARGETS.chips
        assert point.cell.usd_per_hour <= TARGETS.usd_per_hour
        assert each.usd_per_million_tokens == pytest.approx(point.usd)
    assert found.choice.usd == min(point.usd for point in found.front)


def test_reasons_of_what_lost_are_true():
    found = _plan(TARGETS)
    said = {lost.what: lost.why for lost in found.rejected}
    assert {"h100:4", "v5e:2x4"} & said.keys() or "chip h100" in said
    ours = record(found.choice)
    for what, why in said.items():
        if cost := re.match(r"costs ([\d.]+) USD per million tokens against ([\d.]+)", why):
            assert float(cost[1]) > float(cost[2])
            assert float(cost[2]) == pytest.approx(ours.usd_per_million_tokens, rel=6e-3)
        elif over := re.match(r"([\d.e+]+) ms per step is over ([\d.]+) ms", why):
            assert float(over[1]) > float(over[2])
            assert float(over[2]) == pytest.approx(TARGETS.step_s * 1e3)
        else:
            assert re.match(r"does not fit by|costs the same|.* is over", why), (what, why)
    double = found.choice.cell.estimate(found.choice.number, 2 * found.choice.batch)
    assert said[f"batch {2 * found.choice.batch}"].startswith(
        "does not fit" if not double.fits else ("costs", "1", "2")
    )


def test_twice_the_batch_does_not_fit_beside_a_prompt_though_it_would_alone():
    size = {"context": 4000, "slots": 4001, "prompt": 3900, "dtype_sets": BOTH[:1]}
    found = plan(_space("llama3-8b", {"v5e:1x1": 1.2}, **size), Targets(prompt=3900))
    twice = found.choice.batch * 2
    said = {lost.what: lost.why for lost in found.rejected}
    assert found.choice.cell.estimate(found.choice.number, twice).fits
    assert re.fullmatch(r"does not fit by [\d.]+ GB per chip", said[f"batch {twice:,}"])


def test_the_slice_that_would_hold_a_prompt_too_is_not_one_that_does_not():
    """A cache of 8,100 tokens leaves 57 MB, and a chunk of a prompt holds 210."""
    size = {"context": 8050, "slots": 8100, "prompt": 8000, "dtype_sets": BOTH[:1]}
    space = _space("llama3-8b", {"v5e:1x1": 1.2}, **size)
    with pytest.raises(FloorlineError, match=r"lacking; the least slice that holds it is v5e:2x2"):
        plan(space, Targets(prompt=8000))


def test_nothing_on_a_chip_that_lost_is_cheaper():
    found = _plan(TARGETS)
    (other,) = {"h100", "v5e"} - {found.choice.cell.slice.chip.name}
    ways = [
        way
        for way in _everything(
            dataclasses.replace(
                SMALL,
                slices=tuple(
                    (slice, price)
                    for slice, price in SMALL.slices
                    if slice.chip.name == other and slice.chips * price.usd <= TARGETS.usd_per_hour
                ),
            )
        )
        if way[0] <= TARGETS.step_s
    ]
    least = min(cost for _, cost in ways)
    (why,) = [lost.why for lost in found.rejected if lost.what == f"chip {other}"]
    assert why.startswith(f"costs {numbers.number(least)} USD")


def test_targets_that_nothing_meets_name_what_each_would_have_to_be():
    targets = Targets(step_s=0.003, chips=2)
    with pytest.raises(FloorlineError, match="3 ms per step and 2 chips, which nothing m") as told:
        _plan(targets)
    offers = re.findall(r"(?:nearest: |; or )([\d.]+) (ms per step|chips)", str(told.value))
    assert {words for _, words in offers} == {"ms per step", "chips"}
    for number, words in offers:
        value = float(number)
        relaxed = {"step_s": value * 1.005e-3} if "ms" in words else {"chips": int(value)}
        tight = {"step_s": value * 0.99e-3} if "ms" in words else {"chips": int(value) - 1}
        assert _plan(dataclasses.replace(targets, **relaxed)).front
        with pytest.raises(FloorlineError):
            _plan(dataclasses.replace(targets, **tight))


def test_a_first_token_in_time_is_asked_of_every_way():
    targets = Targets(prompt=2000, first_token_s=0.09)
    found = _plan(targets)
    for point in found.front:
        first = point.cell.estimator(point.number).prefill(1, 2000).expected.seconds
        assert first <= 0.09
    slower = _plan(Targets()).choice
    assert slower.cell.estimator(slower.number).prefill(1, 2000).expected.seconds > 0.09
    assert slower.usd < found.choice.usd


def test_a_model_that_fits_nowhere_is_told_what_would_hold_it():
    space = _space("llama3-70b", {"v5e:2x2": 1.2, "v5e:2x4": 1.2}, dtype_sets=BOTH[:1])
    with pytest.raises(
        FloorlineError, match=r"fits on none .* v5e:2x4.* GB per chip are lack"
    ) as told:
        plan(space, Targets())
    assert "the least slice that holds it is v5e:4x4, bfloat16" in str(told.value)


def test_a_model_that_fits_nowhere_is_short_of_least_within_the_chips_that_were_asked_for():
    space = _space("llama3-405b", {"v5e:2x4": 1.2, "v5e:4x4": 1.2}, dtype_sets=BOTH[:1])
    with pytest.raises(FloorlineError, match="nearest within 8 chips: v5e:2x4, bfloat16, where"):
        plan(space, Targets(chips=8))
    with pytest.raises(FloorlineError, match="nearest: v5e:4x4, bfloat16, where"):
        plan(space, Targets())


def test_costs_without_end_are_an_error_in_words():
    space = _space("llama3-8b", {"v5e:2x4": float("inf")})
    with pytest.raises(FloorlineError, match="no step is expected to end at a cost that has a num"):
        plan(space, Targets())


def test_each_way_of_a_plan_says_whose_price_it_is_at():
    slices = tuple((each, each.chip.price()) for each in map(parse_slice, ("v5e:1x1", "h200:1")))
    space = dataclasses.replace(_space("llama3-8b", {}), slices=slices)
    found = plan(space, Targets())
    for point in found.front:
        price = point.cell.slice.chip.price()
        assert record(point).price == price.as_record()
    table = front_table([record(point) for point in found.front], 0)
    assert "4.39  RunPod Secure" in table
    assert f"USD per chip-hour of {found.choice.cell.price.seller}" in choice_words(
        found.choice, Targets()
    )
    (other,) = (lost.why for lost in found.rejected if lost.what.startswith("chip "))
    assert re.search(r", at [\d.]+ USD per chip-hour of (RunPod Secure|Google Cloud)\)$", other)


def test_a_model_by_its_sizes_has_a_plan():
    space = _space(
        "deepseek-v3-even", {"h200:8": 10.6, "v5p:4x4x4": 4.2}, dtype_sets=BOTH[1:], layouts=()
    )
    found = plan(space, Targets(step_s=0.05))
    assert all(point.step_s <= 0.05 for point in found.front)
    assert record(found.choice).layout == "divided_evenly"
    alone = found.choice.cell.estimator(0)
    (price,) = [p for slice, p in space.slices if slice == found.choice.cell.slice]
    step = alone.decode(found.choice.batch, CONTEXT).expected.seconds
    assert step == pytest.approx(found.choice.step_s)
    cost = price.usd * found.choice.cell.slice.chips * step / found.choice.batch / 3600 * 1e6
    assert cost == pytest.approx(found.choice.usd)


def test_slices_that_are_passed_over_hold_nothing_better(monkeypatch):
    """Bounds that hold in any layout leave out whole slices before their layouts are compared."""
    int8 = QUANTIZATIONS["int8"]
    sets = tuple(Dtypes(jnp.bfloat16, weights, None) for weights in (None, int8))
    slices = tuple(
        (slice, chip.prices[0]) for chip in chips() if chip.prices for slice in slices_of(chip, 16)
    )
    space = dataclasses.replace(_space("llama3-8b", {}, dtype_sets=sets), slices=slices)
    looked_at = []
    steps = Cell.steps.func
    seen = functools.cached_property(lambda cell: looked_at.append(cell) or steps(cell))
    seen.__set_name__(Cell, "steps")
    monkeypatch.setattr(Cell, "steps", seen)
    for targets in (Targets(), Targets(step_s=0.02)):
        pruned = plan(dataclasses.replace(space), targets).front
        few = len(looked_at)
        with monkeypatch.context() as patch:
            patch.setattr(Search, "_hope", lambda *_: (np.zeros(1), np.zeros(1)))
            every = plan(dataclasses.replace(space), targets).front
        assert 0 < few < len(looked_at) - few
        assert [(p.step_s, p.usd) for p in pruned] == [(p.step_s, p.usd) for p in every]  # ties
        looked_at.clear()


def test_work_is_counted_once_for_all_rows(monkeypatch):
    """Not for each layout, or for each pattern in which layouts divide arrays."""
    made = []

    def counted(*args: object) -> PassCounter:
        made.append(args)
        return PassCounter(*args)

    monkeypatch.setattr(rows, "PassCounter", counted)
    space = dataclasses.replace(MIXTURE, dtype_sets=BOTH, prompt=1000)
    for dtypes in BOTH:
        space.lines(dtypes)
        space.prompts(dtypes, 1000)
    assert len(made) == 3 * len(BOTH)  # decode steps, prompts beside them, prompts


def test_where_every_layout_is_refused_there_are_no_rows():
    model = find_model("smollm2-135m")
    layouts = LayoutNames("weight_stationary_1d", "heads").layouts(model)
    found = rows.Rows(model, BOTH[0], layouts, {5})
    assert found.lines(BOTH[0], 10, 11, prompt=100).resident.shape == (0,)
    assert found.prompts(BOTH[0], 100, "coverage").shape == (4, 0)
    assert found.multiples.shape == (0,)
