"""What searches over compiler options found: one as a table, and the recorded ones on the page.

`python -m profiles.compiled.options_table` writes the page's table; `scripts/search_options.py`
records the searches.
"""

from profiles.compiled.option_search import Outcome, Search
from profiles.report.document import read_document
from profiles.report.numbers import byte_size, ms
from profiles.report.pages import ROOT, Part
from profiles.report.table import Table

RECORDED = ROOT / "profiles/results/options"
PART = Part("profiles/compiled/README.md", "options", "profiles.compiled.options_table")
HEAD = ("cost ms", "of floor", "alone", "temporaries", "bytes / floor's", "findings, ms", "set")
PAGE_HEAD = (
    "model, weights", "slice, mesh", "layout", "step: batch x tokens", "floor ms", "sets",
    "changed the program", "cost ms", "cost ms of the best", "collectives alone",
    "alone of the best", "best set",
)  # fmt: skip


def search_document(found: Search) -> dict:
    """What a search adds to a run's document: all outcomes, the best first, and the best set."""
    return {
        "options": [outcome.as_record() for outcome in found.ordered],
        "best": dict(found.best.set),
        "default": found.default.as_record(),
    }


def table(found: Search) -> str:
    """The outcomes of a search, the best first, and which set is best."""
    rows = [_row(outcome) for outcome in found.ordered]
    best = found.best
    if best is found.default:
        last = "best: default; no set lowers the cost by 0.1% of the floor"
    else:
        gain = ms(found.default.cost_s - best.cost_s)
        last = f"best: {best.options}, {gain} ms less by what the compiled program shows; not timed"
    return f"{Table(HEAD, rows, align='rrrrrll').terminal()}\n\n{last}"


def _row(outcome: Outcome) -> list[str]:
    if not outcome.ok:
        words = f"{outcome.status}; {outcome.message[:100]}"
        return ["", "", "", "", "", words, str(outcome.options)]
    kinds = (f"{kind.replace('_', ' ')} {ms(cost)}" for kind, cost in outcome.kinds().items())
    return [
        ms(outcome.cost_s),
        f"{outcome.cost_s / outcome.floor_s:.1%}",
        str(outcome.alone),
        byte_size(outcome.temporary_bytes),
        f"{outcome.bytes / outcome.floor_bytes:.3f}",
        ", ".join(kinds) or "none",
        str(outcome.options),
    ]


def recorded() -> list[dict]:
    """The searches' documents."""
    return [read_document(path) for path in sorted(RECORDED.glob("*.json"))]


def page() -> str:
    """A row for each recorded search, in Markdown."""
    rows = [_page_row(found) for found in recorded()]
    versions = {
        ", ".join(f"{name} {found['versions'][name]}" for name in (compiler, "jax"))
        for found in recorded()
        for compiler in ("libtpu", "jax-cuda13-pjrt")
        if compiler in found["versions"]
    }
    said = "; ".join(sorted(versions))
    return f"Compiled by {said}:\n\n{Table(PAGE_HEAD, rows, align='llllrrrrrrrl').markdown()}\n"


def _page_row(found: dict) -> list[str]:
    (point,), default = found["points"], Outcome(**found["default"])
    outcomes = [Outcome(**one) for one in found["options"]]
    best = next(one for one in outcomes if dict(one.set) == found["best"])
    tokens = point.tokens_per_sequence
    work = f"prefill {point.batch} x {tokens:,}" if tokens > 1 else (
        f"decode {point.batch} x {point.context:,}"
    )  # fmt: skip
    changed = sum(one.ok and _shown(one) != _shown(default) for one in outcomes)
    return [
        f"{point.model}, {point.weight_dtype}",
        f"{point.topology}, {'x'.join(map(str, point.mesh.values()))}",
        f"{point.layout}, {point.attention}",
        work,
        ms(default.floor_s),
        str(len(outcomes) - 1),
        str(changed),
        ms(default.cost_s),
        ms(best.cost_s),
        str(default.alone),
        str(best.alone),
        f"`{best.options}`" if best.set else "the engine's",
    ]


def _shown(outcome: Outcome) -> tuple:
    """What a program shows that tells it from another."""
    return outcome.cost_s, outcome.temporary_bytes, outcome.bytes, outcome.collectives


if __name__ == "__main__":
    PART.write(page())
