"""What a page looks like: words and pictures from its source, thumbnails kept in the index."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ...engine.checkpoint import atomic_write
from ...errors import DocumentError
from ..catalog import DocumentRow
from ..pages import PAGE_SUFFIXES, read_page
from ..pdf import Word
from ..sources import fingerprint
from .recent import Recent

if TYPE_CHECKING:
    from PIL.Image import Image

Source = Literal["present", "missing", "changed", "unreadable", "vectors"]
SIZES = {"thumb": 320, "full": 1400}  # pixels across
_WORDS = 2048  # pages whose words are kept
_QUALITY = 80
_NAME = 32  # characters of a document's checksum in the name of a file
_LETTER = 0.75  # width over height of a page nobody can look at
_TOLD = {
    "missing": "the file is gone",
    "changed": "the file has changed",
    "unreadable": "the file cannot be read",
    "vectors": "vectors, no picture",
}


@dataclass(frozen=True, slots=True)
class Look:
    """Words of the text layer, width over height, and whether the source is as it was indexed."""

    source: Source
    words: Sequence[Word] = ()
    aspect: float = _LETTER


class Pictures:
    """Pages of documents; a source that has changed since is not shown as if it had not.

    Thumbnails are named after the content of their document, so that they never are of another.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "thumbs"
        self._checksums = Recent(_checksum, limit=_WORDS)
        self._looks = Recent(self._read_words, limit=_WORDS)

    def source(self, document: DocumentRow) -> Source:
        """Whether the document can be shown."""
        path = Path(document.path)
        if path.suffix.lower() not in PAGE_SUFFIXES:
            return "vectors"
        try:
            about = path.stat()
            if about.st_mtime == document.mtime:
                return "present"
            seen = self._checksums((document.path, about.st_mtime_ns, about.st_size))
        except (OSError, ValueError):
            return "missing"
        return "present" if seen == document.sha256 else "changed"

    def look(self, document: DocumentRow, number: int) -> Look:
        """Words and shape of a page."""
        source = self.source(document)
        if source != "present":
            return Look(source)
        return self._looks((document.path, document.sha256, number))

    def _read_words(self, page: tuple[str, str, int]) -> Look:
        path, _, number = page
        try:
            found = read_page(Path(path), number)
        except DocumentError:
            return Look("unreadable")
        width, height = found.size
        return Look("present", tuple(found.words), width / height if height else _LETTER)

    def webp(self, document: DocumentRow, number: int, size: str) -> tuple[bytes, Source]:
        """The page as a picture, from the index or drawn now; a placeholder without source."""
        source = self.source(document)
        if source != "present":
            return _placeholder(number, source, SIZES[size]), source
        path = self._folder / f"{document.sha256[:_NAME]}-{number}-{SIZES[size]}.webp"
        with contextlib.suppress(OSError):
            return path.read_bytes(), source
        try:
            picture = read_page(Path(document.path), number).image
        except DocumentError:
            return _placeholder(number, "unreadable", SIZES[size]), "unreadable"
        data = _encoded(picture, SIZES[size])
        with contextlib.suppress(OSError):  # a full disk, or an index that is read-only
            atomic_write(path, lambda file: file.write(data))
        return data, source

    def forget(self, documents: Callable[[], Sequence[DocumentRow]]) -> int:
        """Removes thumbnails of all but these documents; how many they were."""
        try:
            kept = [entry for entry in os.scandir(self._folder) if entry.is_file()]
        except OSError:
            return 0
        known = {d.sha256[:_NAME] for d in documents()} if kept else set()
        gone = [entry for entry in kept if entry.name.partition("-")[0] not in known]
        for entry in gone:
            with contextlib.suppress(OSError):
                os.unlink(entry.path)
        return len(gone)


def _checksum(file: tuple[str, int, int]) -> str:
    return fingerprint(Path(file[0])).sha256


def _encoded(picture: Image, width: int) -> bytes:
    from PIL import Image

    if picture.width > width:
        height = max(1, round(picture.height * width / picture.width))
        picture = picture.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
    out = io.BytesIO()
    picture.save(out, "WEBP", quality=_QUALITY, method=4)
    return out.getvalue()


def _placeholder(number: int, source: Source, width: int) -> bytes:
    """A grey page that says why it is empty."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (width, round(width / _LETTER)), (226, 228, 233))
    draw = ImageDraw.Draw(picture)
    edge, middle = width // 40, picture.height / 2
    frame = (edge, edge, width - edge - 1, picture.height - edge - 1)
    draw.rectangle(frame, outline=(168, 173, 184), width=max(1, width // 200))
    for text, at, size in ((f"page {number}", -0.04, 0.08), (_TOLD[source], 0.04, 0.06)):
        place = (width / 2, middle + at * picture.height)
        draw.text(place, text, fill=(84, 90, 104), anchor="mm", font_size=size * width)
    return _encoded(picture, width)
