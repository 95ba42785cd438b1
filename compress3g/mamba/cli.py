"""`compress3g mamba`: parses, calls, prints."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import click

from ..engine.options import options_from, resolve
from ..errors import ConfigError
from .cli_files import export, show
from .cli_options import (
    BATCH,
    CKPT,
    DATA,
    DEVICE,
    JSON,
    LIMIT,
    PATH,
    THREADS,
    backend_options,
    chosen_pruning,
    open_checkpoint,
    open_pictures,
    use_threads,
)  # fmt: skip
from .config import PruneOptions, described, numbers
from .train import TrainConfig


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def app() -> None:
    """Prune tokens of vision state-space models (ToP, 2409.18962, and its rivals)."""


app.add_command(show)
app.add_command(export)


@app.command()
@click.argument("ckpt", type=PATH)
@JSON
def info(ckpt: Path, as_json: bool) -> None:
    """Say what a checkpoint is: sizes, parameters, schedule, multiply-adds, how it was trained."""
    from ..profile import size_of
    from .flops import flops

    found = open_checkpoint(ckpt)
    config, schedule = found.model.config, found.pruning.schedule if found.pruning else None
    figures: dict[str, Any] = {
        "architecture": type(found.model).__name__,
        **dataclasses.asdict(config),
        "parameters": size_of(found.model).params,
        "pruning": described(found.pruning),
        "tokens": list(flops(config, schedule).tokens),
    }
    method = found.pruning.method if found.pruning else "drop"
    for convention in ("paper", "true"):
        cost = flops(config, schedule, convention=convention, method=method)
        figures[f"macs_{convention}"] = cost.total
        figures[f"macs_{convention}_dense"] = flops(config, convention=convention).total
    figures["preprocess"] = dataclasses.asdict(found.preprocess)
    figures["about"] = found.about
    if as_json:
        click.echo(json.dumps(figures))
        return
    for key, value in figures.items():
        shown = f"{value / 1e9:.4g} G" if key.startswith("macs") else _shown(value)
        click.echo(f"{key:18}{shown}")


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_shown(v)}" for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return " ".join(map(_shown, value))
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@app.command(name="eval")
@CKPT
@DATA
@options_from(PruneOptions)
@BATCH
@LIMIT
@backend_options
@JSON
def evaluate(
    ckpt: Path,
    data: Path,
    config_file: Path | None,
    batch: int,
    limit: int | None,
    threads: int | None,
    backend: str,
    device: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Accuracy of a checkpoint, dense or pruned."""
    from ..kernels import registry
    from .flops import flops
    from .patch import pruned
    from .train import accuracy

    use_threads(threads)
    chosen = resolve(PruneOptions, options, config_file)
    found = open_checkpoint(ckpt, device)
    pruning = chosen_pruning(found, chosen)
    pictures = open_pictures(data, limit)
    with registry.use(**registry.use_everywhere(backend)), pruned(found.model, pruning):
        top1 = accuracy(found.model, pictures, found.preprocess, batch=batch)
    cost = flops(found.model, pruning.schedule if pruning else None).total
    figures = {
        "top1": top1,
        "pictures": len(pictures),
        "pruning": described(pruning),
        "macs": cost,
        "macs_share": cost / flops(found.model).total,
    }
    if as_json:
        click.echo(json.dumps(figures))
        return
    click.echo(f"top-1     {top1:.2f} % of {len(pictures):,} pictures")
    click.echo(f"pruning   {figures['pruning']}")
    click.echo(f"cost      {cost / 1e9:.4g} G multiply-adds, {figures['macs_share']:.0%} of dense")


@app.command()
@CKPT
@DATA
@click.option("--keeps", default="1,.9,.8,.7,.6,.5", show_default=True)
@click.option("--scores", default="l1,clip,random", show_default=True)
@click.option("--aligns", default="none,current", show_default=True)
@click.option("--conv-aligns", default="none,zero", show_default=True)
@click.option("--layers", help="Blocks after which tokens go (default: three, evenly spread).")
@click.option("-o", "--out", type=PATH, help="Table as .json, .md or .png (default: print it).")
@BATCH
@LIMIT
@backend_options
def sweep(
    ckpt: Path,
    data: Path,
    keeps: str,
    scores: str,
    aligns: str,
    conv_aligns: str,
    layers: str | None,
    out: Path | None,
    batch: int,
    limit: int | None,
    threads: int | None,
    backend: str,
    device: str,
) -> None:
    """Accuracy over keeps, scores and alignments, without training."""
    from ..kernels import registry
    from .sweep import curve, grid, write

    use_threads(threads)
    if out is not None and out.suffix not in (".json", ".md", ".png"):
        raise ConfigError(f"--out {out}: give a name that ends in .json, .md or .png")
    found = open_checkpoint(ckpt, device)
    settings = grid(
        found.model,
        keeps=numbers(keeps, float, "--keeps"),
        layers=None if layers is None else numbers(layers, int, "--layers"),
        scores=scores.split(","),
        aligns=aligns.split(","),
        conv_aligns=conv_aligns.split(","),
    )
    with registry.use(**registry.use_everywhere(backend)):
        points = curve(found, open_pictures(data, limit), settings, batch=batch)
    if out is None:
        from .sweep import table

        click.echo(table(points), nl=False)
    else:
        write(out, points)
        click.echo(f"{out}  {len(points)} settings")


@app.command()
@CKPT
@DATA
@click.argument("output", type=PATH)
@options_from(PruneOptions)
@click.option("--recipe", type=PATH, help="TOML file of the training options.")
@click.option("--epochs", type=float, help="Passes over the pictures.")
@click.option("--lr", type=float, help="Highest learning rate.")
@click.option("--distill", type=float, help="Weight of the teacher's logits in the loss.")
@click.option("--seed", type=int, help="Of everything random.")
@click.option("--teacher", type=PATH, help="Checkpoint of a dense model (default: --ckpt's).")
@LIMIT
@backend_options
@JSON
def finetune(
    ckpt: Path,
    data: Path,
    output: Path,
    config_file: Path | None,
    recipe: Path | None,
    epochs: float | None,
    lr: float | None,
    distill: float | None,
    seed: int | None,
    teacher: Path | None,
    limit: int | None,
    threads: int | None,
    backend: str,
    device: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Train a pruned model on, the same tokens going in training as later; write folder OUTPUT."""
    from ..engine.folder import refuse_existing
    from ..engine.options import read_toml
    from ..kernels import registry
    from .checkpoint import save_checkpoint
    from .patch import apply_patch, remove_patch
    from .train import train

    use_threads(threads)
    refuse_existing(output)
    chosen = resolve(PruneOptions, options, config_file)
    typed = {"epochs": epochs, "lr": lr, "distill": distill, "seed": seed}
    values = {} if recipe is None else read_toml(TrainConfig, recipe)
    config = TrainConfig(**(values | {k: v for k, v in typed.items() if v is not None}))
    found = open_checkpoint(ckpt, device)
    pruning = chosen_pruning(found, chosen)
    if pruning is None:
        raise ConfigError("say what to prune: give --keep or --flops, or a pruned --ckpt")
    master = None
    if config.distill:
        master = open_checkpoint(teacher or ckpt, device).model
        remove_patch(master)
    apply_patch(found.model, pruning)
    with registry.use(**registry.use_everywhere(backend)):
        done = train(
            found.model, open_pictures(data, limit), found.preprocess, config, teacher=master
        )
    about = found.about | {"fine_tuned": dataclasses.asdict(config), "loss": done.loss}
    save_checkpoint(output, found.model, found.preprocess, about)
    if as_json:
        click.echo(json.dumps({"output": str(output), **dataclasses.asdict(done)}))
        return
    click.echo(f"{done.steps} steps in {done.cpu_seconds:.0f} s of processor: loss {done.loss:.3f}")
    click.echo(f"{output}  {described(pruning)}")


@app.command()
@click.option("--model", default="vim_tiny", show_default=True, help="Name, with random weights.")
@click.option("--ckpt", type=PATH, help="A checkpoint in place of --model.")
@click.option("--keeps", default="1,.8,.7", show_default=True)
@click.option("--layers", help="Blocks after which tokens go (default: three, evenly spread).")
@click.option("--align", default="current", show_default=True)
@click.option(
    "--backends", default="auto", show_default=True, help="Of the kernels, as cpu,chunked"
)
@click.option("--batch", type=click.IntRange(1), default=4, show_default=True)
@click.option("--seconds", type=float, default=5.0, show_default=True, help="For each setting.")
@THREADS
@DEVICE
@JSON
def bench(
    model: str,
    ckpt: Path | None,
    keeps: str,
    layers: str | None,
    align: str,
    backends: str,
    batch: int,
    seconds: float,
    threads: int | None,
    device: str,
    as_json: bool,
) -> None:
    """Throughput and latency, dense against pruned, with the ideal beside it."""
    from ..engine.run import device as find_device
    from ..kernels import registry
    from .bench import benchmark, table
    from .models import create_model
    from .sweep import grid

    use_threads(threads)
    where = find_device(device)
    made = (create_model(model) if ckpt is None else open_checkpoint(ckpt).model).to(where)
    settings = grid(
        made,
        keeps=numbers(keeps, float, "--keeps"),
        layers=None if layers is None else numbers(layers, int, "--layers"),
        aligns=[align],
    )
    rows = []
    for backend in backends.split(","):
        with registry.use(**registry.use_everywhere(backend)):
            for setting, speed in zip(
                settings,
                benchmark(made, settings, batch=batch, seconds=seconds),
                strict=True,
            ):
                keep = 1.0 if setting is None else setting.schedule.keep[0]
                rows.append({"backend": backend, "keep": keep, **speed.to_json()})
    if as_json:
        click.echo(json.dumps(rows))
        return
    click.echo(table(rows, where.type), nl=False)
