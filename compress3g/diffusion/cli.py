"""`compress3g diffusion`: parses, calls, prints."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ..engine.options import options_from, resolve
from ..errors import ConfigError
from .config import EcoDiffConfig
from .scores import PruneConfig

_NEUTRAL = "0"  # a prompt that every pipeline takes: a class number is also a text
_PATH = click.Path(path_type=Path)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
_DEVICE = click.option(
    "--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N"
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def app() -> None:
    """Prune text-to-image pipelines and look at what became of them."""


def _where(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of everything that opens a pipeline."""
    kinds = click.Choice(["float32", "bfloat16", "float16"])
    dtype = click.option("--dtype", type=kinds, default="float32", show_default=True)
    device = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda:N")
    made: Callable[..., Any] = device(dtype(command))
    return made


def _sampling(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of everything that makes images."""
    for option in (
        click.option("--seed", default=0, show_default=True, help="Of the first image."),
        click.option("--guidance", type=float, help="Guidance scale; unset: the pipeline's own."),
        click.option("--steps", type=click.IntRange(min=1), help="Unset: the pipeline's own."),
        click.option("--prompts", "file", type=_PATH, help="Text file with a prompt per line."),
        click.option("--prompt", "given", multiple=True, help="A prompt; may be repeated."),
    ):
        command = option(command)
    return command


def _prompts(given: tuple[str, ...], file: Path | None) -> list[str]:
    from .pipelines import read_prompts

    found = [*given, *(read_prompts(file) if file is not None else [])]
    if not found:
        raise click.UsageError("Give --prompt TEXT or --prompts FILE.")
    return found


def _open(folder: Path, device: str, dtype: str) -> Any:
    from ..engine.run import device as find_device
    from .pipelines import open_pipeline

    _quiet()
    return open_pipeline(folder, dtype=dtype, device=find_device(device))


def _quiet() -> None:
    """The libraries' own progress bars and advice would hide the lines that matter."""
    from ..errors import require

    for name in ("diffusers", "transformers"):
        library = require(name, extra="diffusion", purpose="diffusion pipelines")
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


@app.command()
@click.argument("model", type=_PATH)
@_JSON
def inspect(model: Path, as_json: bool) -> None:
    """Say what can be removed from the pipeline in folder MODEL. Reads no weights."""
    from .inspection import inspect_folder
    from .units import kind_of

    _quiet()
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
@click.argument("model", type=_PATH)
@click.argument("masks", type=_PATH)
@options_from(EcoDiffConfig)
@click.option("--prompts", "file", type=_PATH, required=True, help="Text file, a prompt per line.")
@click.option("--cache", type=_PATH, help="Folder for the dense model's last latents.")
@_where
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

    config = resolve(EcoDiffConfig, options, config_file)
    refuse_existing(masks)
    prompts = read_prompts(file)
    pipe = _open(model, device, dtype)
    checkpoint = masks.with_name(f"{masks.name}.checkpoint")
    learned = learn_masks(pipe, prompts, config, checkpoint=checkpoint, cache=cache)
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
@click.argument("model", type=_PATH)
@click.argument("output", type=_PATH)
@options_from(PruneConfig)
@click.option("--prompts", "file", type=_PATH, help="Text file with a prompt per line.")
@click.option("--masks", type=_PATH, help="What `learn` wrote, in place of a method.")
@click.option("--sheet", type=_PATH, help="PNG of dense and pruned images, same seeds.")
@click.option(
    "--self-contained", is_flag=True, help="Loads without compress3g (trust_remote_code)."
)
@_where
@_JSON
def prune(
    model: Path,
    output: Path,
    config_file: Path | None,
    file: Path | None,
    masks: Path | None,
    sheet: Path | None,
    self_contained: bool,
    device: str,
    dtype: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Remove units from the denoiser of the pipeline in folder MODEL; write folder OUTPUT."""
    from ..engine.folder import refuse_existing
    from .learned import Learned
    from .pipelines import denoiser_of, generate, read_prompts
    from .prune import priced_units
    from .prune import prune as prune_pipeline
    from .pruned_models import save
    from .report import report
    from .scores import scores_of
    from .sheet import write_sheet

    if masks is not None:
        options["method"] = "ecodiff"
    config = resolve(PruneConfig, options, config_file)
    refuse_existing(output)
    prompts = read_prompts(file) if file is not None else []
    learned = Learned.load(masks) if masks is not None else None
    if learned is None and config.looks and not prompts:
        raise ConfigError(f"--method {config.method} needs --prompts FILE")
    if sheet is not None and not prompts:
        raise ConfigError("--sheet needs --prompts FILE")
    pipe = _open(model, device, dtype)
    if learned is not None:
        learned.check(priced_units(denoiser_of(pipe)[1], config.wanted))
    shown: dict[str, Any] = {
        "steps": config.steps,
        "guidance": config.guidance,
        "seed": config.seed,
    }
    dense = report(pipe, prompts=prompts[:1] or [_NEUTRAL])
    rows = [generate(pipe, prompts[:12], **shown)] if sheet is not None else []
    scores = scores_of(pipe, prompts, config) if learned is None else learned
    prune_pipeline(pipe, scores, **config.how())
    small = report(pipe, prompts=prompts[:1] or [_NEUTRAL])
    save(pipe, output, self_contained=self_contained)
    if sheet is not None:
        write_sheet(sheet, [*rows, generate(pipe, prompts[:12], **shown)])
    if as_json:
        both = {"dense": dense.to_json(), "pruned": small.to_json()}
        click.echo(json.dumps({**both, "output": str(output)}))
        return
    click.echo(f"{dense}\n\n{small}\n")
    click.echo(
        f"{config.method}: {1 - small.params / dense.params:.1%} of the parameters and "
        f"{1 - small.macs / dense.macs:.1%} of the multiply-adds are gone"
    )
    click.echo(f"pipeline  {output}")
    click.echo(
        f'load      import compress3g.diffusion; DiffusionPipeline.from_pretrained("{output}")'
    )


@app.command()
@click.argument("model", type=_PATH)
@click.option("-o", "--output", type=_PATH, required=True, help="PNG file.")
@_sampling
@_where
def generate(
    model: Path,
    output: Path,
    given: tuple[str, ...],
    file: Path | None,
    steps: int | None,
    guidance: float | None,
    seed: int,
    device: str,
    dtype: str,
) -> None:
    """Make one image per prompt with the pipeline in folder MODEL, side by side in a PNG."""
    from .pipelines import generate as make
    from .sheet import write_sheet

    prompts = _prompts(given, file)
    pipe = _open(model, device, dtype)
    write_sheet(output, [make(pipe, prompts, seed=seed, steps=steps, guidance=guidance)])
    click.echo(f"{len(prompts)} images  {output}")


@app.command("eval")
@click.argument("dense", type=_PATH)
@click.argument("pruned", type=_PATH)
@click.option("--sheet", type=_PATH, help="PNG of both pipelines' images.")
@_sampling
@_where
@_JSON
def evaluate(
    dense: Path,
    pruned: Path,
    sheet: Path | None,
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
    from .metrics import psnr, relative_error, ssim
    from .pipelines import generate as make
    from .sheet import write_sheet

    prompts = _prompts(given, file)
    how: dict[str, Any] = {"seed": seed, "steps": steps, "guidance": guidance}
    pipes = [_open(folder, device, dtype) for folder in (dense, pruned)]
    images = [make(pipe, prompts, **how).float().cpu() for pipe in pipes]
    latents = [make(pipe, prompts, **how, output="latent").float().cpu() for pipe in pipes]
    figures = {
        "images": len(prompts),
        "latent_error": relative_error(latents[1], latents[0]),
        "ssim": float(ssim(images[0], images[1]).mean()),
        "psnr": float(psnr(images[1], images[0]).mean()),
    }
    if sheet is not None:
        write_sheet(sheet, images)
    if as_json:
        click.echo(json.dumps(figures))
        return
    click.echo(f"latent error  {figures['latent_error']:.4f} of the dense latents' mean square")
    click.echo(f"SSIM          {figures['ssim']:.4f}")
    click.echo(f"PSNR          {figures['psnr']:.2f} dB, over {len(prompts)} images")


@app.command()
@click.argument("models", nargs=-1, required=True, type=_PATH)
@click.option("--batch", default=1, show_default=True, type=click.IntRange(min=1))
@click.option("--seconds", default=3.0, show_default=True, help="Of each timing.")
@_where
@_JSON
def bench(
    models: tuple[Path, ...], batch: int, seconds: float, device: str, dtype: str, as_json: bool
) -> None:
    """Measure the denoisers of pipelines; all but the first against it, in turn."""
    from .report import race, report

    pipes = [_open(folder, device, dtype) for folder in models]
    prompts = [_NEUTRAL] * batch
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
