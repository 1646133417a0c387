"""The catalogue of partitioning layouts, and how to change one's attention, prefill or experts.

Layouts follow Pope et al. 2022, "Efficiently Scaling Transformer Inference", sections 3.2 and 3.3.
Adding one is adding an entry to `LAYOUTS`; its tables are explained at `sharding.layout.Layout`.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

from sharding.axes import MESH_AXES
from sharding.error_types import LayoutError, UsageError
from sharding.layout import Axes, Layout, Table


def find_layout(name: str) -> Layout:
    """The catalogue's layout of this name.

    Raises:
      UsageError: there is none.
    """
    if name not in LAYOUTS:
        raise UsageError(f"layout is {name!r}; use one of {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


_XYZ, _ZY, _ZYX = tuple(MESH_AXES), ("z", "y"), ("z", "y", "x")


def attend_by(layout: Layout, kind: str) -> Layout:
    """The layout with attention divided otherwise (Pope et al. 2022, section 3.3).

    Args:
      layout: a layout of the catalogue, which attends by heads.
      kind: ``heads``; ``batch``, each chip some sequences with all their heads; or ``sequence``,
        each chip some slots of the cache, for one long sequence.

    Raises:
      UsageError: another kind.
    """
    if kind not in ATTENTION:
        raise UsageError(f"attention is {kind!r}; use one of {', '.join(ATTENTION)}")
    batch = layout.activations.get("B", ())
    # In the order that heads have them: then they go from heads to batch in one all-to-all.
    heads = (axis for axes in layout.attention.values() for axis in axes)
    rest = tuple(axis for axis in dict.fromkeys((*heads, *_ZYX)) if axis not in batch)
    tables = {
        "heads": (layout.attention, layout.cache),
        "batch": ({"B": batch + rest}, {"B": batch + rest}),
        "sequence": ({"B": batch, "N M": rest}, {"B": batch, "S": rest, "N M": rest}),
    }
    attention, cache = tables[kind]
    # One token's queries against a divided sequence; a prompt has many tokens to divide by heads.
    prefill = dataclasses.replace(layout, cache=cache) if kind == "sequence" else None
    return dataclasses.replace(
        layout, attention=attention, cache=cache, attends=kind, prefill=prefill
    )


def prefill_by(layout: Layout, prompts: Layout) -> Layout:
    """The layout with prompts partitioned otherwise, over the same stored weights.

    Args:
      layout: the layout of decode steps, which also says how the cache lies.
      prompts: the layout of prefills.

    Raises:
      LayoutError: the two store their weights differently.
    """
    if prompts.weights != layout.weights:
        alike = [other.name for other in LAYOUTS.values() if other.weights == layout.weights]
        raise LayoutError(
            f"prefill_layout is {prompts.name}, which stores weights otherwise than {layout.name}; "
            f"use {' or '.join(alike)}"
        )
    return dataclasses.replace(
        layout, prefill=dataclasses.replace(prompts, cache=layout.cache, prefill=None)
    )


def schedule_by(layout: Layout, collectives: str) -> Layout:
    """The layout with the collectives beside matmuls scheduled otherwise, in prompts too.

    Args:
      layout: any.
      collectives: ``compiler``, or ``overlapped``: loops of `sharding.products`.

    Raises:
      UsageError: another way.
    """
    if collectives not in COLLECTIVES:
        raise UsageError(f"collectives is {collectives!r}; use one of {', '.join(COLLECTIVES)}")
    prefill = layout.prefill and schedule_by(layout.prefill, collectives)
    return dataclasses.replace(layout, collectives=collectives, prefill=prefill)


def divide_experts(layout: Layout) -> Layout:
    """The layout with experts divided over the chips, instead of each expert's d_ff and d_model.

    Experts stay where they are and tokens come to them, in weight-gathered layouts too. Mesh axes
    that do not divide the experts divide each of them as before; those that then divide nothing,
    as over replicas, copy them.

    Args:
      layout: with the attention and the prefill that it is to have; both keep theirs.
    """
    # Those that most layouts divide the batch over come last, so that E's longest run leaves the
    # fewest tokens to exchange.
    experts = {"E": _ZYX}
    return dataclasses.replace(
        layout,
        weights=experts | dict(layout.weights),
        use=None if layout.use is None else experts | dict(layout.use),
        rules={**layout.rules, "E": "replicate"},
        prefill=divide_experts(layout.prefill) if layout.prefill else None,
    )


ATTENTION = ("heads", "batch", "sequence")
COLLECTIVES = ("compiler", "overlapped")


def _layout(
    name: str,
    summary: str,
    weights: Table,
    *,
    use: Table | None = None,
    batch: Axes = (),
    heads: Axes,
    residual: Axes = (),
) -> Layout:
    """An entry: how weights lie, and what divides batch, the outputs of matmuls, and the residual
    stream."""
    # Beside the axes that divide the table those that its sums can be scattered over, last.
    logits = weights["V"]
    logits += tuple(axis for axis in _ZYX if axis not in batch + logits)
    return Layout(
        name=name,
        summary=summary,
        weights=weights,
        use=use,
        activations={"B": batch, "R": residual, **_wide(heads), "V": logits},
        attention={"B": batch, "K G": heads, "J Q": heads, "N M": heads},
        cache={"B": batch, "K": heads, "J": heads, "N M": heads},
        rules=dict.fromkeys(("K G h", "J Q H", "K", "J", "N M o w", "N M", "V"), "replicate"),
    )


def _wide(axes: Axes) -> dict[str, Axes]:
    """Hidden widths of MLPs, heads and vocabulary over these mesh axes."""
    return dict.fromkeys(("F", "f", "s", "K G h", "J Q H", "N M o w", "V"), axes)


_TWO_D = {"D": ("x",), **_wide(_ZY)}
_REPLICAS_TWO_D = {"D": ("y",), **_wide(("z",))}

LAYOUTS: Mapping[str, Layout] = MappingProxyType(
    {
        layout.name: layout
        for layout in (
            _layout(
                "weight_stationary_1d",
                "few chips: every chip keeps its slice of d_ff, heads and vocabulary; two "
                "all-reduces of [B, T, D] per layer",
                _wide(_XYZ),
                heads=_XYZ,
            ),
            _layout(
                "weight_stationary_2d",
                "decode on many chips: d_model over x, d_ff and heads over z and y; what crosses a "
                "link falls with the square root of the number of chips",
                _TWO_D,
                heads=_ZYX,
                residual=("x", "z", "y"),
            ),
            _layout(
                "weight_gathered_x",
                "prefill: weights lie as in 2D, gathered over x just before use; batch over x",
                _TWO_D,
                use=_wide(_ZY),
                batch=("x",),
                heads=_ZY,
                residual=_ZY,
            ),
            _layout(
                "weight_gathered_xy",
                "larger prefill: gathered over x and y; batch over both",
                _TWO_D,
                use=_wide(("z",)),
                batch=("x", "y"),
                heads=("z",),
                residual=("z",),
            ),
            _layout(
                "weight_gathered_xyz",
                "largest prefill: gathered whole; batch over all axes, and no activation moves",
                _TWO_D,
                use={},
                batch=("x", "z", "y"),
                heads=(),
            ),
            _layout(
                "data_parallel_x_1d",
                "replicas in one program: each x has all weights, 1D over z and y, and its part of "
                "the batch",
                _wide(_ZY),
                batch=("x",),
                heads=_ZY,
            ),
            _layout(
                "data_parallel_x_2d",
                "replicas over x, each 2D: d_model over y, d_ff and heads over z",
                _REPLICAS_TWO_D,
                batch=("x",),
                heads=_ZY,
                residual=("y", "z"),
            ),
            _layout(
                "data_parallel_x_gathered_y",
                "prefill of those replicas: weights gathered over y; batch over x and y",
                _REPLICAS_TWO_D,
                use=_wide(("z",)),
                batch=("x", "y"),
                heads=("z",),
                residual=("z",),
            ),
        )
    }
)
