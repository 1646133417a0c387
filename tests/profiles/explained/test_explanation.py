"""An explained step adds up, says what the trace added, and names what is known to help."""

import dataclasses
import itertools

import pytest

from profiles.chips.chip import Peaks
from profiles.explained.attribution import Attribution
from profiles.explained.blocks import COLLECTIVES, HOST, LAUNCHES
from profiles.explained.explained_table import fields, table, text
from profiles.explained.explanation import explain
from profiles.explained.operations import Operations
from profiles.explained.remedies import REMEDIES, Evidence, remedy
from profiles.explained.same_step import check_facts, check_program
from profiles.figures.waterfall import bars_of, waterfall
from profiles.floor.block_counts import BLOCKS, BlockCounts
from profiles.measured.trace import TraceError
from profiles.report.record import Record

PEAKS = Peaks(bandwidth=10.0, flops=100.0, source="measured")
COUNTS = {
    "query/key/value": BlockCounts(1.0, 0.0),
    "norms": BlockCounts(0.5, 0.0),
    "MLP": BlockCounts(20.0, 50.0),
    "attention": BlockCounts(1.0, 30.0),
}
KNOWN = Operations(
    blocks={"dot.1": "MLP", "exp.1": "attention", "copy.1": "attention", "rsqrt.1": "norms"},
    opcodes={"dot.1": "dot", "exp.1": "exponential", "copy.1": "copy", "rsqrt.1": "rsqrt",
             "odd.1": "sort"},
    containers=frozenset(),
)  # fmt: skip
OPERATIONS = {"dot.1": 3.0, "exp.1": 1.0, "copy.1": 4.0, "rsqrt.1": 0.5, "odd.1": 0.5,
              "all-reduce.7": 0.5}  # fmt: skip
TRACE = Attribution(4, 12.0, OPERATIONS, {}, launches=1.5, host=1.0)


def record(step_s, **more):
    times = {"median": step_s, "p10": step_s, "p90": step_s, "samples": [step_s]}
    names = {"weight_dtype": "float32", "kv_dtype": "float32", "dtype": "float32", "batch": 2}
    return Record(
        model="tiny", phase="decode", context=8, device_kind="cpu", floor_s=2.2,
        step_s=times, collectives="compiler", **names | more,
    )  # fmt: skip


def explained(step_s=12.0, **more):
    return explain(record(step_s, **more), TRACE, KNOWN, COUNTS, PEAKS)


def document(explanation):
    bandwidth = {"bytes_per_s": 10.0, "peak_flops_per_s": 100.0, "source": "measured"}
    head = {"bandwidth": bandwidth, "device_kind": "cpu", "points": [explanation.record]}
    return head | fields(explanation)


@pytest.mark.parametrize("step_s", [15.0, 12.0, 11.5, 9.0])
def test_blocks_and_what_is_unattributed_add_up_to_the_measured_step(step_s):
    found = explained(step_s)
    total = sum(block.measured_s for block in found.blocks) + found.unattributed_s
    assert total == pytest.approx(step_s, rel=1e-12)
    assert sum(each["seconds"] for each in found.waterfall()) == pytest.approx(step_s, rel=1e-12)


def test_those_that_lose_most_over_their_own_floors_come_first():
    found = explained()
    assert [block.name for block in found.blocks[:2]] == ["attention", "between operations"]
    blocks = {block.name: block for block in found.blocks}
    assert blocks["MLP"].floor_s == 2.0 and blocks["MLP"].over_floor_s == 1.0
    assert blocks["attention"].floor_s == pytest.approx(0.3)  # by its arithmetic
    assert blocks["all-reduce"].measured_s == 0.5  # by its name alone
    assert found.unattributed_s == 0.5 and found.named == pytest.approx(23 / 24)


def test_what_a_trace_adds_is_taken_from_the_time_between_operations_first():
    blocks = {block.name: block for block in explained(11.5).blocks}
    assert blocks["between operations"].measured_s == 1.0 and blocks["MLP"].measured_s == 3.0
    blocks = {block.name: block for block in explained(9.0).blocks}
    assert blocks["between operations"].measured_s == 0.0
    assert blocks["MLP"].measured_s == pytest.approx(3.0 * 9.0 / 10.5)


def test_a_trace_of_another_program_is_refused():
    others = Operations({}, {"fusion.9": "add"}, frozenset())
    fewer = dataclasses.replace(KNOWN, always=frozenset(["dot.1", "fusion.9"]))
    check_program(TRACE, dataclasses.replace(KNOWN, always=frozenset(["dot.1", "exp.1"])))
    for known, words in ((others, "0% of its"), (fewer, "1 of the 2 that this step always runs")):
        with pytest.raises(TraceError, match=rf"trace is of another program: .*{words}"):
            check_program(TRACE, known)


def test_a_trace_that_says_it_is_of_another_batch_is_refused():
    check_facts(record(12.0), {"batch": "2", "model": "tiny"})
    with pytest.raises(TraceError, match="batch of the trace is 4, and that of the step 2; give"):
        check_facts(record(12.0), {"batch": "4", "model": "tiny"})


def words(explanation, name, platform="cpu"):
    (block,) = [block for block in explanation.blocks if block.name == name]
    return remedy(Evidence(block, explanation.record, platform))


def test_a_remedy_is_named_by_its_evidence():
    assert "4,000 ms of it copy arrays" in words(explained(), "attention")
    assert "copy.1" in words(explained(), "attention")
    assert "2 rows far below" in words(explained(), "MLP")
    assert "--weight_dtype=float32" in words(explained(weight_dtype="bfloat16"), "MLP")
    widening = dataclasses.replace(KNOWN, opcodes={**KNOWN.opcodes, "dot.1": "convert"})
    found = explain(record(12.0, weight_dtype="int8"), TRACE, widening, COUNTS, PEAKS)
    assert "a large part of it widens int8 weights" in words(found, "MLP")
    unpacked = {"weights_unpacked": 1e9}
    assert "--weight_dtype=int8" in words(explained(bytes_per_chip=unpacked), "MLP", "gpu")
    assert "--devices=1" in words(explained(), "all-reduce")
    assert "--collectives=overlapped" in words(explained(), "all-reduce", "tpu")
    assert "CUDA graphs" in words(explained(), "between operations", "gpu")
    assert words(explained(), "norms") == "no remedy is known here"
    assert words(explained(batch=64), "MLP") == "no remedy is known here"
    assert words(explained(), "query/key/value") == ""


def test_every_remedy_is_for_blocks_that_there_are():
    names = {name for each in REMEDIES for name in each.blocks}
    assert {"MLP", "attention", "all-reduce", "host"} <= names
    assert names <= {*BLOCKS, *COLLECTIVES.values(), LAUNCHES, HOST}


def test_a_table_has_the_blocks_in_order_and_the_step_last():
    whole = document(explained())
    rows = table(whole).rows
    assert rows[0][:3] == ["attention", "5,000", "41.7%"] and rows[0][4] == "4,700"
    assert rows[-1][0] == "step" and rows[-1][1] == "12,000"
    said = " ".join(text(whole).split())
    assert "batch 2, context 8" in said and "95.8% is in blocks" in said
    assert "attention, 4,700 ms over its floor: 4,000 ms of it copy arrays" in said


def test_what_is_said_against_a_floor_is_said_of_an_explained_step():
    whole = document(explained(status="cache_resident", message="its bytes may stay there"))
    assert "cache_resident: its bytes may stay there" in text(whole)


def test_bars_lead_from_the_floor_to_the_measured_step(tmp_path):
    whole = document(explained())
    bars = bars_of(whole, 12.0)
    assert (bars[0].name, bars[0].end) == ("floor", 2200.0)
    assert bars[-1].name == "measured" and bars[-2].end == pytest.approx(bars[-1].end)
    assert all(bar.start == before.end for before, bar in itertools.pairwise(bars[:-1]))
    # Then what no block has, and what is too small for a bar of its own.
    assert [bar.name for bar in bars[-3:-1]] == ["unattributed", "query/key/value"]
    gaps = [bar.end - bar.start for bar in bars[2:-3]]
    assert gaps == sorted(gaps, reverse=True)
    figure = waterfall(whole, tmp_path / "waterfall.png")
    said = " ".join(each.get_text() for each in figure.texts)
    for each in ("floor", "tiny", "float32", "on cpu", "batch 2", "GB/s", "copy arrays"):
        assert each in said
    assert figure.axes[0].get_xlabel() == "time of a step (ms)"
    assert (tmp_path / "waterfall.png").stat().st_size > 0
