"""The profile as one HTML file that needs nothing else: no script, no font, no network."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from . import plots
from . import quantities as q
from .report import Profile, Report, rows, verdict

# Of every page that this package writes.
STYLE = """
:root { color-scheme: light dark; --ground: #fbfbfa; --card: #fff; --ink: #1d2126;
  --soft: #636b75; --rule: #e3e5e8; --one: #2364aa; --two: #c2570c; --note: #fff5e0;
  --noted: #7a4b00; }
@media (prefers-color-scheme: dark) { :root { --ground: #14171a; --card: #1b1f24; --ink: #e6e9ec;
  --soft: #98a1ab; --rule: #2e343b; --one: #6cb0f5; --two: #f2a35e; --note: #33280f;
  --noted: #f0c674; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui,
  -apple-system, "Segoe UI", "Helvetica Neue", "DejaVu Sans", sans-serif; }
main { max-width: 980px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 4px; letter-spacing: -0.01em;
  overflow-wrap: anywhere; }
h2 { font-size: 16px; margin: 0 0 12px; }
p { margin: 0 0 8px; }
.soft { color: var(--soft); }
section, .tile { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; }
section { padding: 20px 24px; margin-top: 20px; }
.note { background: var(--note); color: var(--noted); border-radius: 8px; padding: 10px 16px;
  margin: 16px 0 0; }
.verdict { font-size: 18px; font-weight: 600; line-height: 1.4; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(165px, 1fr)); gap: 12px;
  margin-top: 20px; }
.tile { padding: 14px 16px; }
.tile b { display: block; font-size: 19px; font-weight: 600; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: 13px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 5px 0 5px 16px; border-bottom: 1px solid var(--rule);
  white-space: nowrap; }
tr:last-child td { border-bottom: 0; }
th { font-weight: 600; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
td:first-child { color: var(--soft); }
td.wide { white-space: normal; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
.name { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: 13px; }
.key { display: inline-block; width: 11px; height: 11px; border-radius: 3px; margin-right: 6px; }
section { overflow-x: auto; }
svg { display: block; width: 100%; min-width: 640px; height: auto; }
svg text { font-size: 12.5px; fill: var(--soft); font-variant-numeric: tabular-nums; }
svg .strong { font-weight: 600; }
svg .label { font-size: 13px; }
svg .t0 { fill: var(--one); }
svg .t1 { fill: var(--two); }
.axis { stroke: var(--soft); }
.grid { stroke: var(--rule); }
.s0 { fill: var(--one); background: var(--one); }
.s1 { fill: var(--two); background: var(--two); }
.bar { opacity: 0.38; }
.curve { fill: none; stroke-width: 2; }
.c0 { stroke: var(--one); }
.c1 { stroke: var(--two); }
.mark { stroke-width: 1.5; stroke-dasharray: 4 3; }
.dot { fill: var(--soft); opacity: 0.35; }
.one { stroke: var(--ink); stroke-dasharray: 2 3; }
.roof { fill: none; stroke: var(--ink); stroke-width: 2; }
.interval { stroke: var(--one); stroke-width: 5; stroke-linecap: round; }
.centre { fill: var(--one); stroke: var(--card); stroke-width: 2; }
"""


def to_html(report: Report) -> str:
    """The whole page."""
    title = " against ".join(p.name for p in report.profiles)
    sections = [
        _comparison(report),
        _latency(report.profiles),
        _operations(report.profiles),
        _roofline(report.profiles),
        *(_kernels(p) for p in report.profiles),
        _figures(report),
        _environment(report.profile),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<header>\n<h1>{_titled(report.profiles)}</h1>\n"
        f'<p class="soft">{escape(_where(report.profile))}</p>\n{_left_out(report)}</header>\n'
        f"{_tiles(report.profile) if report.against is None else ''}"
        + "\n".join(section for section in sections if section)
        + "\n</main>\n</body>\n</html>\n"
    )


def _titled(profiles: Sequence[Profile]) -> str:
    if len(profiles) == 1:
        return escape(profiles[0].name)
    return ' <span class="soft">against</span> '.join(
        f'<i class="key s{i}"></i>{escape(p.name)}' for i, p in enumerate(profiles)
    )


def _where(p: Profile) -> str:
    env = p.env
    machine = env.get("gpu") or env["cpu"]
    return (
        f"{machine}, {q.plural(int(env['threads']), 'thread')}, torch {env['torch']}, {env['time']}"
    )


def _left_out(report: Report) -> str:
    missing: dict[str, int] = {}
    for p in report.profiles:
        for name, calls in p.uncounted_ops.items():
            missing[name] = max(calls, missing.get(name, 0))
    if not missing:
        return ""
    names = ", ".join(
        f"{escape(name.removeprefix('aten.'))} ×{calls:,}"
        for name, calls in list(missing.items())[:12]
    )
    more = f" and {len(missing) - 12} more" if len(missing) > 12 else ""
    return (
        f'<p class="note">FLOPs count products of matrices, convolutions, attention and this '
        f"package's kernels. They leave out {len(missing)} operators: "
        f'<span class="name">{names}</span>{more}.</p>\n'
    )


def _tiles(p: Profile) -> str:
    shown = [
        ("median latency", q.milliseconds(p.latency.p50) if p.latency else None),
        (
            f"FLOPs ({q.operations(p.macs or 0, 'MAC')})",
            q.operations(p.flops) if p.flops is not None else None,
        ),
        ("peak memory", q.byte_size(p.peak_bytes) if p.peak_bytes is not None else None),
        ("saved for backward", q.byte_size(p.saved_bytes) if p.saved_bytes is not None else None),
        ("parameters", f"{p.params:,}" if p.size else None),
        ("energy per call", q.joules(p.energy_j) if p.energy_j is not None else None),
    ]
    tiles = "".join(
        f'<div class="tile"><b>{value}</b><span>{label}</span></div>\n'
        for label, value in shown
        if value is not None
    )
    return f'<div class="tiles">\n{tiles}</div>\n'


def _section(title: str, body: str, words: str = "") -> str:
    said = f'<p class="soft">{words}</p>\n' if words else ""
    return f"<section>\n<h2>{title}</h2>\n{said}{body}\n</section>"


def _comparison(report: Report) -> str:
    if report.comparison is None or report.against is None:
        return ""
    picture = plots.ratio_plot(report.comparison, report.profile.name, report.against.name)
    words = (
        "Each dot is the ratio of two neighbouring samples, the bar the 95 % interval of their "
        "median. An interval that contains 1 has no winner."
    )
    said = f'<p class="verdict">{escape(verdict(report))}</p>\n<p class="soft">{words}</p>\n'
    return _section("Which is faster", said + picture)


def _latency(profiles: Sequence[Profile]) -> str:
    series = [(p.name, p.latency) for p in profiles if p.latency is not None]
    if not series:
        return ""
    words = "Bars: share of samples, scaled. Line: share of samples that are faster."
    restless = [name for name, latency in series if not latency.steady]
    if restless:
        words += f" Warm-up did not settle: {escape(', '.join(restless))}."
    return _section("Latency", plots.latency_plot(series), words)


def _operations(profiles: Sequence[Profile]) -> str:
    if not any(p.flops_by_op for p in profiles):
        return ""
    totals = " and ".join(
        f"{q.operations(p.flops or 0)} = {q.operations(p.macs or 0, 'MAC')}" for p in profiles
    )
    picture = plots.bar_plot([p.flops_by_op for p in profiles], q.operations)
    return _section("FLOPs by operator", picture, f"{totals}, two operations per multiply-add.")


def _roofline(profiles: Sequence[Profile]) -> str:
    series = [(p.name, p.roofline) for p in profiles if p.roofline and p.roofline.flops]
    if not series:
        return ""
    said = []
    for name, r in series:
        bound = "arithmetic" if r.compute_floor_ms >= r.bandwidth_floor_ms else "bandwidth"
        over = f"{q.digits(r.achieved_over_floor or 0, 3)} times its floor"
        said.append(
            f"{escape(name)} takes {over} of {q.milliseconds(r.floor_ms)}, which {bound} sets"
        )
    return _section("Roofline", plots.roofline_plot(series), f"{'; '.join(said)}.")


def _kernels(p: Profile) -> str:
    if p.trace is None:
        return ""
    body = "".join(
        f'<tr><td class="wide name">{escape(k.name)}</td><td>{k.calls:,}</td>'
        f"<td>{q.milliseconds(k.ms)}</td><td>{q.percent(k.ms / p.trace.total_ms)}</td></tr>\n"
        for k in p.trace.kernels
    )
    words = (
        f"{q.milliseconds(p.trace.total_ms)} under the profiler, "
        f"{q.percent(p.trace.outside_ms / p.trace.total_ms)} of it outside any kernel."
    )
    head = "<tr><th>kernel</th><th>calls</th><th>own time</th><th>share</th></tr>\n"
    return _section(f"Kernels of {escape(p.name)}", f"<table>\n{head}{body}</table>", words)


def _figures(report: Report) -> str:
    head = "".join(f"<th>{escape(p.name)}</th>" for p in report.profiles)
    body = "".join(
        f"<tr><td>{escape(label)}</td>{''.join(f'<td>{escape(c)}</td>' for c in cells)}</tr>\n"
        for label, cells in rows(report)
    )
    reasons = {p.energy.source for p in report.profiles if p.energy and p.energy.joules is None}
    words = f"Energy is not known: {escape('; '.join(sorted(reasons)))}." if reasons else ""
    table = f'<div class="scroll"><table>\n<tr><th></th>{head}</tr>\n{body}</table></div>'
    return _section("All figures", table, words)


def _environment(p: Profile) -> str:
    body = "".join(
        f'<tr><td>{escape(key)}</td><td class="wide">{escape(value)}</td></tr>\n'
        for key, value in p.env.items()
    )
    return _section("Where this was measured", f"<table>\n{body}</table>")
