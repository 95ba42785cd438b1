"""Bad input through the command line: one line that says what and where, and nothing is lost."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from compress3g.cli.main import main
from compress3g.retrieval.config import IndexConfig
from compress3g.retrieval.documents import filled_index
from compress3g.retrieval.writer import Writer

from .conftest import make_page
from .documents_made import TOPICS, write_pdf, write_tiny_bert

pytest.importorskip("pypdfium2")
pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_bert(tmp_path_factory.mktemp("model") / "bert")


@pytest.fixture
def good(tmp_path, monkeypatch, model, capsys):
    """An index `idx` of one good file in the working folder."""
    monkeypatch.chdir(tmp_path)
    write_pdf(tmp_path / "good.pdf", TOPICS)
    build = ("build", "good.pdf", "-o", "idx", "--k", "16", "--encoder", f"text:{model}")
    assert call(capsys, *build)[0] == 0
    return tmp_path


def call(capsys, *words) -> tuple[int, str, str]:
    code = main(["index", *map(str, words)])
    out, err = capsys.readouterr()
    return code, out, err


def the_good_page_is_found(capsys) -> bool:
    code, out, _ = call(capsys, "search", "idx", "revenue", "--json")
    pages = {(Path(hit["doc"]).name, hit["page"]) for hit in json.loads(out)["hits"]}
    whole = call(capsys, "verify", "idx", "--deep")[0] == 0
    return code == 0 and whole and {("good.pdf", n) for n in (1, 2, 3, 4)} <= pages


def empty_pdf(path: Path) -> Path:
    import pypdfium2

    document = pypdfium2.PdfDocument.new()
    document.save(path)
    document.close()
    return path


def encrypted_pdf(path: Path) -> Path:
    data = write_pdf(path, TOPICS).read_bytes()
    key = b"<%s>" % (b"11" * 32)
    lock = b"/Encrypt << /Filter /Standard /V 1 /R 2 /P -4 /O %s /U %s >> /ID [<00> <00>]"
    path.write_bytes(data.replace(b"/Root 1 0 R", b"/Root 1 0 R " + lock % (key, key)))
    return path


def truncated_pdf(path: Path) -> Path:
    path.write_bytes(write_pdf(path, TOPICS).read_bytes()[:40])
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (encrypted_pdf, "is encrypted: save it without a password"),
        (truncated_pdf, "is damaged"),
        (empty_pdf, "has no pages"),
    ],
)
def test_a_pdf_that_cannot_be_read_is_skipped_by_name(good, capsys, make, message):
    make(good / "bad.pdf")
    write_pdf(good / "other.pdf", TOPICS[:1])
    code, out, err = call(capsys, "add", "idx", "bad.pdf", "other.pdf")
    assert (code, err.count("\n")) == (3, 1)
    assert "bad.pdf" in err
    assert message in err
    assert "added 1" in out
    code, out, err = call(capsys, "add", "idx", "bad.pdf", "--strict")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert the_good_page_is_found(capsys)


def vectors(value, *, dimension=32):
    pages = np.stack([make_page(s, dimension=dimension).vectors for s in (1, 2)])
    pages[1, 3] = pages[1, 3] * 0 + value if value is not None else pages[1, 3]
    return {"vectors": pages.reshape(-1, dimension), "offsets": np.array([0, 30, 60])}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (vectors(np.nan), "page 2: vector 3 holds NaN or infinity"),
        (vectors(np.inf), "page 2: vector 3 holds NaN or infinity"),
        (vectors(0), "page 2: vector 3 is zero"),
        (vectors(None, dimension=16), "page 1: vectors have dimension 16, the index has 32"),
    ],
)
def test_vectors_that_cannot_be_used_are_named_by_document_and_page(good, capsys, arrays, message):
    np.savez(good / "bad.npz", **arrays)
    code, out, err = call(capsys, "add", "idx", "bad.npz")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"{good / 'bad.npz'} {message}" in err
    assert the_good_page_is_found(capsys)


def test_another_encoder_than_the_index_was_built_with_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_pdf(tmp_path / "good.pdf", TOPICS)
    model = write_tiny_bert(tmp_path / "bert")
    build = ("build", "good.pdf", "-o", "idx", "--k", "16", "--encoder", f"text:{model}")
    assert call(capsys, *build)[0] == 0
    shutil.rmtree(model)
    write_tiny_bert(model, positions=48)
    capsys.readouterr()
    for words in (("search", "idx", "revenue"), ("add", "idx", write_pdf(Path("b.pdf"), TOPICS))):
        code, _, err = call(capsys, *words)
        assert (code, err.count("\n")) == (2, 1)
        assert "was built with encoder" in err


@pytest.mark.parametrize("query", ["", "   ", "\t\n"])
def test_an_empty_query_is_refused(good, capsys, query):
    code, out, err = call(capsys, "search", "idx", query)
    assert (code, out) == (2, "")
    assert "the query is empty" in err


def test_an_index_without_pages_says_so_to_every_question(good, capsys):
    assert call(capsys, "remove", "idx", "good.pdf")[0] == 0
    for words in (("search", "idx", "revenue"), ("bench", "idx")):
        code, _, err = call(capsys, *words)
        assert (code, err.count("\n")) == (2, 1)
        assert "the index is empty" in err
    for words in (("info", "idx"), ("verify", "idx", "--deep"), ("compact", "idx")):
        assert call(capsys, *words)[0] == 0


def test_more_hits_than_pages_are_all_pages_and_fewer_than_one_is_refused(good, capsys):
    code, out, _ = call(capsys, "search", "idx", "revenue", "--k", "99", "--json")
    assert (code, len(json.loads(out)["hits"])) == (0, 4)
    code, _, err = call(capsys, "search", "idx", "revenue", "--k", "0")
    assert (code, "--k 0 is out of range" in err) == (2, True)


def test_a_newer_format_is_refused_with_both_versions(good, capsys):
    with sqlite3.connect(good / "idx" / "catalog.sqlite") as catalog:
        catalog.execute("PRAGMA user_version = 7")
    catalog.close()
    code, out, err = call(capsys, "search", "idx", "revenue")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "has format 7, this compress3g reads up to 1" in err


@pytest.mark.parametrize(
    "where",
    ["1 = 1; DROP TABLE pages", "year = 1 or 1=1 --", "' OR '1'='1", "a = 1) OR (1=1", "\0",
     "doc in (SELECT path FROM documents)", "((((", "(" * 5000 + "a=1" + ")" * 5000,
     "load_extension('x') = 1", "year = 2020 /*", "lang like '%' escape 'x'"],
)  # fmt: skip
def test_conditions_that_are_none_are_refused_and_change_nothing(good, capsys, where):
    for words in (("search", "idx", "revenue"), ("remove", "idx")):
        code, out, err = call(capsys, *words, "--where", where)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert "--where" in err
    assert the_good_page_is_found(capsys)


def test_a_page_of_a_hundred_megapixels_is_indexed_and_drawn_small(good, capsys):
    from PIL import Image

    data = write_pdf(good / "huge.pdf", TOPICS[1:2]).read_bytes()
    # 4800 points are 10,000 pixels at 150 dots an inch; the file is as long as before.
    sheet = data.replace(b"/MediaBox [0 0 612 792] /Rotate 0", b"/MediaBox [0 0 4800 4800]        ")
    assert len(sheet) == len(data)
    assert sheet != data
    (good / "huge.pdf").write_bytes(sheet)
    assert call(capsys, "add", "idx", "huge.pdf")[0] == 0
    code, out, _ = call(
        capsys, "search", "idx", "revenue", "--where", "doc like '%huge.pdf'", "--json",
        "--heatmap", "heat",
    )  # fmt: skip
    (hit,) = json.loads(out)["hits"]
    with Image.open(hit["heatmap"]) as picture:
        assert (code, picture.size) == (0, (2048, 2048))


def test_a_picture_of_a_hundred_megapixels_is_a_page_and_a_larger_one_is_named(good, capsys):
    from PIL import Image

    from compress3g.retrieval.pages import read_pages

    Image.new("1", (10_000, 10_000), 1).save(good / "huge.png")
    (page,) = read_pages(good / "huge.png")
    assert (page.size, page.image.size) == ((10_000, 10_000), (2048, 2048))
    assert page.image.getpixel((5, 5)) == (255, 255, 255)
    Image.new("1", (14_000, 14_000)).save(good / "more.png")
    code, _, err = call(capsys, "add", "idx", "more.png")
    assert code == 3
    assert "more.png is too large" in err


def test_a_file_of_another_kind_is_not_called_damaged(good, capsys):
    from PIL import Image

    (good / "a.txt").write_text("words")
    (good / "b.png").write_text("words")
    Image.new("L", (60, 60), 255).save(good / "c.bmp")  # not looked for, but read when it is named
    code, out, _ = call(capsys, "add", "idx", "a.txt", "b.png", "c.bmp", "--json")
    outcomes = [json.loads(line).get("outcome") for line in out.splitlines()]
    kinds = ".jpeg .jpg .pdf .png .tif .tiff .webp"
    assert code == 3
    assert (
        outcomes[0] == f"skipped: {good / 'a.txt'} is of a kind that cannot be read: give {kinds}"
    )
    assert "b.png is damaged" in outcomes[1]
    assert "is of a kind" not in outcomes[2]


def test_names_that_are_no_utf8_are_found_and_removed(good, capsys):
    name = os.fsencode(good) + b"/caf\xe9.pdf"
    os.rename(write_pdf(good / "plain.pdf", TOPICS[1:2]), name)
    assert call(capsys, "add", "idx", os.fsdecode(name))[0] == 0
    code, out, _ = call(capsys, "search", "idx", "revenue", "--json")
    assert code == 0
    assert os.fsdecode(name) in {hit["doc"] for hit in json.loads(out)["hits"]}
    assert call(capsys, "remove", "idx", os.fsdecode(name))[0] == 0
    assert the_good_page_is_found(capsys)


def test_a_query_of_vectors_shows_the_same_words_as_its_text(good, capsys, model):
    from compress3g.retrieval.encoders import load_encoder

    (query,) = load_encoder(f"text:{model}").encode_queries(["revenue"])
    np.save(good / "q.npy", query)
    asked = [("revenue",), ("--vectors", "q.npy")]
    found = [
        json.loads(call(capsys, "search", "idx", *words, "--heatmap", f"h{i}", "--json")[1])["hits"]
        for i, words in enumerate(asked)
    ]
    for text, given in zip(*found, strict=True):
        assert text["snippet"] == given["snippet"]
        assert Path(text["heatmap"]).read_bytes() == Path(given["heatmap"]).read_bytes()


def test_a_tiny_codebook_that_may_not_grow_is_outgrown_once_and_never_drifts(good, capsys, model):
    words = ("--k", "16", "--encoder", f"text:{model}", "--no-grow")
    assert call(capsys, "build", "good.pdf", "-o", "fixed", *words)[0] == 0
    told = []
    for i in range(4):
        write_pdf(good / f"new{i}.pdf", [[f"{j} quite other words {i}"] for j in range(8)])
        code, _, err = call(capsys, "add", "fixed", f"new{i}.pdf")
        assert code == 0
        told += [line for line in err.splitlines() if "codebook" in line]
    assert len(told) == 1
    assert "was trained on" in told[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nowhere.pdf",), "nowhere.pdf does not exist"),
        (("empty",), "empty holds no document"),
        (("other.pdf", "--k", "99999"), "--k 99999 is unknown here: give auto, or 1 to 65536"),
        (("other.pdf", "--actors", "2"), "--actors needs --ray."),
    ],
)
def test_a_build_of_what_cannot_be_leaves_no_folder(good, capsys, words, message):
    write_pdf(good / "other.pdf", TOPICS[:1])
    (good / "empty").mkdir()
    code, out, err = call(capsys, "build", "-o", "new", *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert not (good / "new").exists()


def test_a_build_of_which_nothing_can_be_read_is_one_line_and_leaves_no_folder(good, capsys, model):
    bad = [truncated_pdf(good / "bad.pdf"), good / "none.pdf"]
    bad[1].touch()
    build = ("build", *bad, "-o", "new", "--k", "16", "--encoder", f"text:{model}")
    for words, more in (((), "(and 1 more)"), (("--strict",), "is damaged")):
        code, out, err = call(capsys, *build, *words)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert "bad.pdf is damaged" in err
        assert more in err
        assert not (good / "new").exists()
    (good / "new").mkdir()
    (good / "new" / "mine").touch()
    assert call(capsys, *build)[0] == 2
    assert [p.name for p in (good / "new").iterdir()] == ["mine"]
    assert call(capsys, *build, "good.pdf")[0] == 3
    assert call(capsys, "add", "idx", *bad)[0] == 3
    assert the_good_page_is_found(capsys)


def test_an_index_that_another_process_fills_is_never_taken_for_unused(good, capsys, model):
    words = ("build", "good.pdf", "-o", "new", "--k", "16", "--encoder", f"text:{model}")
    with filled_index(good / "new", ["good.pdf"], f"text:{model}", IndexConfig(k=16)):
        held = Writer(good / "new")
        assert "is being written by process" in call(capsys, *words)[2]
    held.close()
    assert call(capsys, *words)[0] == 0
