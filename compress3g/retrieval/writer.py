"""The one writer of an index: a lock, finished files first, then one transaction."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import secrets
import shutil
import socket
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from ..errors import LockError
from .array_folder import ArrayFolder, ArrayFolderWriter, sync_folder
from .catalog import NAME, Catalog, Change, Snapshot

LOCK = "writer.lock"
_FOLDERS = ("seg-", "codebook-")
_log = logging.getLogger(__name__)


def new_name(kind: str) -> str:
    """A name no folder had before, in the order of time."""
    return f"{kind}-{time.time_ns() // 1_000_000:011x}{secrets.token_hex(5)}"


class WriterLock:
    """Held by the process that writes; the kernel drops it when that process dies.

    The file keeps who holds it, for the message. Where the file system has no locks, a living
    process of that number on this machine counts as a holder. Raises LockError when there is one.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK
        self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            self._take()
        except BaseException:
            os.close(self._handle)
            raise

    def _take(self) -> None:
        holder = self._holder()
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            no_locks = error.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
            if not no_locks or _alive(holder):
                raise LockError(
                    f"{self.path.parent} is being written by process {holder.get('pid', '?')} on"
                    f" {holder.get('host', '?')}: wait until it has finished"
                ) from None
        if holder:
            _log.info(
                "process %s stopped while it wrote %s: what it had committed is kept",
                holder.get("pid", "?"), self.path.parent,
            )  # fmt: skip
        about = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, json.dumps(about).encode(), 0)

    def _holder(self) -> dict[str, object]:
        try:
            value = json.loads(os.pread(self._handle, 4096, 0) or b"{}")
            return value if isinstance(value, dict) else {}
        except ValueError:
            return {}

    def release(self) -> None:
        """Lets the next writer in."""
        os.ftruncate(self._handle, 0)
        os.close(self._handle)


def _alive(holder: dict[str, object]) -> bool:
    pid = holder.get("pid")
    if not isinstance(pid, int) or holder.get("host") != socket.gethostname():
        return bool(holder)  # on another machine nobody can tell
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


class Writer:
    """Open for writing: takes the lock, removes what no catalog row names, commits changes.

    >>> with Writer(folder) as writer:                                  # doctest: +SKIP
    ...     segment = writer.new_folder("seg")
    ...     segment.append("codes", codes)
    ...     writer.commit(Change("add", segments=[...]))
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.catalog = Catalog(folder)
        self._lock = WriterLock(folder)
        try:
            self.collect_garbage()
            meta = self.catalog.snapshot().meta
            self._page, self._document = int(meta["next_page"]), int(meta["next_document"])
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Gives the lock back."""
        self.catalog.close()
        self._lock.release()

    def snapshot(self) -> Snapshot:
        """What is committed."""
        return self.catalog.snapshot()

    def new_pages(self, count: int) -> range:
        """Page numbers nobody has had before; committed with the change that uses them."""
        first = self._page
        self._page += count
        return range(first, self._page)

    def new_document(self) -> int:
        """A document number nobody has had before."""
        self._document += 1
        return self._document - 1

    def new_folder(self, kind: str) -> ArrayFolderWriter:
        """A folder for a segment ("seg") or a codebook, named after the time; garbage for now."""
        return ArrayFolderWriter(self.folder / new_name(kind))

    def publish(self, folder: ArrayFolder, name: str) -> ArrayFolder:
        """A finished folder under its final name; an equal one that exists already is taken."""
        target = self.folder / name
        if target.exists():
            shutil.rmtree(folder.path)
        else:
            os.rename(folder.path, target)
            sync_folder(self.folder)
        return ArrayFolder.open(target, expected=folder.digest)

    def commit(self, change: Change) -> int:
        """One transaction; then the folders it dropped are removed. The new generation.

        Readers that have mapped a dropped folder go on reading it.
        """
        before = self.catalog.snapshot()
        generation = self.catalog.apply(change)
        gone = [s.name for s in before.segments if s.segment in set(change.drop_segments)]
        if before.codebook and change.codebook and before.codebook != change.codebook:
            gone.append(before.codebook[0])
        for name in gone:
            shutil.rmtree(self.folder / name, ignore_errors=True)
        return generation

    def collect_garbage(self) -> list[str]:
        """Removes segment and codebook folders that the catalog does not name; their names."""
        snapshot = self.catalog.snapshot()
        known = {segment.name for segment in snapshot.segments}
        if snapshot.codebook:
            known.add(snapshot.codebook[0])
        garbage = [
            entry.name
            for entry in os.scandir(self.folder)
            if entry.name.startswith(_FOLDERS) and entry.name not in known and entry.is_dir()
        ]
        for name in garbage:
            shutil.rmtree(self.folder / name, ignore_errors=True)
        return sorted(garbage)


def remove_unused(folder: Path) -> None:
    """Removes an index into which nothing was ever committed; what else is in the folder stays.

    Raises LockError when another process writes.
    """
    with Writer(folder) as writer:  # what was not committed is removed by opening it
        if writer.catalog.generation():
            return
        writer.catalog.close()  # takes the files beside the catalog along
        for name in (NAME, LOCK):
            (folder / name).unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()
