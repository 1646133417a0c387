"""Flags of scripts that make estimates for chips, which need not be at hand."""

import _common
from absl import flags

_UNITS = {
    "bandwidth": ("hbm_bandwidth", "Bytes per second of memory"),
    "capacity": ("hbm_capacity", "Bytes of memory"),
    "flops": ("peak_flops", "FLOP/s in every type of arithmetic"),
    "ici": ("ici_bandwidth", "Bytes per second one way over a link of a torus"),
    "fabric": ("fabric_bandwidth", "Bytes per second one way to a switch"),
    "network": ("network_bandwidth", "Bytes per second one way to other hosts or slices"),
    "pcie": ("pcie_bandwidth", "Bytes per second one way to the host"),
    "hop_latency": ("hop_latency", "Seconds to a neighbour in a torus"),
    "on_chip": ("on_chip_memory", "Bytes of last-level cache or VMEM"),
}
FIGURES = {
    figure: flags.DEFINE_float(name, None, f"{unit} of a chip, in place of the published figure.")
    for figure, (name, unit) in _UNITS.items()
}
CALIBRATION = flags.DEFINE(
    _common.PATH,
    "calibration",
    None,
    "File with the achieved rates and fixed times of expected times; the defaults, with sources, "
    "are in profiles/chips/calibrations.json.",
)
PRICE = flags.DEFINE_float(
    "price_per_chip_hour",
    None,
    "USD; by default the cheapest on-demand price of the chip in profiles/chips/chips.json.",
)
PROVIDER = flags.DEFINE_string(
    "provider", None, "Use on-demand prices of this provider, such as RunPod; else the cheapest."
)
EXPERTS = flags.DEFINE_enum(
    "experts",
    "coverage",
    ["coverage", "least", "all"],
    "Experts that a step is assumed to read: coverage, those that tokens choose if they choose "
    "uniformly; least, those of one token; or all.",
)
