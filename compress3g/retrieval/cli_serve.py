"""`compress3g index serve`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ..errors import require
from .cli_options import ACTORS, DAMAGED, INDEX, JSON, RAY, THREADS, searched_index, use_threads


@click.command()
@INDEX
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--port", default=8311, show_default=True, type=click.IntRange(0, 65535),
              help="0 for any that is free.")  # fmt: skip
@RAY
@ACTORS
@DAMAGED
@THREADS
@JSON
def serve(
    index: Path,
    host: str,
    port: int,
    ray: bool,
    actors: int | None,
    allow_damaged: bool,
    threads: int | None,
    as_json: bool,
) -> int:
    """Show an index in a browser: search, pages, heat maps. Ctrl-C ends it."""
    for module in ("fastapi", "uvicorn"):
        require(module, extra="serve", purpose="`index serve`")
    from .server.run import serve as run

    def ready(address: str) -> None:
        about = {"url": address, "pages": len(opened)}
        click.echo(json.dumps(about) if as_json else f"{address}  (Ctrl-C ends it)")

    use_threads(threads)
    with searched_index(index, allow_damaged=allow_damaged, ray=ray, actors=actors) as opened:
        run(opened, host, port, ready=ready)
    return 0
