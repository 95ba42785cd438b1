"""`compress3g mamba show | export`: files made of one model."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import click

from ..engine.options import options_from, resolve
from ..errors import ConfigError
from .cli_options import CKPT, JSON, PATH, chosen_pruning, open_checkpoint
from .config import PruneOptions, described


@click.command()
@click.argument("image", type=PATH)
@CKPT
@click.option("-o", "--out", type=PATH, default="kept.png", show_default=True, help="PNG file.")
@options_from(PruneOptions)
@JSON
def show(
    image: Path,
    ckpt: Path,
    out: Path,
    config_file: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Write a picture of the patches of IMAGE that stay after each prune point."""
    from ..engine.checkpoint import atomic_write
    from .patch import apply_patch
    from .picture import show_kept
    from .pictures import open_picture

    chosen = resolve(PruneOptions, options, config_file)
    picture = open_picture(image)
    found = open_checkpoint(ckpt)
    pruning = chosen_pruning(found, chosen)
    if pruning is None:
        raise ConfigError("say what to prune: give --keep or --flops, or a pruned --ckpt")
    if chosen.config(found.model) is not None:
        apply_patch(found.model, pruning)
    shown = show_kept(found, picture, image.name)
    atomic_write(out, lambda file: shown.sheet.save(file, format="PNG"))
    if as_json:
        figures = {
            "dense": dataclasses.asdict(shown.dense),
            "pruned": dataclasses.asdict(shown.pruned),
            "kept": shown.kept,
            "patches": shown.patches,
            "macs_share": shown.flops_share,
            "out": str(out),
        }
        click.echo(json.dumps(figures))
        return
    click.echo(f"dense   {shown.dense}")
    click.echo(f"pruned  {shown.pruned}  ({shown.kept[-1]} of {shown.patches} patches)")
    click.echo(f"{out}")


@click.command()
@CKPT
@click.argument("output", type=PATH)
@options_from(PruneOptions)
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True)
@click.option(
    "--format", "kind", type=click.Choice(["torch-export", "onnx"]), help="Default: by the name."
)
def export(
    ckpt: Path,
    output: Path,
    config_file: Path | None,
    batch: int,
    kind: str | None,
    **options: Any,
) -> None:
    """Write the model, pruned or not, as a file that runs without this package.

    A .pt2 file for torch, or an .onnx file. The numbers of tokens are fixed by the schedule; which
    tokens stay is up to each image.
    """
    from .patch import apply_patch

    if kind is None and output.suffix not in (".pt2", ".onnx"):
        raise ConfigError(f"{output}: give a name that ends in .pt2 or .onnx, or --format")
    chosen = resolve(PruneOptions, options, config_file)
    found = open_checkpoint(ckpt)
    pruning = chosen_pruning(found, chosen)
    if chosen.config(found.model) is not None and pruning is not None:
        apply_patch(found.model, pruning)
    if kind == "onnx" or (kind is None and output.suffix == ".onnx"):
        from .onnx_export import export_onnx, save_onnx

        file = export_onnx(found.model, batch=batch)
        save_onnx(output, file)
        click.echo(f"{output}  {len(file) / 1e6:,.1f} MB, {described(pruning)}")
        return
    from .export import export as exported
    from .export import save_program

    program = exported(found.model, batch=batch)
    save_program(output, program)
    click.echo(f"{output}  {len(program.graph.nodes):,} operators, {described(pruning)}")
