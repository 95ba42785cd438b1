"""Commands of `compress3g index` that measure: eval, bench."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import click

from ..engine.options import options_from, resolve
from .cli_options import INDEX, JSON, THREADS, open_index, use_threads
from .search_config import EvalConfig, SearchConfig


@click.command(name="eval")
@INDEX
@click.option("--queries", type=click.Path(path_type=Path), required=True,
              help="JSON lines of id and text, or id, tab, text.")  # fmt: skip
@click.option("--qrels", type=click.Path(path_type=Path), required=True,
              help="Relevance: TREC's four columns, or query, document, relevance.")  # fmt: skip
@options_from(EvalConfig)
@THREADS
@JSON
def evaluate(
    index: Path,
    queries: Path,
    qrels: Path,
    config_file: Path | None,
    threads: int | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Compare the index with exact search on judged queries. Needs --store."""
    from .evaluate import evaluate as compare
    from .evaluate import missing_signals
    from .judgments import read_judgments

    use_threads(threads)
    config = resolve(EvalConfig, options, config_file)
    judgments = read_judgments(queries, qrels)
    with open_index(index) as opened:
        vectors = opened.encoder.encode_queries([judgments.texts[q] for q in judgments.judged])
        rows = compare(opened, vectors, judgments, config)
        absent = missing_signals(opened)
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(row) for row in rows]))
        return 0
    names = list(rows[0].measures)
    click.echo(f"{'':40}" + "".join(f"{n:>9}" for n in names) + f"{'% exact':>24}{'recall':>8}")
    for row in rows:
        line = f"{row.name:40}" + "".join(f"{row.measures[n]:9.4f}" for n in names)
        if row.ratio is not None and row.interval is not None:
            low, high = (100 * bound for bound in row.interval)
            line += f"{100 * row.ratio:8.1f} [{low:5.1f}, {high:5.1f}]{row.recall:8.3f}"
        click.echo(line)
    if config.keep and absent:
        click.echo(f"not compared, for the index does not keep them: {', '.join(absent)}")
    return 0


@click.command()
@INDEX
@click.option("--queries", default=50, show_default=True, type=click.IntRange(1))
@click.option("--tokens", default=24, show_default=True, type=click.IntRange(1, 1024))
@click.option("--seed", default=0, show_default=True)
@options_from(SearchConfig)
@THREADS
@JSON
def bench(
    index: Path,
    queries: int,
    tokens: int,
    seed: int,
    config_file: Path | None,
    threads: int | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Measure bytes per page, time per stage and recall, with queries made of pages."""
    from .bench import bench as measure
    from .bench import sample_queries

    use_threads(threads)
    config = resolve(SearchConfig, options, config_file)
    with open_index(index) as opened:
        figures = measure(opened, sample_queries(opened, queries, tokens, seed), config)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(figures)))
        return 0
    click.echo(f"{'pages':24}{figures.pages:,}")
    click.echo(f"{'bytes a page':24}{figures.bytes_per_page:,.0f}")
    for name, value in {**figures.milliseconds, "processor": figures.cpu}.items():
        click.echo(f"{'ms ' + name:24}{value:.3f}")
    recall = "unknown: built without --store" if figures.recall is None else f"{figures.recall:.3f}"
    click.echo(f"{'recall of exact':24}{recall}")
    return 0
