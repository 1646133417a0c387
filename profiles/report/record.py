"""The record of one step: every field with its type, unit and meaning, and how JSON has it.

Scripts write records as JSON and as rows of CSV, and tables, titles and figures are made of them.
Floor, expected, compiled and measured numbers stand in fields of their own. A field that is not
known is None, and JSON leaves it out.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

Status = Literal["ok", "does_not_fit", "out_of_memory", "unsupported", "cache_resident"]


class Parameters(TypedDict):
    """How many parameters a model has, and how many of them a token meets."""

    total: int
    active: int


class BytesPerChip(TypedDict, total=False):
    """Bytes of one chip, all of its devices together."""

    weights_resident: float  # stored weights
    weights_read: float  # the weights that the pass reads
    kv_resident: float  # the allocated cache; of a service what is filled of it on average
    kv_reserved: float  # a service's cache with room for the longest prompt and answer
    kv_read: float  # cached tokens that the pass reads
    kv_written: float  # new tokens
    kv_unfilled: float  # slots that no token has filled, as often as layers would read them
    weights_gathered: float  # whole copies that a weight-gathered layout makes of its shards
    activations: float  # held beside weights and cache at their most
    capacity: float  # memory of the chip
    weights_unpacked: float  # weights that the compiled step holds in more bits than are stored


class Seconds(TypedDict):
    """A measured time in seconds: its median, its spread, and all samples."""

    median: float
    p10: float
    p90: float
    samples: list[float]


class Experts(TypedDict, total=False):
    """Distinct experts that a layer reads in a step, on average over layers."""

    measured: float
    expected: float  # by tokens that spread evenly


class Pipeline(TypedDict, total=False):
    """A pipeline: layers divided over slices, with `batch` sequences in each batch in flight."""

    stages: int  # slices, and batches in flight; `topology` and `chips` are of all, `mesh` of one
    hop_s: float  # latency of a hop, in seconds
    inside_over_between: float  # from 1 on experts' traffic hides a hop's bytes; of mixtures alone


class Price(TypedDict, total=False):
    """What a chip-hour costs, and whose price that is where it is a listed one."""

    usd_per_chip_hour: float
    provider: str
    offer: str
    region: str
    commitment: str
    date: str


def _field(title: str = "", *, line: bool = False, late: bool = False) -> Any:
    """A field that may be unknown.

    Args:
      title: how a title says its value; a table has a column for it only where rows differ.
      line: records that differ in it are points of different lines against batch.
      late: it has no place of its own among the columns of CSV files, and stands behind them.
    """
    metadata = {"title": title, "line": line, "late": late}
    return dataclasses.field(default=None, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """What is known of one step, or of one pass over prompts.

    Fields are in the order of a CSV file's columns; JSON has them in the order in which they were
    given. Times are in seconds.
    """

    # The model and the pass.
    model: str | None = _field("{}", line=True)
    parameters: Parameters | None = None
    phase: Literal["decode", "prefill", "serving"] | None = _field("{}", line=True)
    batch: int | None = None  # sequences
    context: int | None = _field(line=True)  # cached tokens of each sequence before the pass
    tokens_per_sequence: int | None = _field(line=True)  # new tokens: 1 in a decode step
    slots: int | None = _field(late=True)  # tokens of each sequence that the cache has room for
    prompt_length: int | None = _field(late=True)  # tokens of each prompt, or that it is a chunk of
    chunks: int | None = _field(late=True)  # passes whose times are added up: a whole prompt's
    padded_tokens: int | None = _field(late=True)  # those that run, beyond `tokens_per_sequence`
    concurrency: int | None = _field(late=True)  # sequences that a service has in flight
    generated_tokens: int | None = _field(late=True)  # tokens of each of its answers
    # The devices.
    device_kind: str | None = _field("on {}", line=True)  # JAX's name for them
    topology: str | None = None  # the slice, such as v5e:4x4
    chips: int | None = None
    devices: int | None = _field(line=True)  # JAX devices; some chips are two of them
    mesh: Mapping[str, int] | None = _field(line=True)  # axis -> its size
    # How model and cache are divided over them, and in which types.
    layout: str | None = _field("layout {}", line=True)
    attention: str | None = _field("attention by {}", line=True)  # heads, batch or sequence
    expert_parallel: Literal[True] | None = _field("expert-parallel", line=True, late=True)
    collectives: str | None = _field("collectives {}", line=True)  # compiler or overlapped
    cache_layout: str | None = _field(late=True)  # where it is not that of the prompts
    cache_attention: str | None = _field(late=True)
    dtype: str | None = _field("{}", line=True)  # type of activations, and of arithmetic
    weight_dtype: str | None = _field("weights {}", line=True)  # stored type
    kv_dtype: str | None = _field("KV cache {}", line=True)  # stored type
    arithmetic: str | None = _field("arithmetic in {}", line=True, late=True)  # where it is another
    gpu_kernels: str | None = _field(
        "GPU kernels {}", line=True, late=True
    )  # those that it may use
    weight_layout: Literal["auto"] | None = _field(late=True)  # memory order by the compiler
    experts: str | None = _field(line=True)  # those counted as read: coverage, least or all
    experts_touched: Experts | None = None
    pipeline: Pipeline | None = _field(late=True)  # noqa: RUF009
    # What a step must do.
    bytes_per_chip: BytesPerChip | None = None
    flops_per_chip: float | None = None  # a multiply-add is 2
    flops_per_byte: float | None = None  # bytes read or written
    padded_batch: int | None = _field(late=True)  # sequences that run, where more than `batch`
    # Floor: the least that a step can take.
    floor_s: float | None = None
    # weights, kv_cache, compute, communication, and of a pipeline hops
    floor_terms_s: Mapping[str, float] | None = None
    weight_floor_s: float | None = None  # reading the weights alone
    read_floor_s: float | None = _field(late=True)  # at the rate that read kernels reached here
    bound: str | None = None  # the largest of these terms
    no_overlap_s: float | None = None  # the floor of a step that only waits while it communicates
    # Expected, by a calibration.
    expected_s: float | None = None
    expected_terms_s: Mapping[str, float] | None = _field(late=True)  # those that are not zero
    expected_forms_s: Mapping[str, float] | None = _field(late=True)  # prompts beside, or between
    # Measured.
    step_s: Seconds | None = None
    steps_per_sample: int | None = None  # each sample of `step_s` is a mean of so many
    tokens_per_dispatch: int | None = _field("{} tokens per dispatch", line=True, late=True)  # > 1
    device_s: Seconds | None = None  # the part of a step in which devices work, by a trace
    host_s: Seconds | None = None  # until the call of a step returns, with nothing queued before it
    fraction_of_floor: float | None = None  # floor over measured
    fraction_of_weight_floor: float | None = None
    fraction_of_read_floor: float | None = _field(late=True)
    mfu: float | None = None  # FLOPs over those that the peak allows in the measured time
    mbu: float | None = None  # the same for bytes
    # Rate and cost, measured where `step_s` is there, and else expected.
    tokens_per_s: float | None = None
    tokens_per_s_per_chip: float | None = None
    usd_per_million_tokens: float | None = None
    price: Price | None = _field(late=True)  # noqa: RUF009
    # What batches are worth.
    critical_batch: float | None = None  # where compute takes as long as reading all weights
    critical_context: float | None = None  # beyond it no batch is bound by compute
    batching_gain: float | None = None  # floor of a token at batch 1 over the least of any batch
    economics: Mapping[str, Any] | None = _field(late=True)  # by what was asked; names have units
    # What came of it.
    fits: bool | None = None
    status: Status | None = None
    message: str | None = None  # why the status is not ok, or what else must be known
    # Compiled.
    compiled: Mapping[str, Any] | None = _field(late=True)  # per device: sizes, collectives, copies
    collectives_as_expected: bool | None = _field(late=True)
    findings: Sequence[Mapping[str, Any]] | None = _field(late=True)  # costliest first
    asked: str | None = _field(late=True)  # the point of a grid, in words

    def __new__(cls, **fields: object) -> "Record":
        """Keeps the order in which fields are given, for JSON."""
        record = super().__new__(cls)
        object.__setattr__(record, "_order", tuple(fields))
        return record

    def __or__(self, other: "Record") -> "Record":
        """This record with all that is known of the other in place of its own."""
        return Record(**(self.to_json() | other.to_json()))

    @property
    def ran(self) -> bool:
        """Whether the step was measured."""
        return self.step_s is not None

    @property
    def ok(self) -> bool:
        """Whether nothing is said against it, so that its floor applies."""
        return self.status in (None, "ok")

    def to_json(self) -> dict[str, Any]:
        """The fields that are known, as JSON has them."""
        known = ((name, getattr(self, name)) for name in self._order)
        return {name: value for name, value in known if value is not None}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Record":
        """The record that `to_json` gave; `TypeError` for a field that there is none of."""
        return cls(**fields)


_FIELDS = dataclasses.fields(Record)
TITLES: dict[str, str] = {f.name: f.metadata["title"] for f in _FIELDS if f.metadata.get("title")}
"""How a title says a field's value."""
LINE_FIELDS = tuple(f.name for f in _FIELDS if f.metadata.get("line"))
"""What makes two records points of one line, drawn or fitted against batch."""
CSV_FIELDS = tuple(f.name for f in _FIELDS if not f.metadata.get("late"))
"""The order of a CSV file's columns; those of other names stand behind these."""
