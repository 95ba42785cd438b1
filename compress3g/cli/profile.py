"""`compress3g profile`: what a function costs, and which of two is faster."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import click

from ..errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from ..profile import Report


def _module(name: str) -> ModuleType:
    """The module of that name, or of that .py file. ConfigError says why there is none."""
    try:
        if name.endswith(".py"):
            return _file(Path(name))
        if "" not in sys.path:  # an installed script does not look where the user stands
            sys.path.insert(0, "")
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise ConfigError(f"cannot import {name}: {_said(error)}") from error


def _file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ConfigError("there is no such file")
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    unique = f"{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    if unique in sys.modules:
        return sys.modules[unique]
    spec = importlib.util.spec_from_file_location(unique, path)
    if spec is None or spec.loader is None:
        raise ConfigError("it is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[unique] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[unique]
        raise
    return module


def _said(error: BaseException) -> str:
    words = " ".join(str(error).split())
    if isinstance(error, ConfigError):
        return words
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def load(target: str) -> tuple[nn.Module | None, Callable[[], Any], str]:
    """Model (or None), what runs one iteration, and its name, of MODULE:FUNCTION.

    The function is called once: it runs one iteration, or returns (model, run) or run.
    Raises ConfigError when there is no such thing or the call fails.
    """
    from torch import nn

    place, colon, name = target.rpartition(":")
    if not colon or not place or not name:
        raise ConfigError(f"{target!r} is not MODULE:FUNCTION, as in bench.py:step or pkg.mod:step")
    module = _module(place)
    function = getattr(module, name, None)
    if not callable(function):
        known = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise ConfigError(f"{place} has no function {name}: it has {', '.join(known) or 'none'}")
    guarded = _guarded(function, target)
    found = guarded()
    if isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], nn.Module):
        model, run = found
        if not callable(run):
            raise ConfigError(
                f"{target} returned a model and a {type(run).__name__}, not (model, run)"
            )
        return model, _guarded(run, target), name
    if callable(found) and not isinstance(found, nn.Module):
        return None, _guarded(found, target), name
    return None, guarded, name


def _guarded(function: Callable[[], Any], target: str) -> Callable[[], Any]:
    """The function, with whatever it raises as one line: it is the user's, not a bug of ours."""

    def run() -> Any:
        try:
            return function()
        except (Exception, SystemExit) as error:
            raise ConfigError(f"{target} raised {_said(error)}") from error

    return run


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
