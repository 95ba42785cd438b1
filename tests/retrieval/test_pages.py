"""Pages: words where they stand, pictures, one line for what cannot be read."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from compress3g.errors import DocumentError
from compress3g.retrieval.pages import page_of_text, read_page, read_pages

from .documents_made import MANY, TOPICS, write_pdf

pytest.importorskip("pypdfium2")


def ink(picture, box):
    """Share of dark pixels inside a box given in shares of the page."""
    width, height = picture.size
    crop = picture.convert("L").crop(
        (int(box[0] * width), int(box[1] * height), int(box[2] * width) + 1,
         int(box[3] * height) + 1)
    )  # fmt: skip
    return float((np.asarray(crop) < 128).mean())


@pytest.mark.parametrize("rotate", [0, 90, 180, 270])
def test_all_ink_of_a_page_is_inside_the_boxes_of_its_words(tmp_path, rotate):
    path = write_pdf(tmp_path / "a.pdf", TOPICS[:1], rotate=rotate)
    (page,) = read_pages(path)
    assert sorted(w.text for w in page.words) == sorted(" ".join(TOPICS[0]).split())
    picture = page.image
    assert (picture.width > picture.height) == (page.size[0] > page.size[1]) == (rotate % 180 == 90)
    assert min(ink(picture, w.box) for w in page.words) > 0.1
    width, height = picture.size
    for left, top, right, bottom in (w.box for w in page.words):
        box = (int(left * width) - 2, int(top * height) - 2,
               int(right * width) + 3, int(bottom * height) + 3)  # fmt: skip
        picture.paste("white", box)
    assert np.asarray(picture.convert("L")).min() > 128


@pytest.mark.parametrize("rotate", [0, 90, 180, 270])
def test_boxes_are_where_pdfium_itself_puts_each_character(tmp_path, rotate):
    import ctypes

    import pypdfium2
    from pypdfium2 import raw

    path = write_pdf(tmp_path / "a.pdf", [["two words", "(more)"]], rotate=rotate)
    (page,) = read_pages(path)
    document = pypdfium2.PdfDocument(path.read_bytes())
    theirs = document[0]
    text = theirs.get_textpage()
    x, y = ctypes.c_int(), ctypes.c_int()
    boxes, box = [], []
    for i in range(text.count_chars()):
        if not text.get_text_range(i, 1).strip():
            boxes, box = [*boxes, box], []
            continue
        left, bottom, right, top = text.get_charbox(i)
        for across, up in ((left, bottom), (right, top)):
            raw.FPDF_PageToDevice(theirs.raw, 0, 0, 60_000, 60_000, 0, across, up, x, y)
            box.append((x.value / 60_000, y.value / 60_000))
    boxes = [np.array(b) for b in (*boxes, box) if b]
    assert len(boxes) == len(page.words) == 3
    for word, points in zip(page.words, boxes, strict=True):
        # PDFium rounds to whole steps, twice: in the reference and where the map is measured.
        np.testing.assert_allclose(word.box[:2], points.min(0), atol=2 / 60_000)
        np.testing.assert_allclose(word.box[2:], points.max(0), atol=2 / 60_000)
    text.close()
    theirs.close()
    document.close()


def test_words_come_in_reading_order_on_every_page(tmp_path):
    path = write_pdf(tmp_path / "a.pdf", TOPICS)
    texts = [" ".join(w.text for w in page.words) for page in read_pages(path)]
    assert texts == [" ".join(lines) for lines in TOPICS]
    assert " ".join(w.text for w in read_page(path, 2).words) == texts[1]


def test_every_frame_of_a_tiff_is_a_page_without_words(tmp_path):
    frames = [Image.new("RGB", (40, 30 + 10 * i), (80 * i, 0, 0)) for i in range(3)]
    frames[0].save(tmp_path / "a.tiff", save_all=True, append_images=frames[1:])
    pages = list(read_pages(tmp_path / "a.tiff"))
    assert [p.size for p in pages] == [(40, 30), (40, 40), (40, 50)]
    assert [p.image.getpixel((0, 0)) for p in pages] == [(0, 0, 0), (80, 0, 0), (160, 0, 0)]
    assert not any(p.digital or p.words for p in pages)


@pytest.mark.parametrize("name", ["a.pdf", "a.png", "a.tif"])
@pytest.mark.parametrize("content", [b"", b"%PDF-1.4 cut", bytes(100)])
def test_damaged_files_are_named_in_one_line(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DocumentError, match=rf"{name} is damaged") as caught:
        list(read_pages(path))
    assert "\n" not in str(caught.value)


def test_a_page_that_is_not_there_is_named(tmp_path):
    path = write_pdf(tmp_path / "a.pdf", TOPICS)
    for number in (0, 5):
        with pytest.raises(DocumentError, match=f"has no page {number}"):
            read_page(path, number)


def test_a_text_becomes_words_that_do_not_overlap():
    page = page_of_text(" ".join(f"w{i}" for i in range(25)))
    boxes = [w.box for w in page.words]
    assert len(set(boxes)) == len(page.words) == 25
    assert page.image.mode == "RGB"


def test_an_encrypted_file_is_named(tmp_path):
    path = write_pdf(tmp_path / "a.pdf", TOPICS)
    key = b"<%s>" % (b"11" * 32)
    lock = b"/Encrypt << /Filter /Standard /V 1 /R 2 /P -4 /O %s /U %s >> /ID [<00> <00>]" % (
        key, key,
    )  # fmt: skip
    path.write_bytes(path.read_bytes().replace(b"/Root 1 0 R", b"/Root 1 0 R " + lock))
    with pytest.raises(DocumentError, match=r"a\.pdf is encrypted"):
        list(read_pages(path))


def test_threads_may_read_and_forget_files_at_once(tmp_path):
    """PDFium knows no threads; where two are in it, the process ends."""
    files = [write_pdf(tmp_path / f"{i}.pdf", MANY[i::7]) for i in range(4)]
    words = [[w.text for w in page.words] for f in files for page in read_pages(f)]
    alone = read_page(files[0], 1).image.size

    def read(file):
        pages = list(read_pages(file))  # the document is still held by its pages
        return [([w.text for w in page.words], page.image.size) for page in reversed(pages)]

    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            found = list(pool.map(read, files * 2))
            assert [w for file in found[:4] for w, _ in reversed(file)] == words
            assert {size for file in found for _, size in file} == {alone}
