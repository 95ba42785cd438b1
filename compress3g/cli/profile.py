"""`compress3g profile`: what a function costs, and which of two is faster."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..engine.user_code import function_of, guarded
from ..errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from ..profile import Report


def load(target: str) -> tuple[nn.Module | None, Callable[[], Any], str]:
    """Model (or None), what runs one iteration, and its name, of MODULE:FUNCTION.

    The function is called once: it runs one iteration, or returns (model, run) or run.
    Raises ConfigError when there is no such thing or the call fails.
    """
    from torch import nn

    function = function_of(target)
    name = target.rpartition(":")[2]
    found = function()
    if isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], nn.Module):
        model, run = found
        if not callable(run):
            raise ConfigError(
                f"{target} returned a model and a {type(run).__name__}, not (model, run)"
            )
        return model, guarded(run, target), name
    if callable(found) and not isinstance(found, nn.Module):
        return None, guarded(found, target), name
    return None, function, name


def _check_writable(paths: list[Path]) -> None:
    """Raises ConfigError before minutes are spent on figures that cannot be kept."""
    for path in paths:
        if path.is_dir():
            raise ConfigError(f"cannot write {path}: it is a folder")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab"):
                pass
            if path.stat().st_size == 0:
                path.unlink()
        except OSError as error:
            raise ConfigError(f"cannot write {path}: {error.strerror or error}") from error


def _keep(report: Report, json_file: Path | None, html_file: Path | None) -> None:
    from ..engine.checkpoint import atomic_write, write_json
    from ..profile.page import to_html

    if json_file is not None:
        write_json(json_file, report.to_json())
    if html_file is not None:
        page = to_html(report).encode()
        atomic_write(html_file, lambda file: file.write(page))


@click.command()
@click.argument("target", metavar="MODULE:FUNCTION")
@click.option("--against", metavar="MODULE:FUNCTION", help="Say which of the two is faster.")
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), help="All figures and samples."
)
@click.option("--html", "html_file", type=click.Path(path_type=Path), help="A page with plots.")
@click.option("--trace", type=click.Path(path_type=Path), help="A trace for chrome://tracing.")
@click.option("--no-latency", is_flag=True, help="Count, but do not time.")
@click.option("--seconds", type=float, default=2.0, show_default=True, help="Time for samples.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of torch, numpy and python.")
def profile(
    target: str,
    against: str | None,
    json_file: Path | None,
    html_file: Path | None,
    trace: Path | None,
    no_latency: bool,
    seconds: float,
    seed: int,
) -> None:
    """Say what a function costs: operations, time, memory, energy.

    MODULE is an importable name or a .py file. FUNCTION takes no arguments; it runs one iteration,
    or prepares one and returns (model, run).
    """
    from ..engine import run as engine
    from ..profile import Report, profile_both
    from ..profile import profile as measure

    if not 0 < seconds < 3600:
        raise ConfigError(f"--seconds {seconds:g} is out of range: use 0.1 to 3600")
    _check_writable([path for path in (json_file, html_file, trace) if path is not None])
    targets = [target] if against is None else [target, against]
    models, runs, names = [], [], []
    for which in targets:
        engine.seed(seed)
        model, run, name = load(which)
        label = which if len({t.rpartition(":")[2] for t in targets}) < len(targets) else name
        models.append(model)
        runs.append(run)
        names.append(label)
    if against is not None and not no_latency:
        report = profile_both(
            runs[0], runs[1], models=(models[0], models[1]), names=(names[0], names[1]),
            trace=trace, seconds=seconds, seed=seed,
        )  # fmt: skip
    else:
        profiles = [
            measure(
                run, model=model, latency=not no_latency, seconds=seconds, name=name,
                trace=trace if run is runs[0] else None,
            )
            for run, model, name in zip(runs, models, names, strict=True)
        ]  # fmt: skip
        report = Report(profile=profiles[0], against=profiles[1] if against else None)
    _keep(report, json_file, html_file)
    click.echo(report.to_markdown(), nl=False)
