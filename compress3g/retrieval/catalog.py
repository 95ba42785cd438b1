"""The transactional truth of an index: which segments, documents and pages exist (SQLite).

Rows are never changed but for the flag `deleted`, and page and document numbers are never used
twice, so a reader needs no open transaction to keep its snapshot: it remembers which segments it
mapped and which pages were deleted. Rows of deleted pages stay until the second compaction after.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import FormatError

FORMAT = 1
APPLICATION = 0x43334749  # "C3GI", what `file` shows
NAME = "catalog.sqlite"

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE codebooks (name TEXT PRIMARY KEY, digest TEXT NOT NULL);
CREATE TABLE segments (
    segment INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, digest TEXT NOT NULL,
    codebook TEXT, pages INTEGER NOT NULL, vectors INTEGER NOT NULL);
CREATE TABLE documents (
    document INTEGER PRIMARY KEY, path BLOB NOT NULL, sha256 TEXT NOT NULL,
    mtime REAL NOT NULL, pages INTEGER NOT NULL, meta TEXT NOT NULL, deleted INTEGER);
CREATE UNIQUE INDEX documents_path ON documents(path) WHERE deleted IS NULL;
CREATE TABLE pages (
    page INTEGER PRIMARY KEY, document INTEGER NOT NULL, number INTEGER NOT NULL,
    segment INTEGER NOT NULL, deleted INTEGER);
CREATE INDEX pages_document ON pages(document);
CREATE INDEX pages_deleted ON pages(page) WHERE deleted IS NOT NULL;
CREATE TABLE log (time REAL NOT NULL, generation INTEGER NOT NULL, what TEXT NOT NULL);
"""


@dataclass(frozen=True, slots=True)
class SegmentRow:
    """A committed segment; `codebook` is None while its vectors only wait to be encoded."""

    segment: int
    name: str
    digest: str
    codebook: str | None
    pages: int
    vectors: int


@dataclass(frozen=True, slots=True)
class DocumentRow:
    """A live document. `path` is byte-exact: bytes that are no UTF-8 are surrogate escapes."""

    document: int
    path: str
    sha256: str
    mtime: float
    pages: int
    meta: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a reader sees until it refreshes."""

    generation: int
    segments: tuple[SegmentRow, ...]
    codebook: tuple[str, str] | None  # name, digest
    deleted: tuple[int, ...]
    meta: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class NewSegment:
    """A finished folder that a change puts into the catalog, with the pages it holds."""

    name: str
    digest: str
    codebook: str | None
    vectors: int
    pages: Sequence[int]  # page numbers, ascending


@dataclass(frozen=True, slots=True)
class Change:
    """One transaction. Pages of `segments` that no document of this change owns must exist."""

    what: str
    segments: Sequence[NewSegment] = ()
    documents: Sequence[DocumentRow] = ()
    pages: Sequence[tuple[int, int, int]] = ()  # page, document, number on which page
    remove_documents: Sequence[int] = ()
    drop_segments: Sequence[int] = ()
    codebook: tuple[str, str] | None = None  # name, digest: from now on the only one
    meta: Mapping[str, str] = field(default_factory=dict)
    purge: bool = False  # forget pages that an earlier compaction has dropped


class Catalog:
    """Reads and, for the one writer, changes `catalog.sqlite`. One connection per process, thread.

    Raises FormatError when the file is missing, foreign, damaged or of a newer format.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        # Connections of a parent process stay referenced: closing one after a fork is forbidden.
        self._connections: dict[tuple[int, int], sqlite3.Connection] = {}
        if not folder.is_dir():
            raise FormatError(f"{folder} is not an index: no such folder")
        if not self.path.exists():
            raise FormatError(f"{folder} is not an index: it has no {NAME}")
        with _translated(self.path):
            self._check_format()

    def _check_format(self) -> None:
        (application,) = self._connection().execute("PRAGMA application_id").fetchone()
        (version,) = self._connection().execute("PRAGMA user_version").fetchone()
        if application != APPLICATION:
            raise FormatError(f"{self.path} is not a catalog of compress3g")
        if version > FORMAT:
            raise FormatError(
                f"{self.path.parent} has format {version}, this compress3g reads up to {FORMAT}:"
                " upgrade compress3g"
            )

    @classmethod
    def create(cls, folder: Path, meta: Mapping[str, str]) -> Catalog:
        """A new catalog in an existing folder, in one transaction."""
        path = folder / NAME
        with _translated(path):
            connection = sqlite3.connect(path, isolation_level=None)
            try:
                _prepare(connection)
                if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                    raise FormatError(f"{folder} already holds an index")
                connection.execute("BEGIN IMMEDIATE")
                for statement in _SCHEMA.split(";"):
                    connection.execute(statement)
                values = {"generation": "0", "next_page": "0", "next_document": "0", **meta}
                connection.executemany("INSERT INTO meta VALUES (?, ?)", values.items())
                connection.execute(f"PRAGMA application_id = {APPLICATION}")
                connection.execute(f"PRAGMA user_version = {FORMAT}")
                connection.execute("COMMIT")
            finally:
                connection.close()
        return cls(folder)

    def _connection(self) -> sqlite3.Connection:
        key = (os.getpid(), threading.get_ident())
        if key not in self._connections:
            self._connections[key] = _connect(self.path)
        return self._connections[key]

    def close(self) -> None:
        """Closes this process's connections."""
        for key in [k for k in self._connections if k[0] == os.getpid()]:
            self._connections.pop(key).close()

    def query(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of one statement."""
        with _translated(self.path):
            return self._connection().execute(sql, parameters).fetchall()

    def snapshot(self) -> Snapshot:
        """One consistent view."""
        with _translated(self.path):
            connection = self._connection()
            connection.execute("BEGIN")
            try:
                meta = dict(connection.execute("SELECT key, value FROM meta"))
                segments = connection.execute(
                    "SELECT segment, name, digest, codebook, pages, vectors FROM segments"
                    " ORDER BY segment"
                ).fetchall()
                codebook = connection.execute("SELECT name, digest FROM codebooks").fetchone()
                deleted = connection.execute(
                    "SELECT page FROM pages WHERE deleted IS NOT NULL ORDER BY page"
                ).fetchall()
            finally:
                connection.execute("ROLLBACK")
        return Snapshot(
            int(meta["generation"]),
            tuple(SegmentRow(*row) for row in segments),
            codebook,
            tuple(page for (page,) in deleted),
            meta,
        )

    def generation(self) -> int:
        """Number of the newest commit."""
        return int(self.query("SELECT value FROM meta WHERE key = 'generation'")[0][0])

    def count_documents(self) -> int:
        """Living ones."""
        return int(self.query("SELECT count(*) FROM documents WHERE deleted IS NULL")[0][0])

    def documents(self, where: str = "TRUE", parameters: Sequence[Any] = ()) -> list[DocumentRow]:
        """The live documents that satisfy a condition over the columns of `documents`."""
        rows = self.query(
            "SELECT document, path, sha256, mtime, pages, meta FROM documents"
            f" WHERE deleted IS NULL AND ({where}) ORDER BY document",
            parameters,
        )
        return [_document(row) for row in rows]

    def locate(self, pages: Sequence[int]) -> dict[int, tuple[int, DocumentRow]]:
        """For each page its number within its document (from 0) and the document, dead or alive."""
        marks = ",".join("?" * len(pages))
        rows = self.query(
            "SELECT p.page, p.number, d.document, d.path, d.sha256, d.mtime, d.pages, d.meta"
            f" FROM pages p JOIN documents d USING (document) WHERE p.page IN ({marks})",
            list(pages),
        )
        return {row[0]: (row[1], _document(row[2:])) for row in rows}

    def apply(self, change: Change) -> int:
        """Makes the whole change or none of it durable; the new generation."""
        with _translated(self.path):
            connection = self._connection()
            connection.execute("BEGIN IMMEDIATE")
            try:
                generation = _apply(connection, change)
                connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
                raise
        return generation

    def integrity(self) -> list[str]:
        """What SQLite itself finds wrong with the file."""
        try:
            rows = self.query("PRAGMA integrity_check(20)")
        except FormatError as error:
            return [str(error)]
        return [f"{self.path}: {text}" for (text,) in rows if text != "ok"]


def _apply(connection: sqlite3.Connection, change: Change) -> int:
    (before,) = connection.execute("SELECT value FROM meta WHERE key = 'generation'").fetchone()
    generation = int(before) + 1
    if change.purge:
        # Dead pages whose segment went in an earlier compaction: no reader can still show them.
        gone = "deleted IS NOT NULL AND segment NOT IN (SELECT segment FROM segments)"
        connection.execute(f"DELETE FROM pages WHERE {gone}")
        connection.execute(
            "DELETE FROM documents WHERE deleted IS NOT NULL"
            " AND document NOT IN (SELECT document FROM pages)"
        )
    for document in change.remove_documents:
        flag = (generation, document)
        connection.execute("UPDATE documents SET deleted = ? WHERE document = ?", flag)
        connection.execute("UPDATE pages SET deleted = ? WHERE document = ?", flag)
    connection.executemany(
        "INSERT INTO documents VALUES (?, ?, ?, ?, ?, ?, NULL)",
        (
            (d.document, os.fsencode(d.path), d.sha256, d.mtime, d.pages, json.dumps(dict(d.meta)))
            for d in change.documents
        ),
    )
    connection.executemany("INSERT INTO pages VALUES (?, ?, ?, -1, NULL)", change.pages)
    if change.codebook is not None:
        connection.execute("DELETE FROM codebooks")
        connection.execute("INSERT INTO codebooks VALUES (?, ?)", change.codebook)
    for new in change.segments:
        number = connection.execute(
            "INSERT INTO segments(name, digest, codebook, pages, vectors) VALUES (?, ?, ?, ?, ?)",
            (new.name, new.digest, new.codebook, len(new.pages), new.vectors),
        ).lastrowid
        connection.executemany(
            "UPDATE pages SET segment = ? WHERE page = ?", ((number, page) for page in new.pages)
        )
    connection.executemany(
        "DELETE FROM segments WHERE segment = ?", ((s,) for s in change.drop_segments)
    )
    values = {**change.meta, "generation": str(generation)}
    connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", values.items())
    _advance(connection, "next_page", (page for page, _, _ in change.pages))
    _advance(connection, "next_document", (d.document for d in change.documents))
    connection.execute("INSERT INTO log VALUES (?, ?, ?)", (time.time(), generation, change.what))
    return generation


def _advance(connection: sqlite3.Connection, key: str, used: Iterable[int]) -> None:
    last = max(used, default=None)
    if last is not None:
        connection.execute("UPDATE meta SET value = ? WHERE key = ?", (str(last + 1), key))


def _document(row: Sequence[Any]) -> DocumentRow:
    document, path, sha256, mtime, pages, meta = row
    return DocumentRow(document, os.fsdecode(path), sha256, mtime, pages, json.loads(meta))


def _prepare(connection: sqlite3.Connection) -> None:
    # SQLite answers with the mode it could set: network file systems cannot share memory.
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        connection.execute("PRAGMA journal_mode = DELETE")
    connection.execute("PRAGMA synchronous = FULL")


def _connect(path: Path) -> sqlite3.Connection:
    settings: dict[str, Any] = {"isolation_level": None, "check_same_thread": False, "timeout": 30}
    connection: sqlite3.Connection = sqlite3.connect(path, **settings)
    try:
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError:
        connection.close()
        if os.access(path.parent, os.W_OK) and os.access(path, os.W_OK):
            raise
        # A read-only copy: nobody can be writing.
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?immutable=1", uri=True, **settings
        )
    return connection


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    """SQLite's errors as ours: a full disk is an OSError, anything else a FormatError."""
    try:
        yield
    except sqlite3.OperationalError as error:
        text = str(error)
        if "full" in text or "disk I/O" in text:
            raise OSError(errno.ENOSPC, f"the disk may be full ({text})", str(path)) from None
        if "locked" in text:
            raise OSError(
                errno.EAGAIN, "another process is writing to the index", str(path)
            ) from None
        raise FormatError(f"{path}: {text}") from None
    except sqlite3.DatabaseError as error:
        raise FormatError(f"{path} is damaged ({error}): restore it from a backup") from None
