"""What several commands of `compress3g index` share: options, opening, threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import require

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
RAY = click.option(
    "--ray", is_flag=True, help="Share the scoring out to Ray actors; RAY_ADDRESS names a cluster."
)
ACTORS = click.option(
    "--actors", type=click.IntRange(1), help="With --ray (default: one for 4 processors)."
)
THREADS = click.option("--threads", type=click.IntRange(1), help="CPU threads (default: all).")


def open_index(path: Path, *, allow_damaged: bool = False) -> Index:
    """The index in a folder."""
    from .index import Index

    return Index.open(path, allow_damaged=allow_damaged)


@contextmanager
def searched_index(
    path: Path, *, allow_damaged: bool, ray: bool, actors: int | None
) -> Iterator[Index]:
    """The index in a folder, to be searched here or by Ray actors; closed at the end."""
    if actors and not ray:
        raise click.UsageError("--actors needs --ray.")
    if not ray:
        with open_index(path, allow_damaged=allow_damaged) as opened:
            yield opened
        return
    require("ray", extra="ray", purpose="--ray")
    from .sharded import open_sharded

    with open_sharded(path, actors=actors, allow_damaged=allow_damaged) as sharded:
        yield sharded


def use_threads(threads: int | None) -> None:
    """CPU threads, where a number is given."""
    if threads:
        import torch

        torch.set_num_threads(threads)
