"""What several commands of `compress3g index` share: options, opening, threads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from .index import Index

JSON = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON: one object, or one a line."
)
INDEX = click.argument("index", type=click.Path(path_type=Path))
SOURCES = click.argument("sources", nargs=-1, required=True, type=click.Path())
META = click.option("--meta", multiple=True, metavar="KEY=VALUE", help="Metadata of the documents.")
STRICT = click.option("--strict", is_flag=True, help="Fail on the first file that cannot be read.")
DAMAGED = click.option("--allow-damaged", is_flag=True, help="Leave damaged segments out.")
THREADS = click.option("--threads", type=click.IntRange(1), help="CPU threads (default: all).")


def open_index(path: Path, *, allow_damaged: bool = False) -> Index:
    """The index in a folder."""
    from .index import Index

    return Index.open(path, allow_damaged=allow_damaged)


def use_threads(threads: int | None) -> None:
    """CPU threads, where a number is given."""
    if threads:
        import torch

        torch.set_num_threads(threads)
