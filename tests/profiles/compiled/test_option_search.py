"""A search over compiler options: scores, which sets are joined, what is kept, and its words."""

import dataclasses
import json
from types import SimpleNamespace

import pytest

from profiles.compiled import option_search
from profiles.compiled.findings import Finding
from profiles.compiled.option_search import (
    Outcome,
    Search,
    case_of,
    kept_outcomes,
    score,
    search,
)
from profiles.compiled.option_sets import CANDIDATES, DEFAULT, OptionSet, parse_sets, read_sets
from profiles.compiled.options_table import PAGE_HEAD, _page_row, search_document, table
from profiles.floor.bound import Floor
from profiles.report.record import Record
from sharding.error_types import FloorlineError, UsageError

A, B, C, D = (OptionSet(((name, "1"),)) for name in "abcd")


def outcome(options: OptionSet, cost_s: float, **more) -> Outcome:
    findings = [{"kind": "not_overlapped", "message": "a sum", "cost_s": cost_s}]
    sizes = {"bytes": 110.0, "floor_bytes": 100.0, "temporary_bytes": 7, "alone": 2}
    fields = {"floor_s": 1.0, "cost_s": cost_s, "findings": findings} | sizes | more
    return Outcome(set=options.as_dict(), status="ok", **fields)


def planted(costs: dict[str, float], seen: list[str] | None = None):
    """Outcomes by the names in a set, sorted; a set that is not among them is refused."""

    def outcome_of(options: OptionSet) -> Outcome:
        names = "".join(sorted(options.as_dict()))
        if seen is not None:
            seen.append(names)
        if names not in costs:
            message = f"No such compile option: '{names}'"
            return Outcome(set=options.as_dict(), status="unsupported", message=message)
        return outcome(options, costs[names])

    return outcome_of


def test_sets_that_help_alone_are_joined_while_the_score_falls():
    seen = []
    costs = {"": 1.0, "a": 0.8, "b": 0.5, "c": 1.0, "d": 0.9, "ab": 0.7, "bd": 0.4}
    found = search([A, B, C, D], planted(costs, seen))
    assert seen == ["", "a", "b", "c", "d", "ab", "bd"]  # the best first; c does not help
    assert found.best.set == {"b": "1", "d": "1"}
    assert [one.cost_s for one in found.ordered] == sorted(costs.values())


def test_a_gain_below_a_thousandth_of_the_floor_is_none():
    found = search([A, B], planted({"": 1.0, "a": 0.9995, "b": 1.2}))
    assert found.best is found.default and found.best.options == DEFAULT
    assert "no set lowers the cost" in table(found)


def test_an_unknown_option_or_one_that_the_compiler_dies_of_is_a_line_and_the_rest_goes_on():
    def outcome_of(options):
        if options == C:
            return Outcome(set=C.as_dict(), status="unsupported", message="compiler ended by 11")
        return planted({"": 1.0, "b": 0.5})(options)

    found = search([A, C, B], outcome_of)
    assert found.best.set == {"b": "1"}
    text = " ".join(table(found).split())
    assert "unsupported; No such compile option: 'a'" in text
    assert "unsupported; compiler ended by 11" in text
    assert "not timed" in text


def test_without_a_program_of_the_engines_own_options_there_is_no_search():
    with pytest.raises(FloorlineError, match="engine's options is unsupported; No such"):
        search([A], planted({"a": 0.5}))


def test_sets_with_two_values_of_an_option_are_not_joined():
    other = OptionSet((("a", "2"),))
    assert A.joined(other) is None and A.joined(A) is None
    assert A.joined(B) == OptionSet((("a", "1"), ("b", "1")))
    seen = []
    search([A, other], lambda one: seen.append(one) or outcome(one, 1.0 - 0.1 * len(seen)))
    assert seen == [DEFAULT, A, other]


# Scores -------------------------------------------------------------------------------------------


def compiled_pass(monkeypatch, overlaps: dict[str, float], findings=()):
    """A compiled step whose collectives, each run beside something, take so many seconds."""
    listed = [SimpleNamespace(overlap=how, count=2, s=each / 2) for how, each in overlaps.items()]

    class Times:
        def __init__(self, estimator, collectives):
            pass

        def seconds(self, one):
            return one.s

    monkeypatch.setattr(option_search, "CollectiveTimes", Times)
    sizes = {"weights_resident": 1.0, "kv_resident": 1.0, "weights_read": 60.0, "kv_read": 30.0}
    sizes |= {"kv_written": 10.0, "capacity": 1e3}
    collectives = [{"overlap": one.overlap, "count": one.count} for one in listed]
    compiled = {"argument_bytes": 2, "temporary_bytes": 5, "cache_aliased": True, "compile_s": 1.0,
                "copies": [{"bytes": 10, "count": 2}], "collectives": collectives}  # fmt: skip
    record = Record(
        model="tiny", status="ok", devices=1, chips=1, floor_s=1.0, compiled=compiled,
        bytes_per_chip=sizes, findings=[dataclasses.asdict(one) for one in findings],
        collectives_as_expected=True,
    )  # fmt: skip
    return SimpleNamespace(
        as_record=lambda: record,
        compiled=SimpleNamespace(collectives=listed, temporary_bytes=5, compile_s=1.0),
        estimator=None,
        findings=findings,
        step=SimpleNamespace(floor=Floor(0.6, 0.4, 0.8)),
    )


def test_a_score_is_the_cost_of_all_findings_and_bytes_are_the_floors_and_what_copies_add(
    monkeypatch,
):
    found = [planted_finding("copy", 0.25), planted_finding("not_overlapped", 0.5)]
    one = score(compiled_pass(monkeypatch, {"alone": 0.5, "beside work": 0.9}, found), A)
    assert (one.set, one.cost_s, one.unhidden_s) == ({"a": "1"}, 0.75, 0.0)
    assert (one.bytes, one.floor_bytes, one.temporary_bytes) == (120.0, 100.0, 5)
    assert (one.alone, one.collectives) == (2, 4)
    assert one.kinds() == {"copy": 0.25, "not_overlapped": 0.5}


def test_transfers_are_hidden_by_no_more_work_than_there_is(monkeypatch):
    """A ring that runs beside a matmul and takes longer than all work gains nothing by it."""
    one = score(compiled_pass(monkeypatch, {"beside a product": 1.7}), A)
    assert one.unhidden_s == pytest.approx(0.7) and one.cost_s == pytest.approx(0.7)
    assert one.kinds() == {"unhidden": one.unhidden_s}


def test_a_fetch_of_weights_hides_no_more_than_reading_memory_takes(monkeypatch):
    """The sums of a prompt take longer than the weights of a layer."""
    one = score(compiled_pass(monkeypatch, {"beside a prefetch": 1.2, "alone": 3.0}), A)
    assert one.cost_s == pytest.approx(0.2)  # memory takes a second


def planted_finding(kind: str, cost_s: float):
    return Finding(kind, "", cost_s)


# What is kept, and records ------------------------------------------------------------------------


def test_a_search_goes_on_where_it_stopped(monkeypatch, tmp_path):
    """What the compiler died of is compiled again; other versions or steps keep nothing."""
    seen, path = [], tmp_path / "options.jsonl"
    died = Outcome(set=C.as_dict(), status="unsupported", message="compiler ended by signal 11")
    monkeypatch.setattr(
        option_search, "score", lambda _, one: died if one == C else outcome(one, 1.0)
    )

    def again(case="step", versions=None):
        found = kept_outcomes(path, case, versions or {"jax": "1"}, seen.append)
        for one in (DEFAULT, A, C):
            found(one)
        return found(A)

    assert again() == outcome(A, 1.0)
    with open(path, "a") as lines:
        lines.write('{"case": "torn')
    assert again() == outcome(A, 1.0) and seen == [DEFAULT, A, C, C]
    path.unlink()
    again(), again("another"), again(versions={"jax": "2"})
    assert seen.count(A) == 4


def test_the_document_has_the_best_first_and_reads_as_json():
    found = Search((outcome(DEFAULT, 1.0), outcome(A, 0.5), outcome(B, 2.0)))
    fields = json.loads(json.dumps(search_document(found)))
    assert fields["best"] == {"a": "1"}
    assert [one["set"] for one in fields["options"]] == [{"a": "1"}, {}, {"b": "1"}]
    for name in ("set", "findings", "bytes", "temporary_bytes", "alone"):
        assert name in fields["options"][0]
    assert Outcome(**fields["options"][0]) == found.outcomes[1]


def test_a_row_of_the_page_has_the_engines_options_beside_the_best():
    found = Search((outcome(DEFAULT, 1e-3), outcome(A, 5e-4, floor_s=1e-3, alone=1)))
    fields = {"model": "tiny", "topology": "v5e:2x4", "layout": "l", "attention": "heads"}
    fields |= {"weight_dtype": "int8", "batch": 8, "tokens_per_sequence": 1, "context": 64}
    point = Record(**fields, mesh={"x": 1, "y": 8})
    row = dict(zip(PAGE_HEAD, _page_row({"points": [point]} | search_document(found)), strict=True))
    assert (row["cost ms"], row["cost ms of the best"]) == ("1.00", "0.500")
    assert (row["collectives alone"], row["alone of the best"]) == ("2", "1")
    assert (row["sets"], row["changed the program"], row["best set"]) == ("1", "1", "`a=1`")


# Sets ---------------------------------------------------------------------------------------------


def test_sets_are_read_from_text():
    found = parse_sets("a=1,b=x=y;a=")
    assert found == [OptionSet((("a", "1"), ("b", "x=y"))), OptionSet((("a", ""),))]
    assert str(found[0]) == "a=1,b=x=y" and str(DEFAULT) == "default"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "in which '' is no NAME=VALUE"),
        ("a=1;;b=2", "in which '' is no NAME=VALUE"),
        ("a=1,b", "in which 'b' is no NAME=VALUE"),
        ("--a=1", "in which '--a' is no NAME=VALUE"),
        ("a=1,a=2", "gives a twice in one set"),
    ],
)
def test_a_malformed_set_is_refused(text, words):
    with pytest.raises(UsageError, match=words):
        parse_sets(text)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "cannot be read"),
        ("[]", "has none for tpu"),
        ('{"tpu": []}', "has none for tpu"),
        ('{"tpu": [{"set": {"a": true}}]}', "is no set"),
        ('{"tpu": [{"options": {"a": "1"}}]}', "is no set"),
    ],
)
def test_a_malformed_file_of_candidates_is_refused(tmp_path, content, words):
    path = tmp_path / "candidates.json"
    path.write_text(content)
    with pytest.raises(UsageError, match=words):
        read_sets(path, "tpu")


@pytest.mark.parametrize("compiler", ["tpu", "gpu"])
def test_every_candidate_says_what_it_does_and_whence_it_is(compiler):
    sets = read_sets(CANDIDATES, compiler)
    assert len(sets) > 5
    for one in sets:
        assert one.does and one.source
        assert all(name.startswith("xla_") for name, _ in one.options)


def test_a_step_of_other_layers_or_figures_is_another_case():
    step = Record(context=2048, floor_s=0.001, expected_s=0.002)
    cases = {
        case_of("llama", step, 1),
        case_of("llama", step, 2),
        case_of("llama", step | Record(context=2047), 1),
        case_of("llama", step | Record(floor_s=0.003), 1),
        case_of("llama", step | Record(expected_s=0.003), 1),
    }
    assert len(cases) == 5


def test_sets_are_equal_in_any_order_and_without_blanks():
    assert parse_sets("a=1,b=2;b=2,a=1;a = 1, b= 2") == [OptionSet((("a", "1"), ("b", "2")))]
