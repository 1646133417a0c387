"""Flags of scripts that speak of chips which need not be there."""

import _common
from absl import flags

_UNITS = {
    "bandwidth": ("hbm_bandwidth", "bytes per second of memory"),
    "capacity": ("hbm_capacity", "bytes of memory"),
    "flops": ("peak_flops", "FLOP/s in every type of arithmetic"),
    "ici": ("ici_bandwidth", "bytes per second one way over a link of a torus"),
    "fabric": ("fabric_bandwidth", "bytes per second one way to a switch"),
    "network": ("network_bandwidth", "bytes per second one way to other hosts or slices"),
    "pcie": ("pcie_bandwidth", "bytes per second one way to the host"),
    "hop_latency": ("hop_latency", "seconds to a neighbour in a torus"),
    "on_chip": ("on_chip_memory", "bytes of last-level cache or VMEM"),
}
FIGURES = {
    figure: flags.DEFINE_float(name, None, f"In place of the published figure: {unit}, of a chip.")
    for figure, (name, unit) in _UNITS.items()
}
CALIBRATION = flags.DEFINE(
    _common.PATH,
    "calibration",
    None,
    "File with achieved rates and fixed times for expected times; "
    "profiles/chips/calibrations.json has those that are taken without it, and their sources.",
)
PRICE = flags.DEFINE_float(
    "price_per_chip_hour",
    None,
    "USD; by default the cheapest on-demand price of the chip in profiles/chips/chips.json.",
)
PROVIDER = flags.DEFINE_string(
    "provider", None, "Whose on-demand prices are taken, such as RunPod; the cheapest without it."
)
EXPERTS = flags.DEFINE_enum(
    "experts",
    "coverage",
    ["coverage", "least", "all"],
    "Experts that a step is taken to read: those that evenly spread tokens choose, those of one "
    "token, or all.",
)
