"""Numbers as people read them, in text, tables and figures; records keep all digits."""

import math

_MIN_POWER, _MAX_POWER = -9, 15  # powers of ten; beyond, zeros say less than an exponent


def number(value: float, figures: int = 3) -> str:
    """So many significant figures, or a whole number where that has more: 0.0504, 26.0, 1,239."""
    if not value or not math.isfinite(value):
        return f"{value:g}"
    rounded = f"{value:.{figures - 1}e}"
    power = int(rounded.partition("e")[2])  # of ten, once rounded: 99.96 is 100
    if not _MIN_POWER <= power < _MAX_POWER:
        return rounded
    return f"{value:,.{max(figures - 1 - power, 0)}f}"


def exact(value: float) -> str:
    """What was given or is listed, with the digits that it has: 20, 4.39, 3,350."""
    text = number(value, 6)
    return text if "e" in text or "." not in text else text.rstrip("0").rstrip(".")


def ms(seconds: float) -> str:
    """Seconds as milliseconds."""
    return number(seconds * 1e3)


def milliseconds(seconds: float) -> str:
    """The same with its unit."""
    return f"{ms(seconds)} ms"


def byte_size(count: float) -> str:
    """Bytes in the unit that suits them: 1.25 GB, 12 bytes."""
    rounded = float(f"{count:.3g}")
    for scale, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if rounded >= scale:
            return f"{number(count / scale)} {unit}"
    return several(round(count), "byte")


def short(value: float) -> str:
    """A number in few characters, as at an axis: 0.5, 4096, 131k, 2M."""
    rounded = float(f"{value:.3g}")
    for minimum, scale, letter in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(rounded) >= minimum:
            return exact(rounded / scale) + letter
    return exact(float(f"{value:.4g}")).replace(",", "")


def several(count: float, what: str) -> str:
    """So many of something: 1 slice, 1,024 chips."""
    return f"{exact(count)} {what}{'' if count == 1 else 's'}"
