"""One slice and one set of types of a plan: what steps of all layouts and batches take.

Of a pipeline it is one stage's slice, and how many stages there are.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from model.dtypes import Dtypes
from profiles.chips.chip import Price
from profiles.chips.slices import Slice
from profiles.expected.estimate import Estimate, Estimator
from profiles.expected.serving import ServiceEstimate, estimate_service
from profiles.floor.deployment import Deployment, Model
from profiles.floor.experts import expected_experts
from profiles.floor.passes import BatchLine, PromptLine
from profiles.floor.pipelines import sent_s, with_hops
from profiles.plan.rows import Row

if TYPE_CHECKING:
    from profiles.plan.space import Space

LARGEST = 1 << 14
"""Sequences: no batch above is looked at but the largest that fits."""
BATCHES = np.array(
    sorted({1 << power for power in range(15)} | {3 << power for power in range(13)})
)
"""Powers of two, and one and a half times those."""


class Cell:
    """A slice and a set of types, on which all layouts and batches are compared.

    Args:
      space: the space that it is a part of.
      slice: the slice; of a pipeline, that of one stage.
      price: what a chip-hour costs.
      dtypes: how numbers are stored.
      stages: how many such slices the layers are divided over, with as many batches in flight.
    """

    def __init__(self, space: "Space", slice: Slice, price: Price, dtypes: Dtypes, stages: int = 1):
        self.space, self.slice, self.price, self.dtypes = space, slice, price, dtypes
        self.stages, self.chips = stages, slice.chips * stages
        self.usd_per_hour = price.usd * self.chips
        self.calibration = space.calibration(slice.chip.name)
        parts, recommended = slice.chip.devices_per_chip, slice.chip.recommended
        self.capacity = recommended.capacity / parts
        self._bandwidth = recommended.bandwidth / parts * self.calibration.memory
        self._flops = recommended.peak(dtypes.arithmetic_on(recommended.flops)) / parts
        self._overhead = self.calibration.step_s + space.model.layers * self.calibration.layer_s
        hop = self.calibration.network_s if space.hop_s is None else space.hop_s
        self.hop_s = hop if stages > 1 else 0.0
        self.estimator = functools.cache(self._find_estimator)

    @property
    def whole(self) -> Slice:
        """All slices that are paid for."""
        return dataclasses.replace(self.slice, count=self.slice.count * self.stages)

    @functools.cached_property
    def _numbers(self) -> slice:
        """Numbers of its rows among all."""
        found = self.space.rows(self.dtypes).of(self.slice.devices)
        return slice(found.start, found.stop)

    @functools.cached_property
    def rows(self) -> list[Row]:
        """Layouts on meshes."""
        return self.space.rows(self.dtypes).rows[self._numbers]

    @functools.cached_property
    def multiples(self) -> np.ndarray:
        """What batches of each row are padded to."""
        return self.space.rows(self.dtypes).multiples[self._numbers]

    @functools.cached_property
    def _lines(self) -> BatchLine:
        """Decode steps of each row."""
        return BatchLine(*(field[self._numbers] for field in self.space.lines(self.dtypes)))

    @functools.cached_property
    def batches(self) -> np.ndarray:
        """For each row `BATCHES` and the largest batch that fits; 0 where one does not.

        Of a pipeline that is `beside_alone` only those that one slice alone does not hold: others
        take no longer there, and a token of them costs no more.
        """
        largest = self._fitting(self.stages)
        fitting = _padded(BATCHES, self.multiples[:, None]) <= largest[:, None]
        found = np.column_stack([np.where(fitting, BATCHES, 0), largest])
        return np.where(found > self.alone[:, None], found, 0) if self.beside_alone else found

    @functools.cached_property
    def beside_alone(self) -> bool:
        """Whether it is a pipeline, and one of its slices alone is compared, too."""
        return self.stages > 1 and (self.slice, self.price) in self.space.alone

    @functools.cached_property
    def alone(self) -> np.ndarray:
        """The largest batch of each row that fits on one slice of a pipeline."""
        return self._fitting(1)

    def _fitting(self, stages: int) -> np.ndarray:
        """The largest batch of each row that fits, with so many stages."""
        lines, multiples = self._lines, self.multiples
        most = (self.capacity - _resident(lines, stages)) / lines.memory_per_sequence
        return np.maximum(np.floor(most / multiples).astype(int) * multiples, 0)

    @functools.cached_property
    def even_bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Batches, and lower bounds in seconds of their steps in any layout.

        If everything were divided evenly, and collectives took no time. Infinite where even then
        they would not fit.
        """
        devices, one_device = self.slice.devices, self.space.one_device(self.dtypes)
        largest = max(
            math.floor(
                (self.capacity * devices - _resident(one_device, self.stages))
                / one_device.memory_per_sequence
            ),
            0,
        )
        batches = np.sort(np.append(BATCHES, largest))
        prompt = self.space.service and self.space.prompt_on_one_device(self.dtypes)
        memory, compute = self._work(one_device, prompt, batches, batches, 1)
        steps = self.calibration.together(memory / devices, compute / devices) + self._overhead
        fits = (batches > 0) & (batches <= largest)
        if self.stages > 1:
            steps = steps + self._hops(batches)
        if self.beside_alone:
            # All batches up to the next one fit on one slice, in every layout.
            fits &= np.append(batches[1:], math.inf) > self.alone.min(initial=LARGEST)
        return batches, np.where(fits, steps, math.inf)

    @property
    def may_fit(self) -> bool:
        """Whether a sequence would fit if everything were divided evenly."""
        return bool(np.isfinite(self.even_bounds[1]).any())

    @functools.cached_property
    def _parts(self) -> tuple[np.ndarray, np.ndarray]:
        """Expected seconds of memory and of arithmetic, [rows, batches]."""
        lines = BatchLine(*(field[:, None] for field in self._lines))
        prompt = None
        if self.space.service:
            every = self.space.prompt_lines(self.dtypes)
            prompt = PromptLine(*(field[self._numbers, None] for field in every))
        return self._work(lines, prompt, self._padded_batches, self.batches, lines.replicas)

    @functools.cached_property
    def bounds(self) -> np.ndarray:
        """Seconds of decode steps if collectives took no time; infinite where they do not fit."""
        memory, compute = self._parts
        seconds = self.calibration.together(memory, compute) + self._overhead
        seconds = seconds + self._hops(self._padded_batches)
        return np.where(self.batches > 0, seconds, math.inf)

    @functools.cached_property
    def steps(self) -> np.ndarray:
        """Expected seconds of decode steps, [rows, batches]; infinite where they do not fit."""
        service, sent = self.space.service, self.space.communication(self, 1)
        if service:
            prompts = self.space.communication(self, service.prompt_length)
            links = sent.beside(prompts, self._padded_batches, service.prompts(self.batches))
        else:
            links = sent.at(self._padded_batches)
        seconds = self._seconds(*self._parts, self._padded_batches, links)
        seconds = seconds + self._hops(self._rows)
        return np.where(self.batches > 0, seconds, math.inf)

    @property
    def _rows(self) -> np.ndarray:
        """Tokens of a step, with those of the prompts that join, [rows, batches]."""
        if not (service := self.space.service):
            return self._padded_batches
        return self._padded_batches + service.prompts(self.batches) * service.prompt_length

    def _hops(self, rows: np.ndarray) -> np.ndarray | float:
        """Seconds that so many tokens take between stages, as `Estimator.hops_s` has them."""
        if self.stages == 1:
            return 0.0
        chip, model = self.slice.chip.recommended, self.space.model
        size = rows * model.d_model * self.dtypes.dtype.itemsize
        rate = chip.network * self.calibration.link * self.slice.chips
        sent = with_hops(sent_s(self.stages, size, rate), self.stages, self.hop_s)
        return sent + (self.stages - 1) * self.calibration.step_s

    @property
    def _padded_batches(self) -> np.ndarray:
        return _padded(self.batches, self.multiples[:, None])

    def _work(
        self,
        lines: BatchLine,
        prompt: PromptLine | None,
        padded: np.ndarray,
        batches: np.ndarray,
        replicas: np.ndarray | int,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Seconds of memory and of arithmetic of decode steps, of a service with its prompts.

        Args:
          lines: decode steps.
          prompt: what each prompt adds, if they are those of a service.
          padded: padded batches.
          batches: the same as they are asked for.
          replicas: number of parts of a batch that choose experts apart from each other.
        """
        model, service, tokens = self.space.model, self.space.service, padded
        gathered, moved = lines.gathered, padded * lines.bytes_per_sequence
        flops, rows = padded * lines.flops, padded / lines.parts
        expert_flops = padded * lines.expert_flops
        if service:
            joining = service.prompts(batches)
            tokens = padded + joining * service.prompt_length
            gathered = np.maximum(gathered, prompt.gathered)
            looked_up = np.minimum(tokens * prompt.looked_up, prompt.table)
            moved = moved + joining * prompt.written + looked_up - padded * prompt.looked_up
            flops, rows = flops + joining * prompt.flops, rows + joining * prompt.rows
            expert_flops = expert_flops + joining * prompt.expert_flops
        moved = moved + lines.dense_weights + 2 * gathered
        if model.experts:
            touched = _touched(model, tokens, replicas, self.space.experts)
            moved = moved + lines.experts * touched / model.experts
        work = flops, padded * lines.attention, rows
        compute = self.calibration.compute_s(*work, self._flops, expert_flops)
        return moved / self._bandwidth, compute

    @functools.cache  # noqa: B019
    def first_tokens(self, prompt: int) -> np.ndarray:
        """Expected seconds of the prefill of one prompt of so many tokens, by row."""
        work = self.space.prompts(self.dtypes, prompt)[:, self._numbers, None]
        moved, flops, rows, experts = work
        compute = self.calibration.compute_s(flops, 0.0, rows, self._flops, experts)
        batches = self.multiples[:, None]
        links = self.space.communication(self, prompt).at(batches)
        seconds = self._seconds(moved / self._bandwidth, compute, batches, links)
        return (seconds + self._hops(batches * prompt))[:, 0]

    def _seconds(
        self,
        memory: np.ndarray,
        compute: np.ndarray,
        sequences: np.ndarray,
        links: tuple[np.ndarray, ...],
    ) -> np.ndarray:
        """Expected seconds of passes, as `profiles.expected.time.Expected` has them.

        Args:
          memory: seconds of reading and writing it, [rows, batches].
          compute: seconds of arithmetic, likewise.
          sequences: sequences that all devices together advance.
          links: seconds of collectives: latency, transfer and what of it is overlapped.
        """
        latency, transfer, overlapped = links
        compute = np.maximum(compute, overlapped / self.calibration.link)
        waits = latency + (transfer - overlapped) / self.calibration.link
        overhead = self._overhead + sequences * self.calibration.sequence_s
        if self.calibration.hidden:
            return self.calibration.together(memory, compute + waits) + overhead
        return self.calibration.together(memory, compute) + waits + overhead

    def cost(self, seconds: np.ndarray, batches: np.ndarray) -> np.ndarray:
        """USD per million tokens; infinite where steps never end.

        Of a pipeline each batch in flight pays for one stage's chips.
        """
        ends = np.isfinite(seconds)
        costs = self.usd_per_hour / self.stages * np.where(ends, seconds, 1.0) / 3600
        return np.where(ends, costs / np.maximum(batches, 1) * 1e6, math.inf)

    def _find_estimator(self, number: int) -> Estimator:
        row, space = self.rows[number], self.space
        return Estimator(
            Deployment(
                model=space.model,
                slice=self.slice,
                dtypes=self.dtypes,
                calibration=self.calibration,
                layout=row.layout,
                mesh=row.mesh,
                experts=space.experts,
                price=self.price,
                stages=self.stages,
                hop_s=space.hop_s,
            )
        )

    def estimate(self, number: int, batch: int) -> Estimate | ServiceEstimate:
        """A row's step, with its floor."""
        space = self.space
        if space.service:
            service = dataclasses.replace(space.service, concurrency=batch)
            return estimate_service(self.estimator(number), service)
        return self.estimator(number).decode(batch, space.context, space.slots)

    def missing_bytes(self, keep: Sequence[int], batch: int = 1) -> float:
        """Bytes per chip by which a batch fits in none of these rows; negative if it does."""
        lines = self._lines
        sequences = _padded(batch, self.multiples) * lines.memory_per_sequence
        held = _resident(lines, self.stages) + sequences
        smallest = held[np.array(keep, int)].min(initial=math.inf)
        return float(smallest - self.capacity) * self.slice.chip.devices_per_chip


def _resident(lines: BatchLine, stages: int) -> np.ndarray | float:
    """Bytes of a device at any batch, with its stage's part of the weights."""
    return lines.resident - lines.stored * (1 - 1 / stages)


def _padded(batches: np.ndarray | int, multiple: np.ndarray | int) -> np.ndarray:
    return -(-np.asarray(batches) // multiple) * multiple


def _touched(
    model: Model, tokens: np.ndarray, replicas: np.ndarray, experts: str
) -> np.ndarray | int:
    """Experts that steps read, as `PassCounter` counts them."""
    if experts != "coverage":
        return {"all": model.experts, "least": model.experts_per_token}[experts]
    return expected_experts(model, np.maximum(tokens / replicas, 1))
