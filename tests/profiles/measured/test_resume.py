"""Sweeps that go on where they stopped: what is taken over, what is measured, what is refused."""

import dataclasses
import json

import pytest

from decode.load import ModelSource, find_source
from model.catalog import find_model
from model.dtypes import FLOAT32
from profiles.measured import bandwidth, resume
from profiles.measured import sweep as sweeping
from profiles.measured.prompt_timing import RepeatedPrompt
from profiles.measured.resume import MIN_ROUNDS, earlier_run
from profiles.measured.sweep import Sweep, SweepResult, run
from profiles.measured.timing import RepeatedStep
from profiles.report.document import document
from profiles.report.files import write_json
from profiles.report.record import Record
from sharding.catalog import LAYOUTS
from sharding.error_types import UsageError
from sharding.mesh import parse_mesh
from tests.gguf_samples import write_tiny_gguf

MIXTURE = dataclasses.replace(find_model("tiny"), layers=1, experts=4, experts_per_token=2)
STARTED = "2026-01-02T03:04:05+00:00"


def sweep(**changes) -> Sweep:
    """Decode steps and prompts of a mixture on one device and on two: two rows on each."""
    settings = {
        "source": ModelSource(MIXTURE, None, None),
        "layouts": [LAYOUTS["weight_stationary_1d"]],
        "shapes": [parse_mesh("1"), parse_mesh("2")],
        "batches": [2],
        "contexts": [16],
        "prompt_lengths": [32],
        "dtype_sets": [FLOAT32],
        "seconds": 0.0,
        "inspect": lambda row: Record(compiled={"cache_aliased": str(row)}),
    }
    return Sweep(**settings | changes)


@pytest.fixture(autouse=True)
def quick_meter(monkeypatch):
    """Bandwidths too good, of little read: where they are not what is tested."""
    monkeypatch.setattr(bandwidth, "READ_BYTES", 1 << 22)
    monkeypatch.setattr(bandwidth, "MATMUL_SIZE", 128)


@pytest.fixture(scope="module")
def rounds():
    """The results after every round."""
    kept: list[SweepResult] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bandwidth, "READ_BYTES", 1 << 22)
        patch.setattr(bandwidth, "MATMUL_SIZE", 128)
        run(sweep(), lambda text: None, kept.append)
    assert len(kept) == 2 * MIN_ROUNDS
    return kept


def write(folder, result: SweepResult, wanted: Sweep, **changes) -> None:
    head = {"device_kind": "cpu", "started": STARTED, "settings": wanted.settings()}
    more = {"complete": False, "prompts": result.prompts}
    found = document([], result.points, bandwidth=result.bandwidth, **head, **more) | changes
    write_json(folder / "profile.json", found)


def texts(records) -> list[str]:
    """Of each record what was measured and compiled, as JSON has it."""
    fields = "step_s", "steps_per_sample", "experts_touched", "compiled", "status"
    return [json.dumps([record.to_json().get(f) for f in fields]) for record in records]


@pytest.fixture
def measured(monkeypatch):
    """The rows that are compiled, in their order."""
    found = []
    for kind in (RepeatedStep, RepeatedPrompt):
        lower = kind.lower
        monkeypatch.setattr(kind, "lower", lambda s, f=lower: found.append(str(s)) or f(s))
    return found


def test_a_sweep_without_any_finished_row_has_written_no_traces(rounds, tmp_path):
    wanted = sweep()
    for number in (0, MIN_ROUNDS - 2, MIN_ROUNDS - 1):
        write(tmp_path, rounds[number], wanted)
        earlier = earlier_run(tmp_path, wanted.settings(), "cpu")
        assert earlier.traced == (number == MIN_ROUNDS - 1)


def test_finished_rows_are_taken_over_and_the_others_measured(rounds, tmp_path, measured):
    wanted = sweep()
    write(tmp_path, rounds[MIN_ROUNDS + 1], wanted)  # the second mesh has two rounds
    said = []
    earlier = earlier_run(tmp_path, wanted.settings(), "cpu")
    again = run(wanted, said.append, earlier=earlier)
    assert f"2 of 4 rows are kept from {STARTED}; going on" in said
    assert measured == ["batch 2, context 16", "batch 2, prompt 32"]  # of the second mesh alone
    before = rounds[MIN_ROUNDS - 1]
    assert len(before.points) == 2 and len(before.prompts) == 1
    assert texts(again.points[:2]) == texts(before.points)
    assert texts(again.prompts[:1]) == texts(before.prompts)
    assert [len(p.step_s["samples"]) for p in again.points] == [MIN_ROUNDS] * 4
    assert all("compiled" in point.to_json() for point in again.points if point.phase == "decode")


def test_floors_of_kept_rows_are_of_the_best_rates_of_both_runs(rounds, tmp_path):
    wanted = sweep()
    write(tmp_path, rounds[MIN_ROUNDS], wanted)
    kernels = {"sum": [1e15], "matmul": [1.0]}
    earlier = earlier_run(tmp_path, wanted.settings(), "cpu")
    earlier.rates["1x1x2"] = kernels
    again = run(wanted, lambda text: None, earlier=earlier)
    assert again.bandwidth["bytes_per_s"] == 1e15
    for point in again.points:
        counted = point.bytes_per_chip["weights_read"]
        assert point.weight_floor_s == pytest.approx(counted / 1e15)
    assert len(again.bandwidth["samples"]["1x1x1"]["sum"]) == 3 + MIN_ROUNDS


def test_a_sweep_of_which_every_row_is_finished_loads_nothing(rounds, tmp_path, monkeypatch):
    wanted = sweep(price=3.0)  # which rows and samples there are does not depend on it
    write(tmp_path, rounds[-1], wanted)
    monkeypatch.setattr(ModelSource, "engine", lambda *_, **__: pytest.fail("weights were made"))
    earlier = earlier_run(tmp_path, wanted.settings(), "cpu")
    again = run(wanted, lambda text: None, earlier=earlier)
    assert texts(again.points) == texts(rounds[-1].points)
    assert all(point.usd_per_million_tokens > 0 for point in again.points)
    assert not any("ended early" in (point.message or "") for point in again.points)


def test_a_row_that_failed_is_finished_and_the_sweep_goes_on_after_it(tmp_path, monkeypatch):
    compile_step, tried = RepeatedStep.compile, []

    def failing(self):
        tried.append(self.batch)
        if self.batch == 2:
            raise MemoryError("none left")
        if self.batch == 4 and len(tried) > stop:
            raise KeyboardInterrupt
        compile_step(self)

    monkeypatch.setattr(RepeatedStep, "compile", failing)
    sizes = dict(shapes=[parse_mesh("1")], batches=[10**9, 2, 4], prompt_lengths=())
    wanted, kept, stop = sweep(**sizes), [], 3
    with pytest.raises(sweeping.Interrupted):
        run(wanted, lambda text: None, kept.append)
    failed = ["does_not_fit", "out_of_memory"]
    assert [point.status for point in kept[-1].points][:2] == failed
    write(tmp_path, kept[-1], wanted)
    tried, stop = [], 100
    earlier = earlier_run(tmp_path, wanted.settings(), "cpu")
    again = run(wanted, lambda text: None, earlier=earlier)
    assert [point.status for point in again.points][:2] == failed
    assert again.points[1].message == "MemoryError: none left"
    assert len(again.points[2].step_s["samples"]) == MIN_ROUNDS
    assert set(tried) == {4}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"settings": {"model": "other"}}, "whose run has model other, not tiny; give another"),
        ({"device_kind": "TPU v5e"}, "whose run has device kind TPU v5e, not cpu; give another"),
        ({"versions": {"jax": "0.1"}}, "whose run has jax 0.1, not "),
        ({"complete": True, "device_kind": "TPU v5e"}, "whose run has device kind TPU v5e, not"),
        ({"settings": None}, "whose unfinished sweep has batch 1, not 2; go on with its command"),
        ({"points": 3}, "profile.json is damaged (TypeError"),
        ({"versions": None}, "profile.json is damaged (AttributeError"),
    ],
)
def test_what_must_not_be_overwritten_is_refused_in_one_line(rounds, tmp_path, changes, said):
    wanted = sweep()
    if changes.get("settings", 1) is None:
        changes = {"settings": sweep(batches=[1]).settings()}
    write(tmp_path, rounds[0], wanted, **changes)
    before = (tmp_path / "profile.json").read_bytes()
    with pytest.raises(UsageError) as refusal:
        earlier_run(tmp_path, wanted.settings(), "cpu")
    assert said in str(refusal.value) and "\n" not in str(refusal.value)
    assert str(tmp_path) in str(refusal.value)
    assert (tmp_path / "profile.json").read_bytes() == before


@pytest.mark.parametrize("text", ["", '{"schema": 1', "[]", "3", '{"points": []}'])
def test_a_damaged_document_is_refused_in_one_line(tmp_path, text):
    (tmp_path / "profile.json").write_text(text)
    with pytest.raises(UsageError, match=r"profile\.json is damaged \(.*\); remove it, or give"):
        earlier_run(tmp_path, sweep().settings(), "cpu")


def test_a_finished_sweep_is_measured_anew_and_so_is_an_empty_folder(rounds, tmp_path):
    wanted = sweep()
    assert earlier_run(tmp_path, wanted.settings(), "cpu") is None
    write(tmp_path, rounds[-1], wanted, complete=True)
    assert earlier_run(tmp_path, wanted.settings(), "cpu") is None
    assert earlier_run(tmp_path, sweep(batches=[1]).settings(), "cpu") is None


def test_all_that_decides_samples_is_a_setting_and_nothing_else():
    same = [{"seconds": 9.0}, {"price": 1.0}, {"bandwidth": 1e9}, {"peak_flops": 1e9}]
    for changes in same:
        assert sweep(**changes).settings() == sweep().settings(), changes
    others = [
        {"slots": 512}, {"chunk": 16}, {"contexts": [17]}, {"prompt_lengths": [64]},
        {"prompt_batches": [1]}, {"auto_weight_layout": True}, {"shapes": [parse_mesh("1")]},
        {"layouts": [LAYOUTS["weight_stationary_2d"]]},
        {"dtype_sets": [dataclasses.replace(FLOAT32, cache="bfloat16")]},
        {"source": ModelSource(find_model("tiny"), None, None)},
    ]  # fmt: skip
    for changes in others:
        assert sweep(**changes).settings() != sweep().settings(), changes
    assert resume.FAILED == ("does_not_fit", "out_of_memory", "unsupported")


def test_a_model_in_several_files_is_known_by_the_size_of_all(tmp_path):
    write_tiny_gguf(tmp_path / "m.gguf", layers=1, tensors_per_part=6)
    parts = sorted(tmp_path.iterdir())
    settings = sweep(source=find_source(str(parts[0]))).settings()
    size = sum(part.stat().st_size for part in parts)
    assert len(parts) == 2 and settings["weights"] == f"{parts[0].name}, {size} bytes"
