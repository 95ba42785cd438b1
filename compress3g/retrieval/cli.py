"""`compress3g index`: parses, calls, prints. What measures is in cli_measure.py."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..engine.options import options_from, resolve
from ..errors import DocumentError, require
from .cli_measure import bench, evaluate
from .cli_options import (
    ACTORS,
    DAMAGED,
    INDEX,
    JSON,
    META,
    RAY,
    SOURCES,
    STRICT,
    THREADS,
    open_index,
    searched_index,
    use_threads,
)
from .cli_serve import serve
from .config import PRESETS, IndexConfig
from .search_config import SearchConfig

if TYPE_CHECKING:
    from .build import Added, Note, Outcome
    from .index import Index

_SKIPPED = 3  # exit code


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def app() -> None:
    """Index and search pages of documents by their embeddings (HPC-ColPali and beyond)."""


app.add_command(evaluate)
app.add_command(bench)
app.add_command(serve)


@app.command()
@SOURCES
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True,
              help="Folder of the index; one that was interrupted goes on.")  # fmt: skip
@click.option("--encoder", default="text", show_default=True,
              help="A model, or vectors for files of vectors.")  # fmt: skip
@click.option("--preset", type=click.Choice(list(PRESETS)), default="balanced", show_default=True,
              help="Settings to start from; options given here win.")  # fmt: skip
@click.option("--ray", is_flag=True, help="Encode in Ray actors; RAY_ADDRESS names a cluster.")
@click.option("--actors", type=click.IntRange(1),
              help="With --ray (default: one a GPU, or one for 4 processors).")  # fmt: skip
@options_from(IndexConfig)
@META
@STRICT
@THREADS
@JSON
def build(
    sources: tuple[str, ...],
    output: Path,
    encoder: str,
    preset: str,
    ray: bool,
    actors: int | None,
    config_file: Path | None,
    meta: tuple[str, ...],
    strict: bool,
    threads: int | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Make an index of SOURCES: files, or folders of files.

    Exit code 3: made, but some files could not be read and were skipped.
    """
    from .documents import filled_index
    from .results import read_metadata

    if actors and not ray:
        raise click.UsageError("--actors needs --ray.")
    use_threads(threads)
    config = resolve(IndexConfig, options, config_file, preset=PRESETS[preset])
    metadata = read_metadata(meta)
    if ray:  # said before there is a folder
        require("ray", extra="ray", purpose="--ray")
    with filled_index(output, sources, encoder, config) as index:
        return _add(index, sources, metadata, strict, as_json, ray=ray, actors=actors)


@app.command()
@INDEX
@SOURCES
@META
@STRICT
@THREADS
@JSON
def add(
    index: Path,
    sources: tuple[str, ...],
    meta: tuple[str, ...],
    strict: bool,
    threads: int | None,
    as_json: bool,
) -> int:
    """Add SOURCES; unchanged files are left alone, changed ones replaced.

    Exit code 3: some files could not be read and were skipped.
    """
    from .results import read_metadata

    use_threads(threads)
    metadata = read_metadata(meta)
    with open_index(index) as opened:
        return _add(opened, sources, metadata, strict, as_json)


def _add(
    index: Index,
    sources: tuple[str, ...],
    metadata: Mapping[str, Any],
    strict: bool,
    as_json: bool,
    *,
    ray: bool = False,
    actors: int | None = None,
) -> int:
    with _progress(as_json) as (note, outcome):
        done = index.add(
            sources, metadata=metadata, strict=strict, ray=ray, actors=actors, note=note,
            outcome=outcome,
        )  # fmt: skip
    if done.skipped and not len(index):
        more = f" (and {len(done.skipped) - 1} more)" if len(done.skipped) > 1 else ""
        raise DocumentError(f"nothing could be read: {_shown_path(done.skipped[0][1])}{more}")
    _print_added(done, index, as_json)
    return _SKIPPED if done.skipped else 0


def _print_added(done: Added, index: Index, as_json: bool) -> None:
    counts = {
        name: len(getattr(done, name)) for name in ("added", "replaced", "unchanged", "skipped")
    }
    if as_json:
        about = {"pages": done.pages, "vectors": done.vectors, "retrained": done.retrained}
        click.echo(json.dumps({**counts, **about}))
        return
    for _, reason in done.skipped:
        click.echo(f"skipped: {_shown_path(reason)}", err=True)
    info = index.info()
    click.echo("  ".join(f"{name} {count}" for name, count in counts.items() if count))
    if done.retrained:
        click.echo(
            f"the index has grown: its codebook was trained again, on {info.trained_on:,} vectors,"
            f" and has {info.centroids:,} centroids now"
        )
    click.echo(
        f"{index.path}  {info.documents:,} documents, {info.pages:,} pages,"
        f" {info.bytes_per_page:,.0f} bytes a page"
    )


@contextmanager
def _progress(as_json: bool) -> Iterator[tuple[Note, Outcome]]:
    """A live line on a terminal; with --json a line for every document."""
    from ..engine.progress import Progress

    with Progress("index") as line:

        def note(what: str, done: int, total: int) -> None:
            line.update({what: f"{done:,}/{total:,}"}, done / max(total, 1))

        def outcome(path: str, what: str, pages: int) -> None:
            if as_json:
                click.echo(json.dumps({"path": path, "outcome": what, "pages": pages}))

        yield note, outcome


@app.command()
@INDEX
@click.argument("document", required=False)
@click.option("--where", help="Condition over metadata instead of a document.")
@JSON
def remove(index: Path, document: str | None, where: str | None, as_json: bool) -> int:
    """Remove a DOCUMENT by its path, or all that a condition selects."""
    with open_index(index) as opened:
        name = document
        if document is not None and not any(d.path == document for d in opened.documents()):
            name = os.path.abspath(document)
        pages = opened.remove(name, where=where)
    click.echo(json.dumps({"pages": pages}) if as_json else f"removed {pages:,} pages")
    return 0


@app.command()
@INDEX
@click.argument("query", required=False, default="")
@options_from(SearchConfig)
@click.option("--where", help="Condition over metadata, such as \"year >= 2020 and lang = 'en'\".")
@click.option("--vectors", type=click.Path(path_type=Path), help="Query vectors [T, D], .npy file.")
@click.option(
    "--heatmap", type=click.Path(path_type=Path), help="Folder for a picture of each hit."
)
@RAY
@ACTORS
@DAMAGED
@THREADS
@JSON
def search(
    index: Path,
    query: str,
    config_file: Path | None,
    where: str | None,
    vectors: Path | None,
    heatmap: Path | None,
    ray: bool,
    actors: int | None,
    allow_damaged: bool,
    threads: int | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Find pages that answer QUERY."""
    from .results import read_query, shown_hits

    use_threads(threads)
    config = resolve(SearchConfig, options, config_file)
    with searched_index(index, allow_damaged=allow_damaged, ray=ray, actors=actors) as opened:
        if vectors is not None:
            hits = opened.search_vectors([read_query(vectors)], where=where, config=config)[0]
        else:
            hits = opened.search(query, where=where, config=config)
        rows = shown_hits(opened, hits, heatmap)
    if as_json:
        click.echo(json.dumps({"query": query, "hits": rows}))
        return 0
    for rank, row in enumerate(rows, 1):
        click.echo(f"{rank:3} {row['score']:9.4f}  {_shown_path(row['doc'])} page {row['page']}")
        for extra in ("snippet", "heatmap"):
            if row.get(extra):
                click.echo(f"{'':15}{row[extra]}")
    return 0


@app.command()
@INDEX
@JSON
def info(index: Path, as_json: bool) -> int:
    """Say what an index holds."""
    with open_index(index, allow_damaged=True) as opened:
        figures = dataclasses.asdict(opened.info())
    if as_json:
        click.echo(json.dumps(figures))
        return 0
    for name, value in figures.items():
        if isinstance(value, dict):
            click.echo(name)
            for key, inner in value.items():
                click.echo(f"  {key:22}{_shown(inner)}")
        else:
            click.echo(f"{name:24}{_shown(value)}")
    return 0


@app.command()
@INDEX
@click.option("--deep", is_flag=True, help="Read every byte and compare checksums.")
@JSON
def verify(index: Path, deep: bool, as_json: bool) -> int:
    """Check an index; exit code 2 when something is wrong."""
    from .catalog import Catalog
    from .maintenance import verify as check

    catalog = Catalog(index)
    found = check(index, catalog, deep=deep)
    catalog.close()
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(found)))
    else:
        for problem in found.problems:
            click.echo(problem)
        words = "nothing wrong" if not found.problems else f"{len(found.problems)} problems"
        click.echo(
            f"{words} in {found.segments} segments, {found.pages:,} pages, {found.bytes:,} bytes"
        )
    return 2 if found.problems else 0


@app.command()
@INDEX
@JSON
def compact(index: Path, as_json: bool) -> int:
    """Rewrite the segments as one, without removed pages."""
    with open_index(index) as opened:
        done = opened.compact()
    counts = f"{done.segments_before} segments -> {done.segments_after}"
    text = f"{counts}, {done.bytes_freed:,} bytes freed"
    click.echo(json.dumps(dataclasses.asdict(done)) if as_json else text)
    return 0


@app.command()
@INDEX
@THREADS
@JSON
def retrain(index: Path, threads: int | None, as_json: bool) -> int:
    """Train the codebook again on the pages as they are now.

    Needs --store, or an index that is still growing: that does it by itself.
    """
    use_threads(threads)
    with open_index(index) as opened, _progress(as_json) as (note, _):
        opened.retrain(note=note)
        k = opened.info().centroids
    click.echo(json.dumps({"centroids": k}) if as_json else f"{k:,} centroids")
    return 0


@app.command()
@INDEX
@click.option("--to", "kind", type=click.Choice(["lancedb", "qdrant"]), required=True)
@click.option("-o", "--output", required=True, help="Folder, or address of a server.")
@click.option("--table", default="pages", show_default=True, help="Name of the table.")
@JSON
def export(index: Path, kind: str, output: str, table: str, as_json: bool) -> int:
    """Copy the pages to another store, many vectors per row."""
    from .export import export as copy

    with open_index(index) as opened:
        pages = copy(opened, kind, output, table)
    about = {"pages": pages, "to": kind, "path": output, "table": table}
    click.echo(json.dumps(about) if as_json else f"{pages:,} pages -> {kind} {output} {table}")
    return 0


def _shown_path(path: str) -> str:
    """Bytes that are no UTF-8 as question marks: a terminal could not show them."""
    return os.fsencode(path).decode("utf-8", "replace")


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    return _shown_path(str(value))
