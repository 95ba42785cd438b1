"""Numbers as people read them: four digits and a unit that fits."""

from __future__ import annotations

from collections.abc import Sequence


def _scaled(value: float, steps: Sequence[tuple[float, str]], count: int = 4) -> str:
    """`value` in the largest unit of which it holds one, steps from large to small."""
    size, unit = next((step for step in steps if abs(value) >= step[0]), steps[-1])
    return f"{digits(value / size, count)} {unit}"


def digits(value: float, count: int = 4) -> str:
    """Significant digits without an exponent.

    >>> digits(3.14159), digits(1234.5), digits(0)
    ('3.142', '1,234', '0')
    """
    if value == 0:
        return "0"
    whole = len(f"{abs(value):.0f}") if abs(value) >= 1 else 0
    if abs(value) < 1:
        text = f"{value:.{count}g}"
        return text if "e" not in text else f"{value:.1e}"
    return f"{value:,.{max(0, count - whole)}f}"


def milliseconds(ms: float) -> str:
    """A duration.

    >>> milliseconds(0.0123), milliseconds(1.5), milliseconds(2500)
    ('12.30 µs', '1.500 ms', '2.500 s')
    """
    return _scaled(ms, ((1e3, "s"), (1.0, "ms"), (1e-3, "µs"), (1e-6, "ns"))) if ms else "0 ms"


def byte_size(count: float) -> str:
    """Bytes in powers of 1024.

    >>> byte_size(1536), byte_size(5)
    ('1.500 KiB', '5 B')
    """
    if abs(count) < 1024:
        return f"{count:.0f} B"
    return _scaled(count, ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")))


def operations(count: float, unit: str = "FLOP", *, whole: bool = False) -> str:
    """Arithmetic operations in powers of 1000; `whole` leaves out the decimals.

    >>> operations(2_500_000), operations(12, "MAC")
    ('2.500 MFLOP', '12 MAC')
    """
    if abs(count) < 1e3:
        return f"{count:.0f} {unit}"
    steps = ((1e12, f"T{unit}"), (1e9, f"G{unit}"), (1e6, f"M{unit}"), (1e3, f"k{unit}"))
    return _scaled(count, steps, 1 if whole else 4)


def joules(energy: float) -> str:
    """Energy.

    >>> joules(0.25)
    '250.0 mJ'
    """
    return _scaled(energy, ((1.0, "J"), (1e-3, "mJ"), (1e-6, "µJ")))


def percent(share: float) -> str:
    """A share.

    >>> percent(0.1234)
    '12.3 %'
    """
    return f"{100 * share:.1f} %"


def plural(count: int, noun: str) -> str:
    """A number of things.

    >>> plural(1, "thread"), plural(2000, "thread")
    ('1 thread', '2,000 threads')
    """
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
