"""What XLA made of a step: bytes resident and aliased, collectives, whole arrays that it moves.

Bytes are those that the compiler accounts for, per device. Its cost model (`cost_analysis`) is
left alone: it counts some bytes five times and the body of a loop once.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping

from profiles.compiled.compiler import Compilation
from profiles.floor.collective import PRODUCT, WORK, Collective
from profiles.hlo.census import HasShape, census
from profiles.hlo.flow import Origin, Step, arguments, leaves, walk
from profiles.hlo.kernels import Kernel, kernel_records, kernels
from profiles.hlo.moves import Move, Temporary, grouped, moves, temporaries
from profiles.hlo.overlap import overlaps
from profiles.hlo.program import Array, Instruction, Program, arrays, parse, placed

CACHE = "cache/"
"""What the names of a cache's arrays begin with."""
SMALL = ("carry/", "tokens", "new/")
"""What the names of arguments begin with that are neither weights nor cache."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompiledStep:
    """A compiled step, sizes per device.

    Attributes:
      argument_bytes: bytes of weights, cache and the rest, as they lie in memory.
      output_bytes: bytes of results, those in the memory of arguments included.
      aliased_bytes: bytes of results that take the memory of arguments.
      temporary_bytes: bytes that are needed beside both.
      arguments: each argument by its name, such as ``layers/0/mlp/down`` or ``cache/keys/0``.
      aliased: names of arguments whose memory a result takes.
      collectives: each with what happens meanwhile, `Collective.overlap`.
      gathered: payload of an all-gather -> the weight that it gathers, ``*`` for any layer.
      moves: whole arrays that are written to main memory again.
      temporaries: other large arrays in main memory.
      kernels: what a GPU launches; empty unless asked for.
      compile_s: seconds that XLA took.
    """

    argument_bytes: int
    output_bytes: int
    aliased_bytes: int
    temporary_bytes: int
    arguments: Mapping[str, Array]
    aliased: frozenset[str]
    collectives: tuple[Collective, ...]
    gathered: Mapping[int, str]
    moves: tuple[Move, ...]
    temporaries: tuple[Temporary, ...]
    compile_s: float
    kernels: tuple[Kernel, ...] = ()

    @property
    def not_aliased(self) -> list[str]:
        """Arrays of the cache that are not updated in place."""
        return [n for n in self.arguments if n.startswith(CACHE) and n not in self.aliased]

    def as_record(self) -> dict:
        """The form that programs read."""
        sizes = ("argument_bytes", "output_bytes", "aliased_bytes", "temporary_bytes")
        return {
            **{name: getattr(self, name) for name in sizes},
            "cache_aliased": not self.not_aliased,
            "collectives": [
                each.as_record()
                | {"asynchronous": each.overlap in (PRODUCT, WORK), "overlap": each.overlap}
                for each in self.collectives
            ],
            "copies": [
                {
                    "what": f"{move.origin} {move.how}",
                    "bytes": move.bytes,
                    "count": move.count,
                    "widened": move.widened,
                    **({"beside_floor": move.beside_floor} if move.widened else {}),
                    **({"where": move.scope} if move.scope else {}),
                }
                for move in grouped(self.moves)
            ],
            "temporaries": [
                {"what": each.what, "bytes": each.bytes, "count": each.count}
                for each in self.temporaries
            ],
            **({"kernels": kernel_records(self.kernels)} if self.kernels else {}),
            "compile_s": self.compile_s,
        }


def read(
    outcome: Compilation, mesh: HasShape | Mapping[str, int], platform: str = ""
) -> CompiledStep:
    """Reads a program that was compiled.

    Args:
      outcome: an outcome with status ``ok``.
      mesh: the mesh that it was compiled for, or its axes and their sizes in order.
      platform: JAX's name of what it is for; of ``gpu`` kernels are read as well.

    Raises:
      HloError: something in it is not understood.
    """
    program = parse(outcome.text)
    steps = list(walk(program))
    found = arguments(program)
    numbers = {int(one.operands[0]): name for name, one in found.items()}
    return CompiledStep(
        **outcome.memory,
        arguments={name: placed(one.shape)[0] for name, one in found.items()},
        aliased=frozenset(numbers[n] for n in _aliased(outcome.text) if n in numbers),
        collectives=tuple(census(program, mesh, overlaps(program))),
        gathered=_gathered(program, steps),
        moves=tuple(moves(program, steps)),
        temporaries=tuple(temporaries(program, steps, outcome.memory["temporary_bytes"] // 10 + 1)),
        compile_s=outcome.compile_s,
        kernels=tuple(kernels(program, steps, CACHE, SMALL)) if platform == "gpu" else (),
    )


def _aliased(text: str) -> list[int]:
    """Numbers of the arguments whose memory a result takes."""
    head = text[: text.find("\n")]
    listed = re.search(r"input_output_alias=\{(.*?)\}, entry_computation_layout", head)
    return [int(number) for number in re.findall(r": \((\d+),", listed[1])] if listed else []


def _gathered(program: Program, steps: list[Step]) -> dict[int, str]:
    """Weights that are gathered, by the bytes of the result of it."""
    found = {}
    for step in steps:
        for one, origins in _gathers(program, step):
            for origin in leaves(origins, len(origins)):
                if origin and not origin.startswith(CACHE):
                    name = re.sub(r"(?<=/)\d+(?=/)", "*", origin)
                    found |= {size: name for _, size in arrays(one.shape)}
    return found


def _gathers(program: Program, step: Step) -> Iterator[tuple[Instruction, tuple[Origin, ...]]]:
    """All-gathers that an instruction is or has inside, with the origins of their operands."""
    one = step.instruction
    if one.opcode in ("all-gather", "all-gather-start"):
        yield one, step.origins
    elif one.opcode == "fusion":
        inner = program[one.called["calls"][0]].instructions
        for each in inner.values():
            if each.opcode == "all-gather":
                operands = [inner[name] for name in each.operands]
                numbers = [int(p.operands[0]) for p in operands if p.opcode == "parameter"]
                yield each, tuple(step.origins[number] for number in numbers)
