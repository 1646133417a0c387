"""Plans over several slices: stages of pipelines, and experts over racks, against closed forms."""

import dataclasses
import functools
import re

import numpy as np
import pytest

from model.catalog import find_model
from model.dtypes import BFLOAT16
from profiles.chips.calibration import calibration_of
from profiles.chips.chip import Price, find_chip
from profiles.chips.slices import joined_slices_of, parse_slice
from profiles.expected import economics
from profiles.expected.balance import largest_batch
from profiles.expected.candidates import LayoutNames, candidates
from profiles.expected.estimate import Estimator
from profiles.floor.deployment import Deployment
from profiles.floor.serving import Service
from profiles.floor.sized_models import SizedModel
from profiles.plan.cells import BATCHES, Cell
from profiles.plan.search import Search, Targets
from profiles.plan.space import Space
from profiles.plan.text import choice_words, front_table, plan, record
from sharding.error_types import FloorlineError

DENSE = SizedModel("dense", "this test", 10, 1000, 10**10, 10**10, cached=10**5, attention_flops=0)
MIXTURE = dataclasses.replace(
    DENSE, active=10**9, in_experts=9 * 10**9, experts=256, experts_per_token=8
)
PRICE, CONTEXT = Price(2.0), 999
SIMPLE = dataclasses.replace(
    calibration_of("v5e"), memory=1.0, compute=1.0, link=1.0, collective_s=0.0, layer_s=0.0,
    step_s=1e-3, hidden=False, adds=True, attention=None, compute_by_rows=(),
)  # fmt: skip


def _space(model, *slices: str, **changes: object) -> Space:
    given = {
        "model": model,
        "slices": tuple((parse_slice(text), PRICE) for text in slices),
        "dtype_sets": (BFLOAT16,),
        "layouts": (None,),
        "calibration": lambda name: SIMPLE,
        "context": CONTEXT,
        "slots": CONTEXT + 1,
        "stages": (1, 2, 4),
    }
    return Space(**given | changes)


def _pipeline(space: Space) -> Cell:
    (found,) = (cell for cell in space.cells if cell.stages > 1)
    return found


def test_a_stage_has_its_part_of_the_weights_and_a_token_waits_for_every_hop():
    """10 billion bfloat16 weights on 8 chips of 84.94 GB; a cached token is 200 kB."""
    cell = _pipeline(_space(DENSE, "h100:8*4", hop_s=2.5e-3))
    capacity, weights, each = cell.capacity, 2e10 / 8, 2e5 * 1000 / 8
    assert cell.alone[0] == int((capacity - weights) // each)
    assert cell.batches[0, -1] == int((capacity - weights / 4) // each)
    batch = int(cell.batches[0, -1])
    found = cell.estimate(0, batch)
    memory = (weights + batch * each) / cell.slice.chip.recommended.bandwidth
    compute = batch * 2e10 / 8 / cell.slice.chip.recommended.peak("bfloat16")
    sent = 3 * batch * 1000 * 2 / (8 * 50e9)
    reduced = 2 * 10 * batch * 1000 * 2 * 2 * 7 / 8 / cell.slice.chip.fabric
    seconds = memory + compute + reduced + 4 * 2.5e-3 + sent + 4 * 1e-3
    assert found.expected.seconds == pytest.approx(seconds, rel=1e-3)
    assert found.expected.hops == pytest.approx(4 * 2.5e-3 + sent + 3 * 1e-3)
    assert found.counts.weights_resident == pytest.approx(weights / 4)
    assert cell.steps[0, -1] == pytest.approx(found.expected.seconds)
    usd = 2.0 * 8 / 3600 * found.expected.seconds / batch * 1e6  # a stage's chips, of a batch
    assert cell.cost(cell.steps, cell.batches)[0, -1] == pytest.approx(usd)
    assert cell.chips == 32 and cell.usd_per_hour == 64.0


def test_a_token_waits_for_hops_that_are_known_in_the_floor_and_for_others_in_expected_times():
    """The floor is the one that `estimate.py --stages` has of the same slice."""
    known, guessed = (_pipeline(_space(DENSE, "h100:8*4", hop_s=s)) for s in (2.5e-3, None))
    steps = known.estimate(0, 64), guessed.estimate(0, 64)
    alone = Estimator(dataclasses.replace(steps[0].deployment, stages=1))
    least = alone.decode(64, CONTEXT).floor.seconds
    assert least > 3 * 64 * 1000 * 2 / (8 * 50e9)
    for step, hop_s, waits in zip(steps, (2.5e-3, 0.0), (10e-3, None), strict=True):
        assert step.floor.seconds == pytest.approx(least + (waits or 0.0))
        found = economics.pipeline(alone, 4, 64, CONTEXT, hop_s)
        assert step.floor.seconds == pytest.approx(found.step_s)
        assert step.floor.terms().get("hops") == waits
        assert step.floor.seconds <= step.floor.no_overlap < step.expected.seconds
    assert steps[0].floor.bound == "hops" and steps[1].floor.bound == "weights"
    assert steps[1].expected.hops >= 4 * SIMPLE.network_s


def test_what_a_pipeline_adds_to_a_token_is_the_sum_of_what_a_plan_names():
    found = plan(_space(DENSE, "h100:8*4", stages=(4,), hop_s=1e-4), Targets())
    words = choice_words(found.choice, Targets())
    (terms,) = re.findall(
        r"4 hops of (\S+) ms and (\S+) ms for their bytes and (\S+) ms to start programs on the "
        r"other stages add (\S+) ms to a token", words
    )  # fmt: skip
    hop, sent, starts, whole = map(float, terms)
    assert (hop, starts) == (0.1, 3.0)
    assert 4 * hop + sent + starts == pytest.approx(whole, rel=2e-3) and sent > 0.01 * whole


def test_a_record_of_a_pipeline_is_of_all_its_chips_and_all_batches_in_flight():
    space = _space(MIXTURE, "gb200:72*2", stages=(2,))
    found = record(plan(space, Targets()).choice)
    assert (found.topology, found.chips, found.pipeline["stages"]) == ("gb200:72*2", 144, 2)
    assert found.pipeline["inside_over_between"] == pytest.approx(1 / 9 * 8 * 2 * 5)
    assert found.pipeline["hop_s"] == SIMPLE.network_s == 2e-5
    assert found.tokens_per_s == pytest.approx(2 * found.batch / found.expected_s)
    usd = 144 * 2.0 / 3600 / found.tokens_per_s * 1e6
    assert found.usd_per_million_tokens == pytest.approx(usd)
    assert found.expected_terms_s["hops"] > 2 * 2e-5
    sent = found.batch * 1000 * 2 / (72 * 100e9)
    assert found.floor_terms_s["communication"] == pytest.approx(sent)
    assert "stages" in front_table([found], 0)


LLAMA = find_model("llama3-8b")
LAYOUTS = tuple(LayoutNames("weight_stationary_1d", "heads").layouts(LLAMA))


def _everything(space: Space) -> list[tuple[float, float]]:
    """Step and cost of every way, each estimated by itself, also where one slice has room."""
    found = []
    for cell in space.cells:
        deployment = Deployment(
            model=space.model, slice=cell.slice, dtypes=cell.dtypes, calibration=cell.calibration,
            price=cell.price, stages=cell.stages, hop_s=cell.hop_s,
        )  # fmt: skip
        for one in candidates(deployment, space.layouts):
            most = largest_batch(one, space.context, cell.stages)
            for batch in sorted({*map(int, BATCHES), most} - {0}):
                step = one.decode(batch, space.context)
                if step.fits:
                    found.append((step.expected.seconds, step.cost(step.expected.seconds)))
    return found


@functools.cache
def _small() -> Space:
    """Starts of collectives between slices take so long that no layout spans two."""
    slow = dataclasses.replace(calibration_of("v5e"), network_s=1e-3)
    given = {"layouts": LAYOUTS, "context": 4000, "slots": 4001, "hop_s": 1e-4}
    return _space(LLAMA, "v5e:2x2", "v5e:2x2*2", calibration=lambda name: slow, **given)


def _unalike() -> Space:
    """A slice of another shape alone, and one of two stages that is not compared alone."""
    slow = dataclasses.replace(SIMPLE, network_s=1.0, step_s=0.0)
    given = {"calibration": lambda name: slow, "hop_s": 0.0}
    return _space(DENSE, "h100:1", "h100:8*2", stages=(1, 2), **given)


@pytest.mark.parametrize(
    "space",
    [_small(), _unalike(), dataclasses.replace(_unalike(), stages=(2,))],
    ids=["beside one slice", "beside another slice", "alone"],
)
def test_the_front_is_that_of_looking_at_every_batch_of_every_pipeline(space):
    front, least = [], float("inf")
    for step, cost in sorted(_everything(space)):
        if cost < least * (1 - 1e-9):
            front.append((step, cost))
            least = cost
    found = Search(space, Targets()).front(space.cells)
    assert [(p.step_s, p.usd) for p in found] == [pytest.approx(w, rel=1e-8) for w in front]
    assert any(point.cell.stages > 1 for point in found)


def test_a_pipeline_alone_meets_a_target_that_its_small_batches_meet():
    space = _space(DENSE, "h100:8*2", "h100:8*4", stages=(2, 4))
    quick = plan(space, Targets(step_s=5e-3))
    assert quick.choice.batch < quick.choice.cell.alone[quick.choice.number]
    holds = f"h100:8 alone, which is not compared, holds {quick.choice.cell.alone[0]:,} sequences"
    assert holds in choice_words(quick.choice, Targets())
    assert "pipeline h100:8*4 in 4 stages" in [lost.what for lost in quick.rejected]


def test_every_other_chip_is_told_of_once_by_its_best_slice():
    names = ["h100:1", "v5e:4x4", "h100:2", "v5e:2x4", "h100:4"]
    found = plan(_space(DENSE, *names, stages=(1,)), Targets())
    chosen = found.choice.cell.slice.chip.name
    (other,) = {"h100", "v5e"} - {chosen}
    told = [lost for lost in found.rejected if lost.what.startswith("chip ")]
    assert [lost.what for lost in told] == [f"chip {other}"]
    alone = _space(DENSE, *(name for name in names if name.startswith(other)), stages=(1,))
    assert f"({plan(alone, Targets()).choice.cell.slice}, " in told[0].why


@pytest.mark.parametrize("service", [None, Service(None, 900, 100)])
def test_steps_and_first_tokens_of_pipelines_that_a_plan_compares_are_those_of_estimates(service):
    space = dataclasses.replace(_small(), service=service, slots=4100, prompt=900)
    for cell in (cell for cell in space.cells if cell.stages > 1):
        number = int(np.argmax(cell.batches[:, -1]))
        batch = int(cell.batches[number, -1])
        found = cell.estimate(number, batch).expected.seconds
        assert cell.steps[number, -1] == pytest.approx(found, rel=1e-9)
        first = cell.estimator(number).prefill(1, 900).expected.seconds
        assert cell.first_tokens(900)[number] == pytest.approx(first, rel=1e-9)


def test_the_only_way_that_fits_is_taken_and_says_why():
    """Of 10 billion bfloat16 weights one v5e:1x1, of 16 GB, holds none; stages hold 5 GB each."""
    space = _space(DENSE, "v5e:1x1", "v5e:1x1*4")
    alone = dataclasses.replace(space, slices=space.slices[:1])
    with pytest.raises(FloorlineError, match="fits on none of the slices"):
        plan(alone, Targets())
    found = plan(dataclasses.replace(space, slices=space.slices, stages=(4,)), Targets())
    assert found.choice.cell.stages == 4
    words = choice_words(found.choice, Targets())
    assert "pipeline of 4 stages, each on v5e:1x1: weights 20.0 GB -> 5.00 GB per chip" in words
    assert "where v5e:1x1 alone holds none" in words
    assert "not hidden: a dense model sends nothing to experts meanwhile" in words
    both = plan(space, Targets())  # one chip's share of each layer over the network is cheaper here
    assert both.choice.cell.stages == 1 and str(both.choice.cell.whole) == "v5e:1x1*4"


def test_hops_that_take_long_lose_to_one_slice_and_the_plan_says_so():
    """600 GB of weights leave a tenth of one slice to the cache, and more than half of two.

    Layers of such width send more over the network than stages do.
    """
    wide = {"total": 3 * 10**11, "active": 3 * 10**11, "d_model": 16_384, "layers": 80}
    slices, large = ("h100:8", "h100:8*2"), dataclasses.replace(DENSE, **wide)
    quick = plan(_space(large, *slices, hop_s=0.0), Targets())
    assert quick.choice.cell.stages == 2
    slow = plan(_space(large, *slices, hop_s=1.0), Targets())
    assert slow.choice.cell.stages == 1
    (why,) = [lost.why for lost in slow.rejected if lost.what.startswith("pipeline h100:8*2")]
    assert why.startswith("costs ") and "h100:8*2 in 2 stages" in why
    full = plan(_space(large, "h100:8"), Targets()).choice.step_s  # larger batches take longer
    within = plan(_space(large, *slices, hop_s=0.0), Targets(step_s=full))
    assert within.choice.cell.stages == 1


def test_an_expert_layer_stays_in_one_rack_unless_two_are_faster_and_says_how_far_tokens_go():
    quick = dataclasses.replace(SIMPLE, network_s=0.0)
    given = {"stages": (1,), "calibration": lambda name: quick}
    found = plan(_space(MIXTURE, "gb200:72", "gb200:72*2", **given), Targets())
    assert str(found.choice.cell.whole) == "gb200:72"
    (why,) = [lost.why for lost in found.rejected if lost.what == "gb200:72*2"]
    assert "2 domains of 72" in why and "4.56 times as long over two domains" in why
    (fastest, *_) = found.front
    assert str(fastest.cell.whole) == "gb200:72*2"  # at batch 1 weights are all there is
    assert "experts  2 domains of 72" in choice_words(fastest, Targets())


def test_slices_of_pipelines_are_whole_domains_or_hosts_with_a_network_of_known_rate():
    listed = [str(each) for each in joined_slices_of(find_chip("h100"), (1, 2, 4), 32)]
    assert listed == ["h100:8*2", "h100:8*4"]
    assert joined_slices_of(find_chip("l4"), (2,), 64) == []
    v5e = [str(each) for each in joined_slices_of(find_chip("v5e"), (2, 4), 32)]
    assert v5e == ["v5e:2x4*2", "v5e:2x4*4", "v5e:4x4*2"]
    space = _space(DENSE, "v5e:2x4*2", "v5e:4x4", stages=(1, 2))
    assert [(str(cell.whole), cell.stages) for cell in space.cells] == [
        ("v5e:2x4*2", 2), ("v5e:4x4", 1)
    ]  # fmt: skip
    assert [cell.stages for cell in _space(DENSE, "v5e:2x4*16", stages=(16,)).cells] == []
