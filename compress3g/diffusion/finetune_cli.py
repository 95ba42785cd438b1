"""`compress3g diffusion finetune`: parses, calls, prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ..engine.options import options_from, resolve
from .finetune import FinetuneConfig
from .options import JSON, PATH, open_folder, where


@click.command()
@click.argument("model", type=PATH)
@click.argument("output", type=PATH)
@click.option("--dense", type=PATH, required=True, help="Folder of what MODEL was pruned from.")
@options_from(FinetuneConfig)
@click.option("--prompts", "file", type=PATH, required=True, help="Text file, a prompt per line.")
@click.option("--cache", type=PATH, help="Folder for the dense model's images.")
@click.option("--sheet", type=PATH, help="PNG: dense, pruned, finetuned, same seeds.")
@where
@JSON
def finetune(
    model: Path,
    output: Path,
    dense: Path,
    config_file: Path | None,
    file: Path,
    cache: Path | None,
    sheet: Path | None,
    device: str,
    dtype: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Bring the pruned pipeline in folder MODEL closer to the dense one; write folder OUTPUT.

    Interrupted, the same command goes on from OUTPUT.checkpoint. Several GPUs share the work:
    `accelerate launch -m compress3g.cli.main diffusion finetune ...`
    """
    from ..engine.folder import refuse_existing
    from .finetune import finetune as recover
    from .metrics import relative_error
    from .pipelines import generate, read_prompts
    from .processes import first
    from .pruned_models import save
    from .recipe import TABLES
    from .sheet import write_sheet

    config = resolve(FinetuneConfig, options, config_file, table="finetune", tables=TABLES)
    refuse_existing(output)
    prompts = read_prompts(file)
    teacher, pipe = (open_folder(folder, device, dtype) for folder in (dense, model))
    how: dict[str, Any] = {"steps": config.steps, "guidance": config.guidance, "seed": config.seed}

    def shown(of: Any) -> tuple[Any, Any]:
        few = prompts[:12]
        rows = generate(of, few, **how) if sheet is not None else None
        return generate(of, few, **how, output="latent").float().cpu(), rows

    wanted, before = shown(teacher), shown(pipe)
    checkpoint = output.with_name(f"{output.name}.checkpoint")
    found = recover(pipe, teacher, prompts, config, checkpoint=checkpoint, cache=cache)
    if not first():
        return  # the first process has the same weights, and writes them
    after = shown(pipe)
    save(pipe, output)
    checkpoint.unlink(missing_ok=True)
    if sheet is not None:
        write_sheet(sheet, [rows for _, rows in (wanted, before, after)])
    errors = [relative_error(latents, wanted[0]) for latents, _ in (before, after)]
    if as_json:
        told: dict[str, Any] = {"updates": len(found.history), "stopped": found.stopped}
        click.echo(
            json.dumps(
                {**told, "latent_error": dict(zip(("before", "after"), errors, strict=True))}
            )
        )
        return
    click.echo(
        f"{len(found.history)} updates: latent error {errors[0]:.4f} before, {errors[1]:.4f} after"
    )
    if found.stopped:
        click.echo(f"stopped: {found.stopped}")
    click.echo(f"pipeline  {output}")
