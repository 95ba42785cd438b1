"""Files as documents: pictures of pages through an encoder, or vectors as they are."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ConfigError, DocumentError, LockError, VectorError
from .build import Document
from .catalog import NAME
from .config import IndexConfig
from .index import Index
from .pages import PAGE_SUFFIXES, read_pages
from .sources import find_sources, fingerprint
from .vectors import PageVectors
from .writer import remove_unused

if TYPE_CHECKING:
    from .encoders.protocol import Encoder

VECTOR_SUFFIXES = frozenset({".npy", ".npz", ".safetensors"})
# Among documents a .npy file is more often anything else than a page: there it has to be named.
SUFFIXES = PAGE_SUFFIXES | (VECTOR_SUFFIXES - {".npy"})
VECTOR_FORMAT = (
    "vectors are float16 or float32 [patches, dimension]: a .npy file of one page,"
    " or `vectors` in a .npz or .safetensors file"
)
BATCH = 4  # pages an encoder sees at once


def sources_for(paths: Sequence[str | os.PathLike[str]], *, vectors: bool) -> list[Path]:
    """The files to read, see `find_sources`; with `vectors` folders are searched for these only."""
    if vectors:
        return find_sources(paths, VECTOR_SUFFIXES, hint=f"; {VECTOR_FORMAT}")
    return find_sources(paths, SUFFIXES)


def document_of(
    path: Path, encoder: Callable[[], Encoder], meta: Mapping[str, Any]
) -> Document[PageVectors]:
    """The file, not yet read but for its checksum. `encoder` is asked for when it is needed."""
    try:
        source = fingerprint(path)
    except OSError as error:
        raise DocumentError(f"{path}: {error.strerror}") from None
    pages = (
        (lambda: read_vectors(path))
        if path.suffix.lower() in VECTOR_SUFFIXES
        else (lambda: encoded(path, encoder()))
    )
    return Document(str(path), source.sha256, source.mtime, meta, pages)


def encoded(
    path: Path, encoder: Encoder, first: int = 0, stop: int | None = None
) -> Iterator[PageVectors]:
    """The pages of a file, or pages first to stop - 1, from 0.

    Parts that begin at a multiple of BATCH are encoded as the whole is. Raises DocumentError for
    what is encrypted or cut short.
    """
    pages = iter(read_pages(path, first, stop))
    while batch := list(islice(pages, BATCH)):
        yield from encoder.encode_pages(batch)


def read_vectors(path: Path) -> Iterator[PageVectors]:
    """The pages of a file of vectors: `vectors` [N, D], `offsets` [P + 1], one page without them.

    Optional: `saliency` [N], `grid` [N, 2], `kind` [N]. A .npy file is the `vectors` of one page.
    Raises DocumentError when it is anything else.
    """
    arrays = _arrays(path)
    if "vectors" not in arrays:
        names = ", ".join([*list(arrays)[:3], *(["..."] if len(arrays) > 3 else [])])
        raise DocumentError(f"{path} has no array `vectors`: it has {names or 'none'}")
    vectors = arrays["vectors"]
    if vectors.ndim != 2 or vectors.dtype not in (np.float16, np.float32):
        raise DocumentError(
            f"{path} has vectors of shape {vectors.shape} and type {vectors.dtype}:"
            " give [patches, dimension] in float16 or float32"
        )
    offsets = np.asarray(arrays.get("offsets", [0, len(vectors)]), np.int64)
    if (
        len(offsets) < 2
        or offsets[0] != 0
        or offsets[-1] != len(vectors)
        or any(np.diff(offsets) < 1)
    ):
        raise DocumentError(f"{path}: offsets do not ascend from 0 to {len(vectors)} vectors")
    for first, last in pairwise(offsets):
        parts = {n: arrays[n][first:last] for n in ("saliency", "grid", "kind") if n in arrays}
        yield PageVectors(vectors[first:last], **parts)


def _arrays(path: Path) -> dict[str, Any]:
    suffix = path.suffix.lower()
    if suffix not in VECTOR_SUFFIXES:
        raise DocumentError(f"{path} is no file of vectors: {VECTOR_FORMAT}")
    try:
        if suffix == ".npy":
            with open(path, "rb") as opened:
                return {"vectors": np.lib.format.read_array(opened, allow_pickle=False)}
        if suffix == ".npz":
            if not zipfile.is_zipfile(path):
                raise ValueError("not a .npz file")
            with np.load(path, allow_pickle=False) as file:
                return dict(file)
        from safetensors.numpy import load_file

        return dict(load_file(path))
    except Exception as error:  # both readers raise whatever their parsers stumble over
        raise DocumentError(f"{path} is damaged: {' '.join(str(error).split())[:120]}") from None


@contextmanager
def filled_index(
    output: Path, sources: Sequence[str | os.PathLike[str]], encoder: str, config: IndexConfig
) -> Iterator[Index]:
    """`new_index`, closed at the end; one that was made here and holds nothing then is removed."""
    made = not (output / NAME).exists()
    try:
        with new_index(output, sources, encoder, config) as index:
            yield index
    finally:
        if made and (output / NAME).exists():
            with suppress(LockError):  # it is somebody else's by now
                remove_unused(output)


def new_index(
    output: Path, sources: Sequence[str | os.PathLike[str]], encoder: str, config: IndexConfig
) -> Index:
    """An index to fill: made now, or one of the same settings that an interrupted build left.

    Raises ConfigError when there is one of other settings, DocumentError for a source that is not
    there: before there is a folder.
    """
    vectors = encoder == "vectors"
    sources_for(sources, vectors=vectors)
    if (output / NAME).exists():
        index = Index.open(output)
        if index.config != config:
            index.close()
            raise ConfigError(
                f"{output} is an index with other settings: use `index add`, or another folder"
            )
        return index
    if not vectors:
        from .encoders import load_encoder

        loaded = load_encoder(encoder, signals=config.signals)
        return Index.create(output, encoder=loaded, config=config)
    return Index.create(output, dimension=_dimension(sources), config=config)


def _dimension(sources: Sequence[str | os.PathLike[str]]) -> int:
    """Of the vectors of the first file that can be read; why the first cannot where none can."""
    reasons = []
    for path in sources_for(sources, vectors=True):
        try:
            return int(next(iter(read_vectors(path))).vectors.shape[1])
        except (DocumentError, VectorError) as error:
            reasons.append(str(error))
    raise DocumentError(f"none of the files holds vectors that can be read: {reasons[0]}")
