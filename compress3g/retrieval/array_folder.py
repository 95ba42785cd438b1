"""An immutable folder of raw arrays with a checksum of every block: segments and codebooks.

    NAME/
      codes.u16  offsets.i64  ...   raw, little-endian, C order, mapped from byte 0
      header.json                   format, facts, and of each array dtype, shape, bytes, checksums

A file's checksum is the blake2b-128 of the blake2b-128 digests of its blocks of 4 MiB, so that a
check can say which part of a file is damaged. The header is the last file to be written.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ..errors import FormatError

FORMAT = 1
BLOCK = 1 << 22  # bytes under one digest
_KINDS = {
    "u8": "|u1", "i8": "|i1", "u16": "<u2", "i16": "<i2", "u32": "<u4", "i32": "<i4",
    "u64": "<u8", "i64": "<i8", "f16": "<f2", "f32": "<f4", "f64": "<f8",
}  # fmt: skip
_SUFFIX = {np.dtype(code): name for name, code in _KINDS.items()}

Array = npt.NDArray[Any]


def digest(data: bytes | memoryview) -> str:
    """Hexadecimal blake2b-128."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class ArrayHeader:
    """What the header says of one array."""

    dtype: str
    shape: tuple[int, ...]
    bytes: int
    blake2b: str
    blocks: tuple[str, ...]


class _ArrayFile:
    """One growing file, hashed while it is written."""

    def __init__(self, path: Path, dtype: np.dtype[Any], row: tuple[int, ...]) -> None:
        self.path, self.dtype, self.row = path, dtype, row
        self.rows = self.bytes = 0
        self._file: BinaryIO = open(path, "wb", buffering=1 << 20)  # noqa: SIM115
        self._blocks: list[str] = []
        self._hash, self._room = hashlib.blake2b(digest_size=16), BLOCK

    def append(self, array: Array) -> None:
        flat = np.ascontiguousarray(array, self.dtype).reshape(-1).view(np.uint8)
        data = memoryview(flat)  # type: ignore[arg-type]
        self._file.write(data)
        self.rows += len(array)
        self.bytes += len(data)
        while len(data):
            part, data = data[: self._room], data[self._room :]
            self._hash.update(part)
            self._room -= len(part)
            if self._room == 0:
                self._next_block()

    def _next_block(self) -> None:
        self._blocks.append(self._hash.hexdigest())
        self._hash, self._room = hashlib.blake2b(digest_size=16), BLOCK

    def finish(self) -> ArrayHeader:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        if self._room < BLOCK:
            self._next_block()
        return ArrayHeader(
            _SUFFIX[self.dtype],
            (self.rows, *self.row),
            self.bytes,
            digest("".join(self._blocks).encode()),
            tuple(self._blocks),
        )

    def close(self) -> None:
        with contextlib.suppress(OSError):  # it flushes, which fails again on a full disk
            self._file.close()


class ArrayFolderWriter:
    """Writes a folder array by array, piece by piece; memory use is that of the pieces.

    OSError (a full disk, no permission) passes through; `abandon` then removes what was written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, _ArrayFile] = {}
        folder.mkdir(parents=True)

    def append(self, name: str, rows: Array) -> None:
        """Adds rows to an array; the first piece, which may be empty, fixes dtype and row shape."""
        file = self._files.get(name)
        if file is None:
            dtype = np.dtype(rows.dtype).newbyteorder("<")
            path = self.folder / f"{name}.{_SUFFIX[dtype]}"
            file = self._files[name] = _ArrayFile(path, dtype, rows.shape[1:])
        if rows.dtype != file.dtype or rows.shape[1:] != file.row:
            raise ValueError(
                f"{file.path} holds {file.dtype} rows of {file.row}, not {rows.dtype}"
                f" of {rows.shape[1:]}"
            )
        file.append(rows)

    def finish(self, facts: Mapping[str, Any]) -> ArrayFolder:
        """Everything on disk, fsynced: files, header, folder, and the folder's own name."""
        headers = {name: file.finish() for name, file in self._files.items()}
        return _write_header(self.folder, headers, facts)

    def abandon(self) -> None:
        """Removes the unfinished folder."""
        for file in self._files.values():
            file.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def _write_header(
    folder: Path, headers: Mapping[str, ArrayHeader], facts: Mapping[str, Any]
) -> ArrayFolder:
    arrays = {
        name: {
            "dtype": h.dtype,
            "shape": list(h.shape),
            "bytes": h.bytes,
            "blake2b": h.blake2b,
            "blocks": list(h.blocks),
        }
        for name, h in headers.items()
    }
    text = json.dumps({"format": FORMAT, "facts": dict(facts), "arrays": arrays}, indent=1)
    with open(folder / "header.json", "wb") as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())
    sync_folder(folder)
    sync_folder(folder.parent)
    return ArrayFolder.open(folder)


def replace_array(folder: Path, name: str, array: Array) -> ArrayFolder:
    """A finished folder that nobody knows yet, with another array of the same type and shape.

    Not for committed folders: these never change. Raises ValueError for another type or shape.
    """
    before = ArrayFolder.open(folder, map=False)
    old = before.arrays[name]
    if old.dtype != array.dtype or old.shape != array.shape:
        raise ValueError(
            f"{folder}/{name}: {old.dtype} {old.shape}, not {array.dtype} {array.shape}"
        )
    file = _ArrayFile(
        file_of(folder, name, before.headers[name]), old.dtype.newbyteorder("<"), old.shape[1:]
    )
    file.append(array)
    return _write_header(folder, {**before.headers, name: file.finish()}, before.facts)


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@dataclass(frozen=True, slots=True)
class ArrayFolder:
    """A finished folder, its arrays mapped read-only; they outlive the folder's removal."""

    path: Path
    digest: str  # of header.json
    facts: Mapping[str, Any]
    headers: Mapping[str, ArrayHeader]
    arrays: Mapping[str, Array]

    @classmethod
    def open(cls, path: Path, *, expected: str | None = None, map: bool = True) -> ArrayFolder:
        """The folder at `path`; `map=False` reads the arrays into memory.

        Raises FormatError when header or sizes are not what was written (`expected` is the digest
        of the header), or when the format is newer, or when a file is missing.
        """
        try:
            text = (path / "header.json").read_bytes()
        except FileNotFoundError:
            raise FormatError(f"{path}/header.json is missing: restore the folder") from None
        if expected is not None and digest(text) != expected:
            raise FormatError(f"{path}/header.json is damaged: restore it")
        try:
            header = json.loads(text)
            version = header["format"]
            if version > FORMAT:
                raise FormatError(
                    f"{path} has format {version}, this compress3g reads up to {FORMAT}: upgrade"
                )
            headers = {
                name: ArrayHeader(
                    h["dtype"], tuple(h["shape"]), h["bytes"], h["blake2b"], tuple(h["blocks"])
                )
                for name, h in header["arrays"].items()
            }
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, FormatError):
                raise
            raise FormatError(f"{path}/header.json is damaged ({error})") from None
        arrays = {name: _load(file_of(path, name, h), h, map) for name, h in headers.items()}
        return cls(path, digest(text), header["facts"], headers, arrays)

    @property
    def bytes(self) -> int:
        """Bytes of all arrays."""
        return sum(h.bytes for h in self.headers.values())

    def release(self) -> None:
        """Hands memory back that holds what was read of mapped files; they can be read again."""
        for array in self.arrays.values():
            owner: object = array
            while isinstance(owner, np.ndarray):
                owner = owner.base
            view = owner.obj if isinstance(owner, memoryview) else owner
            if isinstance(view, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
                view.madvise(mmap.MADV_DONTNEED)

    def intact(self, name: str) -> bool:
        """Whether one array is what was written: hashes it as it is mapped."""
        header = self.headers[name]
        data = memoryview(self.arrays[name].reshape(-1).view(np.uint8))  # type: ignore[arg-type]
        blocks = [digest(data[start : start + BLOCK]) for start in range(0, len(data), BLOCK)]
        return digest("".join(blocks).encode()) == header.blake2b

    def damaged(self) -> Iterator[tuple[str, int, int]]:
        """Name, first and last byte + 1 of every damaged block: reads and hashes everything."""
        for name, header in self.headers.items():
            blocks = header.blocks
            if digest("".join(blocks).encode()) != header.blake2b:
                yield name, 0, header.bytes
                continue
            with open(file_of(self.path, name, header), "rb") as file:
                for i, wanted in enumerate(blocks):
                    if digest(file.read(BLOCK)) != wanted:
                        yield name, i * BLOCK, min((i + 1) * BLOCK, header.bytes)


def file_of(path: Path, name: str, header: ArrayHeader) -> Path:
    """The file of one array."""
    return path / f"{name}.{header.dtype}"


def _load(file: Path, header: ArrayHeader, map: bool) -> Array:
    dtype = np.dtype(_KINDS[header.dtype])
    try:
        size = file.stat().st_size
    except FileNotFoundError:
        raise FormatError(f"{file} is missing: restore it") from None
    if size != header.bytes or size != dtype.itemsize * int(np.prod(header.shape)):
        raise FormatError(f"{file} has {size} bytes instead of {header.bytes}: it is damaged")
    if size == 0:
        return np.empty(header.shape, dtype)
    if not map:
        return np.fromfile(file, dtype).reshape(header.shape)
    with open(file, "rb") as handle:
        view = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
    return np.frombuffer(view, dtype).reshape(header.shape)
