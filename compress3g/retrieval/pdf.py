"""PDF files, read by PDFium, which knows no threads: one lock for all files of this process.

What PDFium made is closed by us, under the lock: left to the collector it would be closed in any
thread, at any time.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DocumentError, require

if TYPE_CHECKING:
    from PIL.Image import Image

Box = tuple[float, float, float, float]  # left, top, right, bottom as shares of the page
_SOFT_HYPHEN = 0xFFFE  # what the reader gives for a hyphen that only breaks a line
_PDFIUM = threading.RLock()  # reentrant: a document may be collected where it is held


@dataclass(frozen=True, slots=True)
class Word:
    """A word of the text layer and where it stands, as shares of width and height from the top."""

    text: str
    box: Box


class Pdf:
    """An open PDF file, for any thread.

    Raises DocumentError for what is encrypted, damaged or gone.
    """

    def __init__(self, path: Path) -> None:
        pdfium = require("pypdfium2", extra="retrieval", purpose="reading PDF files")
        self._path = path
        try:
            data = path.read_bytes()  # by bytes, so that any file name will do
        except OSError as error:
            raise DocumentError(f"{path}: {error.strerror}") from None
        with _PDFIUM:
            try:
                self._document = pdfium.PdfDocument(data)
            except pdfium.PdfiumError as error:
                if "password" in str(error).lower():
                    told = f"{path} is encrypted: save it without a password"
                    raise DocumentError(told) from None
                raise DocumentError(f"{path} is damaged or has no pages") from None
            weakref.finalize(self, _close, self._document)
            self._pages = len(self._document)

    def __len__(self) -> int:
        """Number of pages."""
        return self._pages

    def where(self, index: int) -> str:
        """What to call a page, the first of which is 0, in a message."""
        return f"{self._path} page {index + 1}"

    def read(self, index: int) -> tuple[list[Word], tuple[float, float]]:
        """Words of a page, and its width and height in points. Raises DocumentError."""
        with self._page(index) as page, closing(page.get_textpage()) as text:
            return _words(page, text), page.get_size()

    def render(self, index: int, scale: float) -> Image:
        """A page in RGB, `scale` pixels a point. Raises DocumentError."""
        with self._page(index) as page, closing(page.render(scale=scale)) as bitmap:
            picture: Image = bitmap.to_pil().convert("RGB")
            return picture

    @contextmanager
    def _page(self, index: int) -> Iterator[Any]:
        import pypdfium2 as pdfium

        with _PDFIUM:
            try:
                with closing(self._document[index]) as page:
                    yield page
            except pdfium.PdfiumError as error:
                raise DocumentError(f"{self.where(index)} is damaged: {error}") from None


def _close(document: Any) -> None:
    with _PDFIUM:
        document.close()


def _words(page: Any, text: Any) -> list[Word]:
    """Characters between blanks, with the box around them; rotation and crop are undone."""
    from pypdfium2 import raw

    place = _placer(page)
    words: list[Word] = []
    letters: list[str] = []
    boxes: list[Box] = []

    def finish() -> None:
        if letters and boxes:
            left, top, right, bottom = zip(*boxes, strict=True)
            words.append(Word("".join(letters), (min(left), min(top), max(right), max(bottom))))
        letters.clear()
        boxes.clear()

    for i in range(text.count_chars()):
        code = raw.FPDFText_GetUnicode(text.raw, i)
        letter = chr(code) if code < 0x110000 and not 0xD800 <= code < 0xE000 else "\ufffd"
        if code == 0 or letter.isspace():
            finish()
        elif code != _SOFT_HYPHEN and code >= 0x20:
            letters.append(letter)
            boxes.append(place(*text.get_charbox(i)))
    finish()
    return words


def _placer(page: Any) -> Callable[[float, float, float, float], Box]:
    """Boxes in the coordinates of the PDF as shares of the page as it is shown."""
    import ctypes

    from pypdfium2 import raw

    steps = 1 << 16
    x, y = ctypes.c_int(), ctypes.c_int()

    def point(across: float, up: float) -> tuple[float, float]:
        raw.FPDF_PageToDevice(page.raw, 0, 0, steps, steps, 0, across, up, x, y)
        return x.value / steps, y.value / steps

    def place(left: float, bottom: float, right: float, top: float) -> Box:
        (x0, y0), (x1, y1) = point(left, top), point(right, bottom)
        return min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)

    return place
