"""Pages of documents: a picture when asked for one, and the words of the text layer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DocumentError
from .pdf import Pdf, Word

if TYPE_CHECKING:
    from PIL.Image import Image

PAGE_SUFFIXES = frozenset({".pdf", ".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff"})
RESOLUTION = 150.0  # dots per inch of a rendered page
LARGEST_SIDE = 2048  # pixels of a page as encoders see it


@dataclass(frozen=True, slots=True, eq=False)
class PageImage:
    """A page as encoders see it.

    words: of the text layer, in its order. size: width and height in points, of a picture in
    its pixels. digital: False for a picture, which never has words.
    """

    words: Sequence[Word]
    size: tuple[float, float]
    digital: bool
    where: str
    _picture: Callable[[], Image] = field(repr=False)

    @property
    def image(self) -> Image:
        """The page rendered, RGB, at most 2048 pixels wide and high; anew each time: keep it."""
        return self._picture()


def read_pages(path: Path, first: int = 0, stop: int | None = None) -> Iterator[PageImage]:
    """The pages of a PDF or of a picture of one or more pages, one after another.

    first, stop: only pages first to stop - 1, from 0. Raises DocumentError for what is encrypted,
    damaged or unknown.
    """
    if path.suffix.lower() == ".pdf":
        document = Pdf(path)
        return (_pdf_page(document, i) for i in range(len(document))[first:stop])
    return islice(_pictures(path), first, stop)


def count_pages(path: Path) -> int | None:
    """Pages of a PDF; None for what has to be read to be counted. Raises DocumentError."""
    return len(Pdf(path)) if path.suffix.lower() == ".pdf" else None


def read_page(path: Path, number: int, *, open_pdf: Callable[[Path], Pdf] = Pdf) -> PageImage:
    """One page; the first is 1. open_pdf: for who keeps files open, to read more pages of them.

    Raises DocumentError as `read_pages`, and for a number too high.
    """
    if path.suffix.lower() == ".pdf":
        document = open_pdf(path)
        if 1 <= number <= len(document):
            return _pdf_page(document, number - 1)
    else:
        for i, page in enumerate(_pictures(path), 1):
            if i == number:
                return page
    raise DocumentError(f"{path} has no page {number}: it has changed since it was indexed")


def page_of_image(image: Image, where: str = "a picture") -> PageImage:
    """A picture that is already in memory as a page."""
    from PIL import Image

    size = float(image.width), float(image.height)
    scale = min(1.0, LARGEST_SIDE / max(size))
    small = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
    if image.mode != "RGB" and image.mode != "L":
        image = image.convert("RGB")  # palettes and bits cannot be averaged
    if small != image.size:
        image = image.resize(small, Image.Resampling.BICUBIC, reducing_gap=3.0)
    picture = image.convert("RGB")
    return PageImage((), size, False, where, lambda: picture)


def page_of_text(text: str, where: str = "a text") -> PageImage:
    """A text without a page: words one below another in lines of ten, on white paper."""
    texts = text.split()
    lines = max(1, -(-len(texts) // _PER_LINE))
    words = [
        Word(t, (c / _PER_LINE, r / lines, (c + 1) / _PER_LINE, (r + 1) / lines))
        for i, t in enumerate(texts)
        for r, c in [divmod(i, _PER_LINE)]
    ]
    return PageImage(words, (595.0, 842.0), True, where, lambda: _typeset(words))


_PER_LINE = 10


def _typeset(words: Sequence[Word]) -> Image:
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (1240, 1754), "white")
    draw = ImageDraw.Draw(picture)
    for word in words:
        draw.text((word.box[0] * 1240, word.box[1] * 1754), word.text, fill="black", font_size=20)
    return picture


def _pictures(path: Path) -> Iterator[PageImage]:
    from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError

    try:
        with warnings.catch_warnings():  # large pages are welcome, twice as large ones an error
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            file = Image.open(path)
        with file:
            for i, frame in enumerate(ImageSequence.Iterator(file), 1):
                yield page_of_image(ImageOps.exif_transpose(frame), f"{path} page {i}")
    except Image.DecompressionBombError:
        raise DocumentError(f"{path} is too large: 178 megapixels a page at most") from None
    except (OSError, ValueError, SyntaxError) as error:
        if isinstance(error, UnidentifiedImageError) and path.suffix.lower() not in PAGE_SUFFIXES:
            known = " ".join(sorted(PAGE_SUFFIXES))
            raise DocumentError(f"{path} is of a kind that cannot be read: give {known}") from None
        raise DocumentError(f"{path} is damaged: {' '.join(str(error).split())[:120]}") from None


def _pdf_page(document: Pdf, index: int) -> PageImage:
    words, size = document.read(index)

    def picture() -> Image:
        scale = min(RESOLUTION / 72, LARGEST_SIDE / max(size))
        return document.render(index, scale)

    return PageImage(words, size, True, document.where(index), picture)
