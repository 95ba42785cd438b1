"""PDF files, read by PDFium, which knows no threads: one lock for all files of this process.

What PDFium made is closed by us, under the lock: left to the collector it would be closed in any
thread, at any time.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float64

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
    letters, corners, starts = _characters(text)
    if not letters:
        return []
    x, y = _placed(page, corners)
    boxes = np.stack(
        [
            np.minimum.reduceat(x.min(1), starts), np.minimum.reduceat(y.min(1), starts),
            np.maximum.reduceat(x.max(1), starts), np.maximum.reduceat(y.max(1), starts),
        ], axis=1,
    ).tolist()  # fmt: skip
    ends = [*starts[1:], len(letters)]
    return [
        Word("".join(letters[a:b]), tuple(box))
        for a, b, box in zip(starts, ends, boxes, strict=True)
    ]


def _characters(text: Any) -> tuple[list[str], Float64[np.ndarray, "n 4"], list[int]]:
    """Of all words: letters, left, bottom, right and top of each, and where words start.

    Two calls a character and nothing else: a page has thousands.
    """
    from pypdfium2 import PdfiumError, raw

    unicode_of, box_of = raw.FPDFText_GetUnicode, raw.FPDFText_GetCharBox
    left, right, bottom, top = (ctypes.c_double() for _ in range(4))
    into = [ctypes.byref(side) for side in (left, right, bottom, top)]
    letters: list[str] = []
    corners: list[tuple[float, float, float, float]] = []
    starts: list[int] = []
    between = True
    for i in range(text.count_chars()):
        code = unicode_of(text.raw, i)
        letter = chr(code) if code < 0x110000 and not 0xD800 <= code < 0xE000 else "\ufffd"
        if code == 0 or letter.isspace():
            between = True
        elif code != _SOFT_HYPHEN and code >= 0x20:
            if not box_of(text.raw, i, *into):
                raise PdfiumError("a character has no box")
            if between:
                starts.append(len(letters))
                between = False
            letters.append(letter)
            corners.append((left.value, bottom.value, right.value, top.value))
    return letters, np.asarray(corners, np.float64).reshape(-1, 4), starts


def _placed(
    page: Any, corners: Float64[np.ndarray, "n 4"]
) -> tuple[Float64[np.ndarray, "n 2"], Float64[np.ndarray, "n 2"]]:
    """Two opposite corners of boxes, in the coordinates of the PDF, as shares of the page shown.

    That is an affine map, which three points tell.
    """
    from pypdfium2 import raw

    steps, far = 1 << 16, 1e5
    x, y = ctypes.c_int(), ctypes.c_int()

    def point(across: float, up: float) -> Float64[np.ndarray, "2"]:
        raw.FPDF_PageToDevice(page.raw, 0, 0, steps, steps, 0, across, up, x, y)
        return np.array([x.value, y.value]) / steps

    origin = point(0, 0)
    turn = np.stack([point(far, 0) - origin, point(0, far) - origin]) / far
    first, second = (corners[:, i : i + 2] @ turn + origin for i in (0, 2))
    return np.stack([first[:, 0], second[:, 0]], 1), np.stack([first[:, 1], second[:, 1]], 1)
