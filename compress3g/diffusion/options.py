"""Options that commands of `compress3g diffusion` share, and how they open a pipeline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

PATH = click.Path(path_type=Path)
SCORE = click.option(
    "--score", metavar="MODULE:FUNCTION", help="(images, prompts) -> a number for each image."
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def where(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of everything that opens a pipeline."""
    kinds = click.Choice(["float32", "bfloat16", "float16"])
    dtype = click.option("--dtype", type=kinds, default="float32", show_default=True)
    device = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda:N")
    made: Callable[..., Any] = device(dtype(command))
    return made


def sampling(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of everything that makes images."""
    for option in (
        click.option("--seed", default=0, show_default=True, help="Of the first image."),
        click.option("--guidance", type=float, help="Guidance scale; unset: the pipeline's own."),
        click.option("--steps", type=click.IntRange(min=1), help="Unset: the pipeline's own."),
        click.option("--prompts", "file", type=PATH, help="Text file with a prompt per line."),
        click.option("--prompt", "given", multiple=True, help="A prompt; may be repeated."),
    ):
        command = option(command)
    return command


def prompts_of(given: tuple[str, ...], file: Path | None) -> list[str]:
    """Those on the command line and those of the file; at least one."""
    from .pipelines import read_prompts

    found = [*given, *(read_prompts(file) if file is not None else [])]
    if not found:
        raise click.UsageError("Give --prompt TEXT or --prompts FILE.")
    return found


def open_folder(folder: Path, device: str, dtype: str) -> Any:
    """The pipeline in a folder, on the device of this process."""
    from ..engine.run import device as find_device
    from .pipelines import open_pipeline
    from .processes import join

    quiet()
    join()  # before the device is chosen
    return open_pipeline(folder, dtype=dtype, device=find_device(device))


def quiet() -> None:
    """The libraries' own progress bars and advice would hide the lines that matter."""
    from ..errors import require

    for name in ("diffusers", "transformers"):
        library = require(name, extra="diffusion", purpose="diffusion pipelines")
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
