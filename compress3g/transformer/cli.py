"""`compress3g prune`: parses, calls, prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ..engine.options import options_from, resolve
from .prune import PruneConfig, Pruned

_SHORTFALL = 0.02  # of the units' cost, from which it is said


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", type=click.Path(path_type=Path))
@options_from(PruneConfig)
@click.option("--calibrate", "data", type=click.Path(path_type=Path),
              help="Text file (one text per line) or folder of images.")  # fmt: skip
@click.option("-o", "--output", type=click.Path(path_type=Path), help="New folder of the model.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N")
@click.option("--dry-run", is_flag=True, help="Say what would go; write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def prune(
    model: Path,
    config_file: Path | None,
    data: Path | None,
    output: Path | None,
    device: str,
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Remove heads, neurons and layers from the Hugging Face transformer in folder MODEL."""
    from ..engine.folder import refuse_existing
    from ..engine.run import device as find_device
    from .pretrained import save_pretrained
    from .prune import open_model
    from .prune import prune as prune_model

    config = resolve(PruneConfig, options, config_file)
    if output is None and not dry_run:
        raise click.UsageError("Give -o OUT, or --dry-run.")
    if output is not None:
        refuse_existing(output)
    _quiet()
    opened = open_model(model, dtype=config.dtype, device=find_device(device))
    pruned = prune_model(opened, model, data, config)
    if not dry_run and output is not None:
        save_pretrained(output, pruned.model, model, {"pruned_by": pruned.to_json()})
    if as_json:
        written = None if dry_run else str(output)
        click.echo(json.dumps({**pruned.to_json(), "output": written}))
        return 0
    _print(pruned)
    if not dry_run:
        click.echo(f"model     {output}")
        click.echo(f'load      compress3g.transformer.from_pretrained("{output}")')
    return 0


def _quiet() -> None:
    """The library's own progress bars and reports would hide the one line that matters."""
    from ..errors import require

    transformers = require("transformers", extra="peft", purpose="Hugging Face models")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def _print(pruned: Pruned) -> None:
    for name in pruned.dropped:
        click.echo(f"{name:56}{'dropped':>16}")
    for name, (kept, size) in pruned.kept.items():
        click.echo(f"{name:56}{f'{kept:,} of {size:,}':>16}{kept / size:>8.0%}")
    before, after = pruned.params
    click.echo(
        f"\n{pruned.config.criterion}: {pruned.share:.1%} of the units' {pruned.config.budget} "
        f"stay; parameters {before:,} -> {after:,} ({after / before:.1%} of the whole model), "
        f"{pruned.seconds:.1f} s"
    )
    short = pruned.config.keep - pruned.share
    if short > _SHORTFALL:
        click.echo(
            f"budget    {100 * short:.1f} points less stay than --keep {pruned.config.keep:g} "
            "allows: layers, heads and neurons go whole, the worst first"
        )
    if pruned.refitted_on:
        click.echo(f"refit     what stays was fitted on {pruned.refitted_on} samples")
