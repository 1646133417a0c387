"""Draw how batch, context, chips and layout decide a decode step's time and a token's cost.

Needs neither the model's weights nor the chips: floors and expected times are estimates. Writes one
picture for each name in --figures:
  latency        step time against batch: weights, KV cache, compute, the floor, the expected time
  cost           the same per token, with the limit that large batches approach
  contexts       both for every context, and the batch at which compute takes over at each
  chips          step time against chips by layout, to the point where communication dominates
  pareto         cost against latency over batches and slices, with the Pareto front
  sparsity       the batch from which a step is bound by compute, for dense and sparse models
  communication  bytes that each layout sends in a prefill, after Pope et al. 2022, figure 3
and, if they are named, of whole systems:
  pipeline       latency and memory of a pipeline against its stages
  racks          how long tokens travel to a mixture's experts over one rack and more
  training       how far training that costs as much as serving goes past the compute-optimal point
  mfu            the most that MFU can be, against context
and of all published services at once:
  engines        what serving engines reach of the floor, by chip and model

latency, cost, chips and pareto use the first context of --context; contexts uses all of them.
Curves against batch go from the first to the last batch of --batch; the document that --json writes
has a record for each of these batches, and the numbers of all curves under curves.

Examples:
  python scripts/figures.py --model=llama3-70b --topology=v5e:4x4
  python scripts/figures.py --model=deepseek-v3-even --topology=h200:8 --weight_dtype=fp8 \\
      --context=4096
  python scripts/figures.py --model=qwen3-235b-a22b --topology=v5p:2x2x4 --figures=latency,sparsity
  python scripts/figures.py --model=llama3-8b --topology=v5e:2x2 --figures=pareto \\
      --slices=v5e:2x2,v6e:2x2,h100:1 --json=-
  python scripts/figures.py --model=deepseek-v3-even --topology=gb200:72 --weight_dtype=fp8 \\
      --figures=pipeline,racks,training,mfu --chips_batch=2048
  python scripts/figures.py --figures=engines
"""

import datetime
import sys
from pathlib import Path

import _array_flags
import _common
import _slice_flags
from absl import flags

FIGURES = ("latency", "cost", "contexts", "chips", "pareto", "sparsity", "communication")
SYSTEMS = ("pipeline", "racks", "training", "mfu")
ENGINES = "engines"
_TOPOLOGY = flags.DEFINE_string("topology", "v5e:4x4", "Chip and shape of a slice.")
_MESH = flags.DEFINE_string(
    "mesh", None, "Sizes of mesh axes x, y and z on it; by default those expected to be fastest."
)
_BATCH = flags.DEFINE_list(
    "batch", ["4096"], "Rising list of batches; one number stands for powers of two up to it."
)
_CONTEXT = flags.DEFINE_list(
    "context",
    ["1024", "0", "2048", "8192", "32768"],
    "Tokens in each sequence's cache, a list. Figures of one context use the first.",
)
_CHIPS_BATCH = flags.DEFINE_integer("chips_batch", 64, "Batch of chips, pipeline and racks.png.", 1)
_MAX_CHIPS = flags.DEFINE_integer(
    "max_chips", 256, "Chips of the largest slice in chips.png and pareto.png.", 1
)
_SLICES = flags.DEFINE_list(
    "slices",
    None,
    "Slices of pareto.png, of any chips, up to seven; by default the first five of --topology's "
    "chip on which the model fits.",
)
_FIGURES = flags.DEFINE_list("figures", list(FIGURES), "Names of the figures to draw.")
_OUTPUT_DIR = flags.DEFINE(_common.PATH, "output_dir", "out/figures", "Folder for the PNG files.")
_array_flags.define_step_flags()
_array_flags.leave_open()

if __name__ == "__main__":
    for name in _common.OF_SHAPES:
        flags.declare_key_flag(name)
    for module in (_array_flags, _slice_flags):
        flags.adopt_module_key_flags(module)

with _common.importing(__name__):
    import _dtypes
    import _layouts
    import _slices

    from profiles.figures import curve_figures, league, slice_figures, system_figures
    from profiles.figures.document import curves_document
    from profiles.figures.study import Study, StudyOptions
    from profiles.floor.deployment import Deployment, Model
    from profiles.published import league as published_league
    from profiles.published.league_table import published_services
    from profiles.report.files import check_writable, write_json
    from profiles.report.numbers import several
    from sharding.error_types import UsageError
    from sharding.mesh import parse_mesh


def main() -> None:
    """Draws the figures that the flags name, and writes the document."""
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    names = _names()
    output = Path(_OUTPUT_DIR.value)
    if names == [ENGINES]:
        _check_engines_alone()
        check_writable(output)
        _draw_league(output / f"{ENGINES}.png")
        return
    options = _options()
    check_writable(output)
    _common.check_json()
    study = Study(options)
    data = {}
    for name in names:
        path = output / f"{name}.png"
        if name == ENGINES:
            _draw_league(path)
            continue
        if name in ("latency", "cost", "contexts"):
            getattr(curve_figures, name)(study, path)
        else:
            data[name] = study.data(name)
            if data[name] is None:
                _common.say(f"skipped {path}: {_why_not(name, options.deployment)}")
                continue
            drawing = system_figures if name in SYSTEMS else slice_figures
            getattr(drawing, name)(study, data[name], path)
        _common.say(f"wrote {path}")
    _common.say(f"costs: {_slices.price_words(options.deployment.slice.chip)}")
    if _common.JSON.value:
        drawn = [name for name in names if name != ENGINES]
        write_json(_common.JSON.value, curves_document(sys.argv, started, study, drawn, data))


def _check_engines_alone() -> None:
    """Refuses flags that change nothing in a picture of published services.

    Raises:
      UsageError: one of them is given.
    """
    if _common.JSON.value:
        raise UsageError(
            f"--json is {_common.JSON.value}, but {ENGINES} alone have no document; use "
            "scripts/reproduce_published.py --json, which has every run"
        )
    needed = _FIGURES.name, _OUTPUT_DIR.name, _common.JSON.name, _common.VERBOSE.name
    others = [name for name in flags.FLAGS if name not in needed]
    _common.refuse(others, f"{ENGINES} alone are of published services")


def _draw_league(path: Path) -> None:
    """Draws published services against their floors."""
    bars = [
        league.Bar(
            ", ".join(entry.names) + ", lengths unknown" * (not entry.lengths_known),
            [row.fraction for row in entry.rows],
            entry.of_floor,
            entry.of_expected,
            entry.bound,
        )
        for entry in published_league.league(published_services())
    ]
    league.league_bars(bars, path)
    _common.say(f"wrote {path}")


def _why_not(figure: str, deployment: Deployment) -> str:
    chip = deployment.slice.chip
    if figure == "racks" and not deployment.model.experts:
        return f"{deployment.model.name} has no experts"
    if figure in SYSTEMS:
        return f"rates of a fabric and of a network of {chip.name} are not both known"
    if deployment.slice.devices == 1:
        return f"{deployment.slice} is one device, which sends nothing"
    name = deployment.model.name
    return f"{name} is known by its sizes alone, not by the arrays that layouts divide"


def _names() -> list[str]:
    names = list(dict.fromkeys(_FIGURES.value))
    for name in names or [""]:
        if name not in (*FIGURES, *SYSTEMS, ENGINES):
            raise UsageError(
                f"--figures is {name!r}; use {', '.join((*FIGURES, *SYSTEMS, ENGINES))}"
            )
    return names


def _options() -> StudyOptions:
    """The options of the figures, from the flags."""
    if _array_flags.PREFILL_LAYOUT.value:
        raise UsageError(
            f"--prefill_layout is {_array_flags.PREFILL_LAYOUT.value}, but the curves are of "
            "decode steps, and communication.png has all layouts of prompts; leave it out"
        )
    names = _layouts.only_names()
    _layouts.check_layouts()
    slices = None
    if _SLICES.value is not None:
        slices = tuple(dict.fromkeys(map(_slices.slice, _SLICES.value)))
        if not 0 < len(slices) <= 7:
            raise UsageError(f"--slices has {several(len(slices), 'slice')}; use one to seven")
    slice, model = _slices.slice(_TOPOLOGY.value), _slices.model()
    batches, contexts = _batches(), _contexts(model)
    _slices.check_given((slice, *(slices or ())), "--topology and --slices")
    _layouts.check_divides(model)
    dtypes = _dtypes.dtypes(here=False, counted=True, estimated=True)
    return StudyOptions(
        deployment=_slices.deployment(model, slice, dtypes),
        names=names,
        mesh=parse_mesh(_MESH.value) if _MESH.value else None,
        batches=batches,
        contexts=contexts,
        chips_batch=_CHIPS_BATCH.value,
        max_chips=_MAX_CHIPS.value,
        slices=slices,
        on_slice=lambda other: _slices.deployment(model, other, dtypes),
    )


def _batches() -> tuple[int, ...]:
    batches = _common.integers("batch", _BATCH.value)
    if len(batches) == 1:
        batches = [*(1 << power for power in range(batches[0].bit_length())), batches[0]]
    return tuple(sorted(set(batches)))


def _contexts(model: Model) -> tuple[int, ...]:
    """The contexts in the order of the flag; 0 is an empty cache."""
    text = ",".join(_CONTEXT.value)
    if not _CONTEXT.value or not all(each.strip().isascii() and each.strip().isdigit()
                                     for each in _CONTEXT.value):  # fmt: skip
        raise UsageError(f"--context is {text!r}; use whole numbers, 0 or more, joined by commas")
    contexts = dict.fromkeys(int(each) for each in _CONTEXT.value)
    return tuple(_common.within(model, _CONTEXT, contexts, 1))


if __name__ == "__main__":
    _common.start(main, _common.OF_SHAPES)
