"""`compress3g peft`: parses, calls, prints."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from ..engine.options import options_from, resolve
from .config import LightPeftConfig
from .tune import TuneConfig

_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
_OUT = click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="New folder."
)
_FORM = click.option(
    "--form",
    type=click.Choice(["merged", "adapter", "delta"]),
    default="merged",
    show_default=True,
    help="What the folder holds.",
)
_DEVICE = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda")
_MODEL = click.argument("model", type=click.Path(path_type=Path))


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def app() -> None:
    """Fine-tune a model that gets smaller while it trains (Light-PEFT)."""


@app.command()
@_MODEL
@click.argument("data", type=click.Path(path_type=Path))
@_OUT
@options_from(TuneConfig)
@click.option("--test", type=click.Path(path_type=Path), help="File to measure on.")
@_FORM
@click.option("--paper", is_flag=True, help="Defaults as in the released script.")
@_DEVICE
@_JSON
def train(
    model: Path,
    data: Path,
    output: Path,
    config_file: Path | None,
    test: Path | None,
    form: Any,
    paper: bool,
    device: str,
    as_json: bool,
    **options: Any,
) -> int:
    """Tune the model in folder MODEL with DATA (.tsv, .csv, .jsonl; .txt for --task lm)."""
    from ..engine.folder import refuse_existing
    from ..engine.run import device as find_device
    from .folder import save
    from .tune import tune

    config = resolve(TuneConfig, options, config_file, preset=TuneConfig.paper() if paper else None)
    refuse_existing(output)
    _quiet()
    tuned = tune(model, data, config, test=test, device=find_device(device).type)
    save(output, tuned.model, model, form=form)
    report = tuned.light.report
    assert report is not None
    if as_json:
        figures = {**report.to_json(), tuned.measure: tuned.figure, "output": str(output)}
        click.echo(json.dumps(figures))
        return 0
    click.echo(str(report))
    click.echo(f"{tuned.measure:16}{_figure(tuned.measure, tuned.figure)}")
    base = f', "{model}"' if form == "delta" else ""
    click.echo(f'{"load":16}compress3g.peft.from_pretrained("{output}"{base})')
    return 0


@app.command()
@_MODEL
@click.argument("data", type=click.Path(path_type=Path))
@_OUT
@options_from(TuneConfig)
@click.option("--test", type=click.Path(path_type=Path), help="File to measure on.")
@click.option("--paper", is_flag=True, help="Defaults as in the released script.")
@_DEVICE
def estimate(
    model: Path,
    data: Path,
    output: Path,
    config_file: Path | None,
    test: Path | None,
    paper: bool,
    device: str,
    **options: Any,
) -> int:
    """First of three runs: tune MODEL with DATA until it is known what may go.

    May be started by torchrun in several processes.
    """
    from ..engine.run import device as find_device
    from .stages import estimate as run_estimation

    config = resolve(TuneConfig, options, config_file, preset=TuneConfig.paper() if paper else None)
    _quiet()
    kind = find_device(device).type
    steps = run_estimation(model, data, config, output, test=test, device=kind)
    _say(
        f"{'looked':16}{steps} of {config.steps} steps", f"{'next':16}compress3g peft cut {output}"
    )
    return 0


@app.command()
@click.argument("stage", type=click.Path(path_type=Path))
@_OUT
@_DEVICE
@_JSON
def cut(stage: Path, output: Path, device: str, as_json: bool) -> int:
    """Second of three runs, in one process: cut what `estimate` left in STAGE."""
    from ..engine.run import device as find_device
    from .stages import cut as run_cut

    _quiet()
    report = run_cut(stage, output, device=find_device(device).type)
    if as_json:
        click.echo(json.dumps({**report.to_json(), "output": str(output)}))
        return 0
    click.echo(str(report))
    click.echo(f"{'next':16}compress3g peft finish {output}")
    return 0


@app.command()
@click.argument("stage", type=click.Path(path_type=Path))
@_OUT
@_FORM
@_DEVICE
@_JSON
def finish(stage: Path, output: Path, form: Any, device: str, as_json: bool) -> int:
    """Last of three runs: train what `cut` left in STAGE to the end, and save it.

    May be started by torchrun in several processes.
    """
    from ..engine.run import device as find_device
    from .stages import finish as run_finish

    _quiet()
    figures = run_finish(stage, output, form=form, device=find_device(device).type)
    if as_json:
        _say(json.dumps({**figures, "output": str(output)}))
        return 0
    name = list(figures)[-1]
    _say(
        f"{name:16}{_figure(name, figures[name])}",
        f'{"load":16}compress3g.peft.from_pretrained("{output}")',
    )
    return 0


@app.command()
@_MODEL
@click.option("--exclude", default="", help="Comma-separated patterns of sites that stay whole.")
@_JSON
def inspect(model: Path, exclude: str, as_json: bool) -> int:
    """Say what could be removed from the model in folder MODEL: sites, units, parameters."""
    from ..core import price
    from ..transformer.pretrained import model_class, read_config, skeleton
    from .units import candidates

    config = read_config(model)
    built = skeleton(config, model_class(config, model))
    units, held = candidates(built, LightPeftConfig(exclude=exclude))
    priced = price(built, units)
    rows = {u.name: (u.size, round(u.cost["params"])) for u in priced}
    whole = sum(p.numel() for p in built.parameters())
    prunable = sum(size * each for size, each in rows.values())
    if as_json:
        sites = {name: {"units": size, "params_each": each} for name, (size, each) in rows.items()}
        figures = {"sites": sites, "held": held, "params": whole, "prunable": prunable}
        click.echo(json.dumps(figures))
        return 0
    for name, (size, each) in rows.items():
        click.echo(f"{name:56}{size:>8,} x {each:>10,}")
    for name in held:
        click.echo(f"{name:56}{'stays whole':>21}")
    click.echo(f"\n{prunable:,} of {whole:,} parameters are heads and neurons that may go")
    return 0


@app.command()
@click.argument("source", type=click.Path(path_type=Path))
@_OUT
@click.option("--base", type=click.Path(path_type=Path), help="Dense model, for a difference.")
@click.option("--with-remote-code", is_flag=True,
              help="Also write the code that loads it without compress3g.")  # fmt: skip
def merge(source: Path, output: Path, base: Path | None, with_remote_code: bool) -> int:
    """Merge the adapter in SOURCE (form adapter or delta) into its small base."""
    from .folder import merge as merge_folders
    from .remote import add_remote_code

    _quiet()
    merged = merge_folders(source, output, base)
    if with_remote_code:
        add_remote_code(output, merged)
    click.echo(f'{"load":16}compress3g.peft.from_pretrained("{output}")')
    return 0


@app.command()
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option("--batch", default=8, show_default=True, type=click.IntRange(1))
@click.option("--length", default=64, show_default=True, type=click.IntRange(1))
@click.option("--seconds", default=5.0, show_default=True, help="Of timing.")
@_JSON
def bench(a: Path, b: Path, batch: int, length: int, seconds: float, as_json: bool) -> int:
    """Time the models in folders A and B against each other on random tokens."""
    from .bench import race

    _quiet()
    figures = race(a, b, batch=batch, length=length, seconds=seconds)
    if as_json:
        click.echo(json.dumps(figures))
        return 0
    for name, value in figures.items():
        click.echo(f"{name:28}{value:,.3f}" if isinstance(value, float) else f"{name:28}{value:,}")
    return 0


def _say(*lines: str) -> None:
    """Lines that one of the processes of a distributed run prints for all."""
    if os.environ.get("RANK", "0") == "0":
        for line in lines:
            click.echo(line)


def _figure(measure: str, value: float) -> str:
    shown = f"{value:.2f}" if measure == "perplexity" else f"{value:.1%}"
    return f"{shown} on what was held out"


def _quiet() -> None:
    """The library's own bars and reports would hide the lines that matter."""
    import warnings

    from ..errors import require

    transformers = require("transformers", extra="peft", purpose="Hugging Face models")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)
