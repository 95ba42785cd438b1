"""Inline SVG pictures of a profile; colours come from the page, so they follow light and dark."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from math import ceil, floor, log10

import numpy as np

from . import quantities as q
from .clock import Latency, Ratio
from .roofline import Roofline

_WIDTH = 880
_LEFT, _RIGHT = 64, 24


def text(x: float, y: float, words: str, *, anchor: str = "middle", kind: str = "") -> str:
    """Words at a place, escaped."""
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} class="{kind}">{escape(words)}</text>'


def line(x0: float, y0: float, x1: float, y1: float, kind: str) -> str:
    """A straight line."""
    return f'<line x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}" class="{kind}"/>'


def _rectangle(x: float, y: float, width: float, height: float, kind: str, tip: str = "") -> str:
    title = f"<title>{escape(tip)}</title>" if tip else ""
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(0.5, width):.1f}" '
        f'height="{max(0.0, height):.1f}" rx="1.5" class="{kind}">{title}</rect>'
    )


def _path(points: Sequence[tuple[float, float]], kind: str) -> str:
    return f'<path d="M{" L".join(f"{x:.1f},{y:.1f}" for x, y in points)}" class="{kind}"/>'


def _svg(height: float, parts: Sequence[str], label: str) -> str:
    body = "\n".join(parts)
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height:.0f}" role="img" aria-label="{escape(label)}">'
        f"\n{body}\n</svg>"
    )


def ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Round numbers between two, at steps of 1, 2 or 5 times a power of ten.

    >>> ticks(0.0, 1.0)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** floor(log10(raw))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= raw * 0.999)
    first = ceil(low / step - 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, floor(high / step + 1e-9) + 1)]


def latency_plot(series: Sequence[tuple[str, Latency]]) -> str:
    """Histograms of the samples with the share that is faster drawn over them.

    The axis ends where 1 % of the samples is slower; a note counts those.
    """
    top, bottom = 18, 252
    stop = max(latency.quantile(0.99) for _, latency in series)
    start = min(latency.min for _, latency in series)
    pad = max(stop - start, 1e-3 * stop) * 0.03
    low, high = start - pad, stop + pad
    unit, factor = ("µs", 1e3) if high < 1 else ("ms", 1.0) if high < 5e3 else ("s", 1e-3)

    def at(ms: float) -> float:
        return _LEFT + (ms - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    parts = [line(_LEFT, bottom, at(high), bottom, "axis")]
    for value in ticks(low * factor, high * factor, 8):
        x = at(value / factor)
        parts += [line(x, bottom, x, bottom + 4, "axis"), text(x, bottom + 19, f"{value:,.6g}")]
    parts.append(text((_LEFT + at(high)) / 2, bottom + 40, f"{unit} per call", kind="label"))
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = bottom - share * (bottom - top)
        parts += [
            line(_LEFT, y, at(high), y, "grid"),
            text(_LEFT - 8, y + 4, f"{share:.0%}", anchor="end"),
        ]
    bins = np.linspace(low, high, 61)
    heights = [np.histogram(latency.samples, bins)[0] / latency.n for _, latency in series]
    tallest = max(float(h.max()) for h in heights) or 1.0
    for index, (_, latency) in enumerate(series):
        for i, share in enumerate(heights[index]):
            if share:
                tall = share / tallest * (bottom - top) * 0.9
                tip = f"{bins[i]:.4g} to {bins[i + 1]:.4g} ms: {share:.1%} of {latency.n:,} samples"
                x = at(bins[i])
                parts.append(
                    _rectangle(
                        x, bottom - tall, at(bins[i + 1]) - x - 1, tall, f"bar s{index}", tip
                    )
                )
    for index, (_, latency) in enumerate(series):
        shares = np.linspace(0, 1, 201)
        points = [
            (at(min(latency.quantile(float(s)), high)), bottom - s * (bottom - top)) for s in shares
        ]
        parts.append(_path(points, f"curve c{index}"))
        x = at(latency.p50)
        parts.append(line(x, top - 4, x, bottom, f"mark c{index}"))
        parts.append(
            text(
                x + 5,
                top + 6 + 14 * index,
                f"p50 {q.milliseconds(latency.p50)}",
                anchor="start",
                kind=f"strong t{index}",
            )
        )
    beyond = sum(sum(s > high for s in latency.samples) for _, latency in series)
    if beyond:
        parts.append(
            text(
                at(high), bottom + 40, f"beyond: {q.plural(beyond, 'slower sample')}", anchor="end"
            )
        )
    return _svg(bottom + 48, parts, "histogram and distribution of latency")


def bar_plot(series: Sequence[dict[str, int]], show: Callable[[float], str], most: int = 12) -> str:
    """One row per name, one bar per series, with the value and its share of the series."""
    names = sorted({n for s in series for n in s}, key=lambda n: -max(s.get(n, 0) for s in series))
    row = 12 + 16 * len(series)
    left, width = 372, _WIDTH - 372 - 190
    biggest = max((v for s in series for v in s.values()), default=1)
    parts = []
    for i, name in enumerate(names[:most]):
        y = 6 + i * row
        short = name.removeprefix("aten.").removeprefix("_")
        short = short if len(short) <= 52 else f"{short[:51]}…"
        parts.append(text(left - 12, y + 8 * len(series) + 4, short, anchor="end"))
        for j, values in enumerate(series):
            value = values.get(name, 0)
            parts.append(
                _rectangle(left, y + 16 * j + 1, value / biggest * width, 13, f"s{j}", name)
            )
            share = value / max(1, sum(values.values()))
            line_y = y + 16 * j + 12
            parts.append(text(_WIDTH - _RIGHT - 62, line_y, show(value), anchor="end"))
            parts.append(text(_WIDTH - _RIGHT, line_y, q.percent(share), anchor="end"))
    shown = min(len(names), most)
    if len(names) > most:
        words = f"and {len(names) - most} smaller ones"
        parts.append(text(left, 6 + shown * row + 8, words, anchor="start"))
    return _svg(6 + shown * row + (18 if len(names) > most else 0), parts, "FLOPs by operator")


def ratio_plot(ratio: Ratio, a: str, b: str) -> str:
    """Every pair's ratio as a dot, the median, its 95 % interval, and 1."""
    height, middle = 176, 74
    values = np.array(ratio.ratios)
    inner = np.quantile(values, [0.05, 0.95])
    low = min(float(inner[0]), ratio.low if ratio.low > 0 else 1.0, 1.0)
    high = max(float(inner[1]), min(ratio.high, 100.0), 1.0)
    pad = max(high - low, 1e-3) * 0.06
    low, high = low - pad, high + pad

    def at(value: float) -> float:
        inside = min(max(value, low), high)
        return _LEFT + (inside - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    parts = [line(_LEFT, 128, at(high), 128, "axis")]
    for value in ticks(low, high, 8):
        parts += [
            line(at(value), 128, at(value), 132, "axis"),
            text(at(value), 147, f"{value:.6g}"),
        ]
    parts.append(text((_LEFT + at(high)) / 2, 168, f"time of {b} / time of {a}", kind="label"))
    shown = values[:: max(1, len(values) // 1500)]
    for i, value in enumerate(shown):
        if low <= value <= high:
            # Spread over the height by a fixed irrational step: no two neighbours overlap.
            y = 24 + (i * 0.6180339887 % 1) * 96
            parts.append(f'<circle cx="{at(float(value)):.1f}" cy="{y:.1f}" r="1.7" class="dot"/>')
    parts += [
        line(at(1), 14, at(1), 128, "one"),
        text(at(1), 10, "equal"),
        line(at(ratio.low), middle, at(ratio.high), middle, "interval"),
        f'<circle cx="{at(ratio.median):.1f}" cy="{middle}" r="6" class="centre"/>',
    ]
    return _svg(height, parts, "ratio of the two times")


def roofline_plot(series: Sequence[tuple[str, Roofline]]) -> str:
    """Achieved FLOP/s over arithmetic intensity, both logarithmic, under the measured roof."""
    top, bottom, left = 20, 262, 92
    peaks, ridge = series[0][1].peaks, series[0][1].ridge
    spots = [(n, r.intensity, r.flops / r.achieved_ms * 1e3) for n, r in series if r.intensity]
    x0 = floor(log10(min(ridge, *(s[1] for s in spots))) - 0.6)
    x1 = ceil(log10(max(ridge, *(s[1] for s in spots))) + 0.6)
    y1 = log10(peaks.flops_per_second) + 0.35
    y0 = min(floor(log10(min(s[2] for s in spots))), floor(y1) - 2)

    def at(intensity: float) -> float:
        return left + (log10(intensity) - x0) / (x1 - x0) * (_WIDTH - _RIGHT - left)

    def up(speed: float) -> float:
        return bottom - (log10(speed) - y0) / (y1 - y0) * (bottom - top)

    parts = []
    for power in range(x0, x1 + 1):
        x = at(10.0**power)
        parts += [line(x, top, x, bottom, "grid"), text(x, bottom + 18, f"{10.0**power:g}")]
    for power in range(y0, floor(y1) + 1):
        y, words = up(10.0**power), f"{q.operations(10.0**power, whole=True)}/s"
        parts += [
            line(left, y, at(10.0**x1), y, "grid"),
            text(left - 8, y + 4, words, anchor="end"),
        ]
    start = max(10.0**x0, 10.0**y0 / peaks.bytes_per_second)
    corners = [(start, start * peaks.bytes_per_second)]
    corners += [(x, peaks.flops_per_second) for x in (ridge, 10.0**x1)]
    parts.append(_path([(at(x), up(y)) for x, y in corners], "roof"))
    words = f"{q.operations(peaks.flops_per_second)}/s, measured"
    parts.append(text(at(10.0**x1), up(peaks.flops_per_second) - 8, words, anchor="end"))
    half = (start * ridge) ** 0.5
    words = f"{q.byte_size(peaks.bytes_per_second)}/s, measured"
    # Below the slope: on its other side are the numbers of the axis.
    parts.append(text(at(half) + 10, up(half * peaks.bytes_per_second) + 14, words, anchor="start"))
    label_y = [up(speed) + 5 for _, _, speed in spots]
    if len(spots) == 2 and abs(label_y[0] - label_y[1]) < 16:
        lower = int(label_y[1] >= label_y[0])
        label_y[lower], label_y[1 - lower] = max(label_y) + 9, min(label_y) - 9
    down = max(0.0, up(peaks.flops_per_second) + 20 - min(label_y))  # clear of the roof's line
    for index, (name, intensity, speed) in enumerate(spots):
        x, y = at(intensity), up(speed)
        limit = min(peaks.flops_per_second, intensity * peaks.bytes_per_second)
        far = x > (left + _WIDTH) / 2
        parts += [
            line(x, y, x, up(limit), f"mark c{index}"),
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" class="s{index}"/>',
            text(
                x - 13 if far else x + 13,
                label_y[index] + down,
                f"{name}: {q.operations(speed)}/s",
                anchor="end" if far else "start",
                kind=f"strong t{index}",
            ),
        ]
    middle = (left + _WIDTH - _RIGHT) / 2
    parts.append(text(middle, bottom + 42, "FLOP per byte that must move", kind="label"))
    return _svg(bottom + 50, parts, "roofline")
