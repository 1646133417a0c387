"""Published measurements of steps: their data files, and the meaning of their fields.

A case names its model, slice, layout and sizes as the scripts' flags do. A field that the source
does not state is left out; a floor is then the lowest one that is consistent with the source.
Those of services are read here too; their fields are explained in `services.py`.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path

from profiles.chips.slices import parse_slice
from profiles.expected.candidates import AUTO, LayoutNames
from profiles.published.engines import engine_of
from profiles.published.fields import (
    arithmetic,
    check_present,
    integer,
    is_line,
    model_of,
    positive,
    shown,
    stored,
    text,
    texts,
)
from profiles.published.measurement import Measurement, Unusable
from profiles.published.services import REQUIRED as OF_SERVICE
from profiles.published.services import SERVING, ServiceCase, parse_service
from profiles.report.numbers import several
from sharding.error_types import FloorlineError, UsageError
from sharding.mesh import parse_mesh

FILES = "steps.json", "static_batches.json", "services.json"
PHASES = "decode", "prefill", "run", SERVING
_REQUIRED = (
    "source", "locator", "model", "topology", "layout", "weight_dtype", "phase", "batch",
    "published_s",
)  # fmt: skip
_LENGTHS = {"decode": ("prompt_length",), "prefill": ("prompt_length",),
            "run": ("prompt_length", "generated_tokens")}  # fmt: skip
_FORMS = (
    "decode or prefill for a step, or run for a prompt and its answer, with "
    f"{', '.join(name for name in _REQUIRED if name != 'phase')} and lengths; or {SERVING} for a "
    f"service, with {', '.join(OF_SERVICE)}"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case(Measurement):
    """A published measurement of a step, of a prefill, or of a run of both.

    Attributes:
      layout: name of the layout; None where it is not stated.
      attention: what attention is divided by; None where it is not stated.
      batch: number of sequences.
      prompt_length: tokens of each prompt.
      generated_tokens: generated tokens of each sequence.
      context: tokens in the cache before the step, or before the prompt.
      published_s: seconds of a step, of a prefill, or of a run of prefill and all steps.
    """

    layout: str | None
    attention: str | None
    batch: int
    prompt_length: int
    generated_tokens: int
    context: int | None
    published_s: float

    @property
    def names(self) -> tuple[LayoutNames, ...]:
        """Names of all layouts that are consistent with the source."""
        return (LayoutNames(self.layout or AUTO, self.attention or AUTO),)


def shipped_cases() -> tuple[list[Case | ServiceCase], list[Unusable]]:
    """The cases of this project's own files, and those that cannot be used."""
    cases, wrong = [], []
    for name in FILES:
        data = json.loads(resources.files("profiles.published").joinpath(name).read_text())
        read, refused = read_rows(data["cases"])
        cases += read
        wrong += refused + [Unusable(**row) for row in data.get("unusable", ())]
    return cases, wrong


def cases_of(path: str) -> tuple[list[Case | ServiceCase], list[Unusable]]:
    """The cases of a file: a JSON list of them, or an object with a list ``cases``.

    Raises:
      UsageError: there is no such file, or it has no list of cases.
    """
    try:
        data = json.loads(Path(path).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"--cases is {path!r}, which cannot be read: {error}") from None
    rows = data.get("cases") if isinstance(data, dict) else data
    if not isinstance(rows, list) or not rows:
        raise UsageError(
            f"--cases is {path!r}, which holds no list of cases, or an empty one; write "
            'a JSON list of them, or an object {"cases": [...]}'
        )
    return read_rows(rows)


def read_rows(rows: Iterable[object]) -> tuple[list[Case | ServiceCase], list[Unusable]]:
    """The cases in these rows, in their order, and those that cannot be used."""
    cases, wrong, rows = [], [], list(rows)
    for number, row in enumerate(rows, 1):
        try:
            if (first := rows.index(row) + 1) < number:
                raise UsageError(
                    f"case {number} is the same as case {first}, which is counted once; give each "
                    "measurement once"
                )
            cases.append(parse_case(row))
        except (FloorlineError, RecursionError) as error:
            fields = row if isinstance(row, dict) else {}
            stated = (fields.get(name) for name in ("source", "locator"))
            source, locator = (each if each and is_line(each) else "" for each in stated)
            wrong.append(Unusable(source or f"case {number}", locator, str(error)))
    return cases, wrong


def parse_case(row: object) -> Case | ServiceCase:
    """The case in an object of fields; null counts as absent, and unknown fields are ignored.

    Raises:
      UsageError: a field is missing, or its value is not known.
    """
    if not isinstance(row, Mapping):
        raise UsageError(
            f"case is {shown(row)}; write an object of {', '.join(_REQUIRED[:-1])} and more"
        )
    fields = {name: value for name, value in row.items() if value is not None}
    phase = fields.get("phase")
    if phase is None:
        raise UsageError(f"case is without phase; give {_FORMS}")
    if phase not in PHASES:
        raise UsageError(f"phase is {shown(phase)}; use one of {', '.join(PHASES)}")
    if phase == SERVING:
        return parse_service(fields)
    _check_fields(fields | ({"layout": AUTO} if row.get("layout", AUTO) is None else {}))
    return _parse_step(fields)


def _parse_step(fields: Mapping[str, object]) -> Case:
    texts_of = {name: text(fields, name) for name in ("source", "locator", "fit", "held_out")}
    cache, mesh = text(fields, "kv_dtype"), text(fields, "mesh")
    case = Case(
        **texts_of,
        model=model_of(text(fields, "model")),
        slice=parse_slice(text(fields, "topology")),
        engine=engine_of(text(fields, "engine"), texts_of["source"]),
        layout=_open(text(fields, "layout")),
        attention=_open(text(fields, "attention")),
        mesh=parse_mesh(mesh) if mesh else None,
        dtype=arithmetic(text(fields, "dtype")),
        weights=stored(text(fields, "weight_dtype"), "weight_dtype"),
        stated_cache=stored(cache, "kv_dtype") if cache else None,
        phase=fields["phase"],
        batch=integer(fields, "batch", 1),
        prompt_length=integer(fields, "prompt_length", 0) or 0,
        generated_tokens=integer(fields, "generated_tokens", 0) or 0,
        context=integer(fields, "context", 0),
        published_s=positive(fields["published_s"], "published_s", "seconds"),
        assumed=texts(fields.get("assumed", ()), "assumed"),
    )
    if case.phase != "decode" and case.prompt_length < 2:
        raise UsageError(f"prompt_length is {case.prompt_length}; a prompt has 2 tokens or more")
    if mesh and math.prod(case.mesh.values()) != case.slice.devices:
        raise UsageError(
            f"mesh is {mesh}, but {case.slice} has {several(case.slice.devices, 'device')}; "
            "use as many"
        )
    case.names[0].layouts(case.model), case.slice_for(False)  # refuse unknown names
    return case


def _check_fields(fields: Mapping[str, object]) -> None:
    """Refuses missing fields of a step."""
    phase = fields.get("phase")
    lengths = () if phase == "decode" and "context" in fields else _LENGTHS.get(phase, ())
    hint = " (or context)" * (phase == "decode" and bool(lengths) and "prompt_length" not in fields)
    check_present(fields, (*_REQUIRED, *lengths), hint)


def _open(name: str | None) -> str | None:
    return None if name == AUTO else name
