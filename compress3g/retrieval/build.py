"""How an index is filled: documents in, codebook trained, pages compressed.

Until there is a codebook (pass 1) vectors go to segments that wait for one, which also makes an
interrupted build resumable: what is committed is not encoded again. Then (pass 2) the codebook is
trained on a sample of all of them and the waiting segments are compressed. Later additions are
compressed at once. Memory does not grow with the corpus: pages are written through to files.

A codebook that was trained on less than a whole sample fits what it saw and little else. Until the
index holds a whole sample its segments keep their vectors, in bytes, and an addition that makes it
half as large again ends with a new codebook and all of it compressed with that, in one transaction.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np

from ..errors import BackendError, ConfigError, DocumentError, FormatError
from .array_folder import ArrayFolder
from .catalog import Change, DocumentRow, NewSegment, SegmentRow
from .config import IndexConfig
from .encoding import Encoding, stored_vectors
from .intake import Intake
from .reduce import needs_codebook, reduced_rows
from .segment import PageRows, Segment, SegmentWriter
from .writer import Writer

_OUTPUT_VECTORS = 1 << 26  # in one segment that pass 2 writes
_log = logging.getLogger(__name__)

Note = Callable[[str, int, int], None]  # what, done, of how many
Outcome = Callable[[str, str, int], None]  # path, what became of it, pages


def config_to_json(config: IndexConfig) -> str:
    """How the catalog keeps a configuration."""
    return json.dumps(dataclasses.asdict(config))


def config_from_json(text: str) -> IndexConfig:
    """The configuration the catalog keeps. Raises FormatError for fields nobody knows."""
    try:
        return IndexConfig(**json.loads(text))
    except (TypeError, ValueError) as error:
        raise FormatError(
            f"the index has a configuration this compress3g cannot use: {error}"
        ) from None


def checked_metadata(metadata: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The metadata, which JSON can keep and `--where` can ask for. Raises ConfigError."""
    for key, value in (metadata or {}).items():
        if key in ("doc", "page") or '"' in key or not key:
            raise ConfigError(f"metadata key {key!r} cannot be used: doc and page are taken")
        if not isinstance(value, (str, int, float, bool)):
            raise ConfigError(f"metadata {key} = {value!r}: a string, number or truth value")
    return dict(metadata or {})


Content = TypeVar("Content")  # what documents come as: pages, or segments others have written
Taken = TypeVar("Taken", contravariant=True)


@dataclass(frozen=True, slots=True)
class Document(Generic[Content]):
    """Something to index. `sha256` says whether it has changed; `pages` is called if it has."""

    path: str
    sha256: str
    mtime: float
    meta: Mapping[str, Any]
    pages: Callable[[], Iterable[Content]]


@runtime_checkable
class Taker(Protocol[Taken]):
    """Takes documents in and commits them in batches: `Intake`, `ShardIntake`."""

    def known(self, path: str) -> DocumentRow | None: ...  # noqa: D102

    def add(  # noqa: D102
        self, document: DocumentRow, pages: Iterable[Taken], *, replaces: int | None = None
    ) -> tuple[int, int]: ...

    def commit(self) -> None: ...  # noqa: D102

    def close(self) -> None: ...  # noqa: D102


@dataclass(slots=True)
class Added:
    """What an addition did: paths by outcome, and pages and vectors that went in."""

    added: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    pages: int = 0
    vectors: int = 0
    retrained: bool = False


def new_intake(writer: Writer) -> Intake:
    """What takes pages into the index, compressed at once when there is a codebook."""
    meta = writer.snapshot().meta
    encoding = load_encoding(writer)[0] if writer.snapshot().codebook else None
    return Intake(writer, config_from_json(meta["config"]), encoding, int(meta["dimension"]))


def add_documents(
    writer: Writer,
    documents: Iterable[Document[Content]],
    intake: Taker[Content],
    *,
    strict: bool,
    stopped: Callable[[], bool],
    outcome: Outcome,
    note: Note,
) -> Added:
    """Takes the documents in, then compresses what waits for it, with a new codebook if it is time.

    A document that cannot be read (DocumentError) is skipped, with `strict` it is an error; vectors
    that cannot be used always are. Whatever the error, complete documents are committed first.
    """
    done = Added()
    try:
        for document in documents:
            if stopped():
                break
            try:
                what, pages = _add_one(writer, intake, document, done)
            except DocumentError as error:
                if strict:
                    raise
                done.skipped.append((document.path, str(error)))
                what, pages = f"skipped: {error}", 0
            outcome(document.path, what, pages)
        intake.commit()
    except (DocumentError, ValueError, KeyboardInterrupt, BackendError):
        intake.commit()
        raise
    finally:
        intake.close()
    if not stopped():
        config = config_from_json(writer.snapshot().meta["config"])
        done.retrained = grow(writer, config, note)
        encode_waiting(writer, config, note)
    return done


def _add_one(
    writer: Writer, intake: Taker[Content], document: Document[Content], done: Added
) -> tuple[str, int]:
    known = intake.known(document.path)
    if known is not None and known.sha256 == document.sha256:
        done.unchanged.append(document.path)
        return "unchanged", known.pages
    row = DocumentRow(
        writer.new_document(), document.path, document.sha256, document.mtime, 0, document.meta
    )
    replaces = None if known is None else known.document
    pages, vectors = intake.add(row, document.pages(), replaces=replaces)
    done.pages, done.vectors = done.pages + pages, done.vectors + vectors
    (done.added if known is None else done.replaced).append(document.path)
    return ("added" if known is None else "replaced"), pages


def encode_waiting(writer: Writer, config: IndexConfig, note: Note) -> None:
    """Pass 2: trains the codebook unless there is one, and compresses the waiting segments."""
    snapshot = writer.snapshot()
    waiting = [s for s in snapshot.segments if s.codebook is None]
    if not waiting:
        return
    if snapshot.codebook is None:
        note("train", 0, 1)
        pages = sum(s.pages for s in waiting)
        encoding = Encoding.train(_all_vectors(writer, waiting), pages, config)
        if needs_codebook(config):
            encoding = encoding.with_page_frequency(_all_vectors(writer, waiting))
        name, folder = save_encoding(writer, encoding)
        writer.commit(Change("codebook", codebook=(name, folder.digest)))
        note("train", 1, 1)
    encoding, name = load_encoding(writer)
    done, total = 0, sum(s.pages for s in waiting)
    for group in _grouped(waiting):
        done = _encode_group(writer, encoding, name, group, done, total, note)


def grow(writer: Writer, config: IndexConfig, note: Note) -> bool:
    """Trains a new codebook, as `retrain` does, where the index has outgrown its own; whether.

    What was added stays added when a segment is damaged; that is said and nothing is trained.
    """
    snapshot = writer.snapshot()
    if snapshot.codebook is None or not config.grow:
        return False
    encoding, _ = load_encoding(writer)
    if not encoding.codebook.outgrown_by(sum(s.vectors for s in snapshot.segments)):
        return False
    try:
        retrain(writer, config, note)
    except FormatError as error:
        _log.warning("the codebook cannot grow with the index: %s", error)
        return False
    return True


def _grouped(rows: Sequence[SegmentRow]) -> Iterator[list[SegmentRow]]:
    group: list[SegmentRow] = []
    for row in rows:
        if group and sum(r.vectors for r in group) + row.vectors > _OUTPUT_VECTORS:
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def _all_vectors(writer: Writer, rows: Sequence[SegmentRow]) -> Iterator[np.ndarray]:
    """The vectors of every page in order, from the segments that keep them."""
    for row in rows:
        segment = Segment.open(writer.folder / row.name, expected=row.digest)
        for piece in segment.chunks(0, len(segment)):
            x = stored_vectors(piece)
            if x is None:
                raise ConfigError(
                    "the index keeps no vectors to train on: build it anew, or with --store f16"
                )
            ends = np.cumsum(piece.lengths)
            yield from np.split(x, ends[:-1])


def _encode_group(
    writer: Writer,
    encoding: Encoding,
    codebook: str,
    group: Sequence[SegmentRow],
    done: int,
    total: int,
    note: Note,
) -> int:
    reduce = needs_codebook(encoding.config)
    new, done = reencode(writer, encoding, codebook, group, done, total, note, reduce=reduce)
    drop = [row.segment for row in group]
    writer.commit(Change("encode", segments=[new], drop_segments=drop))
    return done


def reencode(
    writer: Writer,
    encoding: Encoding,
    codebook: str,
    group: Sequence[SegmentRow],
    done: int,
    total: int,
    note: Note,
    *,
    reduce: bool = False,
) -> tuple[NewSegment, int]:
    """The living and dead pages of some segments, compressed into one that is not committed yet.

    reduce: they are whole still, see `reduced`.
    """
    target = SegmentWriter(writer.new_folder("seg"))
    try:
        for piece in _pieces(writer, group):
            target.append(encoding.encode(reduced_rows(piece, encoding) if reduce else piece))
            done += len(piece.page_ids)
            note("encode", done, total)
        folder = target.finish()
    except BaseException:
        target.abandon()
        raise
    return NewSegment(target.name, folder.digest, codebook, target.vectors, target.page_ids), done


def _pieces(writer: Writer, group: Sequence[SegmentRow]) -> Iterator[PageRows]:
    """Pages in ascending number: the segments of a group do not interleave before a compaction."""
    segments = [Segment.open(writer.folder / r.name, expected=r.digest) for r in group]
    for segment in sorted((s for s in segments if len(s)), key=lambda s: int(s.page_ids[0])):
        yield from segment.chunks(0, len(segment))


def save_encoding(writer: Writer, encoding: Encoding) -> tuple[str, ArrayFolder]:
    """Puts codebook and codecs on disk under the name of their content."""
    target = writer.new_folder("codebook")
    try:
        for name, array in encoding.to_arrays().items():
            target.append(name, np.ascontiguousarray(array))
        folder = target.finish({"kind": "codebook", "residual": encoding.config.residual})
    except BaseException:
        target.abandon()
        raise
    name = f"codebook-{folder.digest}"
    return name, writer.publish(folder, name)


def load_encoding(writer: Writer) -> tuple[Encoding, str]:
    """The committed encoding and the name of its folder. Raises FormatError when damaged."""
    snapshot = writer.snapshot()
    assert snapshot.codebook is not None
    name, expected = snapshot.codebook
    arrays = ArrayFolder.open(writer.folder / name, expected=expected, map=False).arrays
    return Encoding.from_arrays(arrays, config_from_json(snapshot.meta["config"])), name


def retrain(writer: Writer, config: IndexConfig, note: Note) -> None:
    """A new codebook for the pages as they are now, and every segment compressed with it.

    One transaction at the end; needs the disk space of both. Raises ConfigError when the index
    keeps no vectors.
    """
    rows = writer.snapshot().segments
    note("retrain", 0, 1)
    encoding = Encoding.train(_all_vectors(writer, rows), sum(r.pages for r in rows), config)
    if needs_codebook(config):
        encoding = encoding.with_page_frequency(_all_vectors(writer, rows))
    name, folder = save_encoding(writer, encoding)
    note("retrain", 1, 1)
    done, total = 0, sum(r.pages for r in rows)
    added: list[NewSegment] = []
    for whole in (False, True):  # what waited for its first codebook is not reduced yet
        reduce = whole and needs_codebook(config)
        for group in _grouped([r for r in rows if (r.codebook is None) == whole]):
            new, done = reencode(writer, encoding, name, group, done, total, note, reduce=reduce)
            added.append(new)
    drop = [r.segment for r in rows]
    writer.commit(Change("retrain", added, codebook=(name, folder.digest), drop_segments=drop))
