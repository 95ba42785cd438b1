"""Queries and relevance judgments, in the two layouts people have: TREC and BEIR."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import FormatError


@dataclass(frozen=True, slots=True)
class Judgments:
    """queries: identifiers and texts in file order. triples: query, document, relevance."""

    texts: dict[str, str]
    triples: tuple[tuple[str, str, int], ...]

    @property
    def queries(self) -> list[str]:
        """Identifiers of the queries that have a judgment, in file order."""
        return self.judged

    @property
    def judged(self) -> list[str]:
        """The same."""
        known = {query for query, _, _ in self.triples}
        return [query for query in self.texts if query in known]

    @property
    def documents(self) -> set[str]:
        """Everything that was judged."""
        return {document for _, document, _ in self.triples}


def read_judgments(queries: Path, qrels: Path) -> Judgments:
    """Queries from JSON lines (_id or id, text) or tab-separated lines, judgments from TREC or TSV.

    Raises FormatError naming file and line, and when no query has a judgment.
    """
    texts = dict(_queries(queries))
    judgments = Judgments(texts, tuple(_qrels(qrels)))
    if not judgments.judged:
        raise FormatError(f"no query of {queries} has a judgment in {qrels}: check the identifiers")
    return judgments


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise FormatError(f"{path} does not exist") from None
    except UnicodeDecodeError as error:
        raise FormatError(f"{path} is not UTF-8: {error}") from None
    return ((i, line) for i, line in enumerate(lines, 1) if line.strip())


def _queries(path: Path) -> Iterator[tuple[str, str]]:
    for number, line in _lines(path):
        try:
            if line.lstrip().startswith("{"):
                value = json.loads(line)
                name, text = str(value.get("_id", value.get("id"))), value["text"]
            else:
                name, text = line.split("\t", 1)
        except (ValueError, KeyError):
            raise FormatError(
                f"{path} line {number}: neither JSON with id and text nor id, tab, text"
            ) from None
        if not text.strip():
            raise FormatError(f"{path} line {number}: query {name!r} is empty")
        yield name, text


def _qrels(path: Path) -> Iterator[tuple[str, str, int]]:
    for number, line in _lines(path):
        cells = line.split("\t") if "\t" in line else line.split()
        if number == 1 and cells[-1].strip().lower() in ("score", "relevance", "rel"):
            continue
        if len(cells) == 4:  # TREC: query, iteration, document, relevance
            cells = [cells[0], cells[2], cells[3]]
        try:
            query, document, relevance = cells
            yield query, document, int(float(relevance))
        except ValueError:
            raise FormatError(
                f"{path} line {number}: expected query, document, relevance, or TREC's four columns"
            ) from None
