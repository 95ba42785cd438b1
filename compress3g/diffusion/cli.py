"""`compress3g diffusion`: parses, calls, prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ..engine.options import options_from, resolve
from ..engine.user_code import function_of
from ..errors import ConfigError
from .aptp.cli import route
from .config import EcoDiffConfig
from .finetune_cli import finetune
from .options import JSON, PATH, SCORE, open_folder, prompts_of, quiet, sampling, where
from .scores import PruneConfig

_SHOWN = 12  # images of a row of a sheet


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def app() -> None:
    """Prune text-to-image pipelines and look at what became of them."""


app.add_command(route)


@app.command()
@click.argument("model", type=PATH)
@JSON
def inspect(model: Path, as_json: bool) -> None:
    """Say what can be removed from the pipeline in folder MODEL. Reads no weights."""
    from .inspection import inspect_folder
    from .units import kind_of

    quiet()
    found = inspect_folder(model)
    if as_json:
        click.echo(json.dumps(found.to_json()))
        return
    click.echo(f"{'group':58}{'units':>8}{'parameters each':>18}")
    for u in found.units:
        click.echo(f"{u.name:58}{u.size:>8,}{u.cost['params']:>18,.0f}")
    for s in found.skipped:
        click.echo(f"{s.name:58}  stays: {s.reason}")
    for kind in sorted({kind_of(u) for u in found.units}):
        total = sum(u.cost["params"] * u.size for u in found.units if kind_of(u) == kind)
        click.echo(f"{kind:12}{total:>16,.0f} parameters, {total / found.params:.1%}")
    click.echo(
        f"{found.denoiser}: {found.prunable:,} of {found.params:,} parameters can go "
        f"({found.prunable / found.params:.1%}), but one unit of each group"
    )


@app.command()
@click.argument("model", type=PATH)
@click.argument("masks", type=PATH)
@options_from(EcoDiffConfig)
@click.option("--prompts", "file", type=PATH, required=True, help="Text file, a prompt per line.")
@click.option("--cache", type=PATH, help="Folder for the dense model's last latents.")
@where
def learn(
    model: Path,
    masks: Path,
    config_file: Path | None,
    file: Path,
    cache: Path | None,
    device: str,
    dtype: str,
    **options: Any,
) -> None:
    """Learn what the pipeline in folder MODEL can do without; write file MASKS (EcoDiff).

    Interrupted, the same command goes on from MASKS.checkpoint. `prune --masks` takes the result.
    """
    from ..engine.folder import refuse_existing
    from .ecodiff import learn_masks
    from .pipelines import read_prompts
    from .processes import first
    from .recipe import TABLES

    config = resolve(EcoDiffConfig, options, config_file, table="learn", tables=TABLES)
    refuse_existing(masks)
    prompts = read_prompts(file)
    pipe = open_folder(model, device, dtype)
    checkpoint = masks.with_name(f"{masks.name}.checkpoint")
    learned = learn_masks(pipe, prompts, config, checkpoint=checkpoint, cache=cache)
    if not first():
        return
    learned.save(masks)
    checkpoint.unlink(missing_ok=True)
    last = learned.history[-1]
    click.echo(
        f"{len(learned.history)} updates: latent error {last['loss']:.4f} with "
        f"{last['open']:.1%} of what can go left (wanted {last['target']:.1%})"
    )
    if learned.missed > 0.05 and config.reg == "l0":
        click.echo(
            "the budget was not reached: give more --updates, or larger --rho and --dual-rate"
        )
    if learned.stopped:
        click.echo(f"stopped: {learned.stopped}")
    click.echo(f"masks  {masks}")


@app.command()
@click.argument("model", type=PATH)
@click.argument("output", type=PATH)
@options_from(PruneConfig)
@click.option("--prompts", "file", type=PATH, help="Text file with a prompt per line.")
@click.option("--masks", type=PATH, help="What `learn` wrote, in place of a method.")
@click.option("--sheet", type=PATH, help="PNG of dense and pruned images, same seeds.")
@SCORE
@click.option(
    "--self-contained", is_flag=True, help="Loads without compress3g (trust_remote_code)."
)
@where
@JSON
def prune(
    model: Path,
    output: Path,
    config_file: Path | None,
    file: Path | None,
    masks: Path | None,
    sheet: Path | None,
    score: str | None,
    self_contained: bool,
    device: str,
    dtype: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Remove units from the denoiser of the pipeline in folder MODEL; write folder OUTPUT.

    A recipe, TOML with tables [prune], [learn] and [finetune], is a --config too: the same command
    then learns masks, prunes and recovers, and interrupted goes on from OUTPUT.learn, .finetune.
    """
    from ..engine.folder import refuse_existing
    from .learned import Learned
    from .likeness import likeness, pictures
    from .pipelines import NEUTRAL, denoiser_of, read_prompts
    from .processes import first
    from .prune import priced_units
    from .pruned_models import save
    from .recipe import TABLES, Recipe
    from .report import report
    from .sheet import write_sheet

    if masks is not None:
        options["method"] = "ecodiff"
    config = resolve(PruneConfig, options, config_file, table="prune", tables=TABLES)
    recipe = Recipe.of(config, config_file)
    refuse_existing(output)
    prompts = read_prompts(file) if file is not None else []
    learned = Learned.load(masks) if masks is not None else None
    recipe.check(prompts, masks=learned is not None)
    for option, value in (("--sheet", sheet), ("--score", score)):
        if value is not None and not prompts:
            raise ConfigError(f"{option} needs --prompts FILE")
    judge = None if score is None else function_of(score)
    pipe = open_folder(model, device, dtype)
    if learned is not None:
        learned.check(priced_units(denoiser_of(pipe)[1], config.wanted))

    def look() -> Any:
        """Images to compare: as many as a score needs, or as fit on a sheet."""
        few = prompts[: config.samples if judge is not None else _SHOWN]
        how: dict[str, Any] = {"steps": config.steps, "guidance": config.guidance}
        images = sheet is not None or judge is not None
        return pictures(pipe, few, **how, seed=config.seed, images=images) if few else None

    shown = prompts[:1] or [NEUTRAL]
    dense, before = report(pipe, prompts=shown, seconds=None), look()
    stopped = recipe.carry_out(
        pipe, prompts, learned=learned, dense=lambda: open_folder(model, device, dtype),
        checkpoint=output,
    )  # fmt: skip
    if not first():
        return
    small, after = report(pipe, prompts=shown, seconds=None), look()
    save(pipe, output, self_contained=self_contained)
    if sheet is not None:
        write_sheet(sheet, [made.images[:_SHOWN] for made in (before, after)])
    like = likeness(before, after, judge) if before is not None else None
    if as_json:
        told = {"dense": dense.to_json(), "pruned": small.to_json(), "output": str(output)}
        if like is not None:
            told["likeness"] = like.to_json()
        click.echo(json.dumps(told))
        return
    click.echo(f"{dense}\n\n{small}\n")
    if like is not None:
        click.echo(f"{like}\n")
    click.echo(
        f"{config.method}: {1 - small.params / dense.params:.1%} of the parameters and "
        f"{1 - small.macs / dense.macs:.1%} of the multiply-adds are gone"
    )
    if stopped:
        click.echo(f"stopped: {stopped}")
    click.echo(f"pipeline  {output}")
    click.echo(f"time      compress3g diffusion bench {model} {output}")
    click.echo(
        f'load      import compress3g.diffusion; DiffusionPipeline.from_pretrained("{output}")'
    )


@app.command()
@click.argument("model", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, help="PNG file.")
@click.option("--lora", type=PATH, help="A LoRA of the dense pipeline, file or folder.")
@sampling
@where
def generate(
    model: Path,
    output: Path,
    lora: Path | None,
    given: tuple[str, ...],
    file: Path | None,
    steps: int | None,
    guidance: float | None,
    seed: int,
    device: str,
    dtype: str,
) -> None:
    """Make one image per prompt with the pipeline in folder MODEL, side by side in a PNG."""
    from .lora import load_lora
    from .pipelines import generate as make
    from .sheet import write_sheet

    prompts = prompts_of(given, file)
    pipe = open_folder(model, device, dtype)
    if lora is not None:
        load_lora(pipe, lora)
    write_sheet(output, [make(pipe, prompts, seed=seed, steps=steps, guidance=guidance)])
    click.echo(f"{len(prompts)} images  {output}")


@app.command("eval")
@click.argument("dense", type=PATH)
@click.argument("pruned", type=PATH)
@click.option("--sheet", type=PATH, help="PNG of both pipelines' images.")
@SCORE
@sampling
@where
@JSON
def evaluate(
    dense: Path,
    pruned: Path,
    sheet: Path | None,
    score: str | None,
    given: tuple[str, ...],
    file: Path | None,
    steps: int | None,
    guidance: float | None,
    seed: int,
    device: str,
    dtype: str,
    as_json: bool,
) -> None:
    """Say how far PRUNED's images are from DENSE's, for the same prompts and seeds."""
    from .likeness import likeness, pictures
    from .sheet import write_sheet

    prompts, judge = prompts_of(given, file), None if score is None else function_of(score)
    how: dict[str, Any] = {"seed": seed, "steps": steps, "guidance": guidance, "images": True}
    pipes = [open_folder(folder, device, dtype) for folder in (dense, pruned)]
    ours, theirs = (pictures(pipe, prompts, **how) for pipe in pipes)
    found = likeness(ours, theirs, judge)
    if sheet is not None:
        write_sheet(sheet, [made.images for made in (ours, theirs) if made.images is not None])
    click.echo(json.dumps(found.to_json()) if as_json else found)


@app.command()
@click.argument("models", nargs=-1, required=True, type=PATH)
@click.option("--batch", default=1, show_default=True, type=click.IntRange(min=1))
@click.option("--seconds", default=3.0, show_default=True, help="Of each timing.")
@where
@JSON
def bench(
    models: tuple[Path, ...], batch: int, seconds: float, device: str, dtype: str, as_json: bool
) -> None:
    """Measure the denoisers of pipelines; all but the first against it, in turn."""
    from .pipelines import NEUTRAL
    from .report import race, report

    pipes = [open_folder(folder, device, dtype) for folder in models]
    prompts = [NEUTRAL] * batch
    reports = [report(pipe, prompts=prompts, seconds=seconds) for pipe in pipes]
    ratios = [race(pipes[0], pipe, prompts=prompts, seconds=seconds) for pipe in pipes[1:]]
    if as_json:
        rows = [{**r.to_json(), "model": str(m)} for r, m in zip(reports, models, strict=True)]
        for row, ratio in zip(rows[1:], ratios, strict=True):
            row["time_ratio"] = [ratio.median, ratio.low, ratio.high]
        click.echo(json.dumps(rows))
        return
    for folder, measured in zip(models, reports, strict=True):
        click.echo(f"{folder}\n{measured}\n")
    for folder, ratio in zip(models[1:], ratios, strict=True):
        click.echo(
            f"{folder}: {1 / ratio.median:.2f} times as fast as {models[0]} "
            f"({1 / ratio.high:.2f} to {1 / ratio.low:.2f})"
        )


app.add_command(finetune)
