"""`index serve`: answers are the index's, bad requests are one line, sources may go and change."""

from __future__ import annotations

import io
import os
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from compress3g.retrieval.config import IndexConfig
from compress3g.retrieval.index import Index
from compress3g.retrieval.pages import read_page

from .documents_made import TOPICS, write_pdf

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("pypdfium2")

from PIL import Image
from starlette.testclient import TestClient

from compress3g.retrieval.server import app as server
from compress3g.retrieval.server.pictures import Pictures
from compress3g.retrieval.server.reader import Reader

STATIC = Path(server.__file__).parent / "static"
BASE = "http://127.0.0.1:8311"


def make_index(folder, encoder):
    write_pdf(folder / "report.pdf", TOPICS[:3])
    write_pdf(folder / "bread.pdf", TOPICS[3:])
    made = Index.create(folder / "idx", encoder=encoder, config=IndexConfig(k=64, store="f16"))
    made.add([folder / "report.pdf"], metadata={"year": 2024, "lang": "en"})
    made.add([folder / "bread.pdf"], metadata={"year": 1999, "lang": "de"})
    return made


@contextmanager
def asking(index, base=BASE, **options):
    with ThreadPoolExecutor(3) as pool:
        app = server.make_app(Reader(index), Pictures(index.path), pool, **options)
        with TestClient(app, base_url=base, raise_server_exceptions=False) as made:
            yield made


@pytest.fixture
def index(tmp_path, encoder):
    with make_index(tmp_path, encoder) as made:
        yield made


@pytest.fixture
def client(index):
    with asking(index) as made:
        yield made


@pytest.fixture(scope="module")
def unchanged(tmp_path_factory, encoder):
    """For tests that change neither index nor documents."""
    with make_index(tmp_path_factory.mktemp("unchanged"), encoder) as index, asking(index) as made:
        yield made


def search(client, q: str, **parameters):
    answer = client.get("/api/search", params={"q": q, **parameters})
    assert answer.status_code == 200, answer.text
    return answer.json()


def picture(answer) -> Image.Image:
    assert answer.status_code == 200, answer.text
    return Image.open(io.BytesIO(answer.content))


def test_hits_are_those_of_the_index(client, index):
    for query, where in (("net revenue", ""), ("the river", "year < 2000 or page in (1, 3)")):
        answer = search(client, query, where=where, k=3)
        expected = index.search(query, k=3, where=where or None)
        got = [(h["page_id"], h["doc"], h["page"], h["meta"]) for h in answer["hits"]]
        assert got == [(h.page_id, h.doc, h.page, h.meta) for h in expected]
        assert [h["score"] for h in answer["hits"]] == pytest.approx([h.score for h in expected])
        stages = {"encode", "scan", "rescore", "exact", "snippets", "total"}
        assert set(answer["milliseconds"]) == stages
    assert answer["scanned"] == 3  # pages 1 and 3 of the report, and the only one of 1999


def test_tokens_are_the_words_as_typed_and_their_scores_add_up(unchanged):
    answer = search(unchanged, "The  RIVER, revenue")
    assert "".join(answer["tokens"]) == " The RIVER, revenue"
    for hit in answer["hits"]:
        assert len(hit["token_scores"]) == len(answer["tokens"])
        # half precision of the stored vectors, from which both come
        assert sum(hit["token_scores"]) == pytest.approx(hit["score"], abs=1e-3)


def test_snippets_are_words_of_the_page(unchanged):
    for hit in search(unchanged, "river")["hits"]:
        topic = TOPICS[hit["page"] - 1] if hit["name"] == "report.pdf" else TOPICS[3]
        assert hit["snippet"] == " ".join(" ".join(topic).split())


def test_a_picture_is_the_page_and_is_kept(client, index):
    hit = search(client, "river")["hits"][0]
    for size, width in (("thumb", 320), ("full", 1275)):  # 8.5 inches at 150 dots
        answer = client.get(f"/api/page/{hit['page_id']}.webp", params={"size": size})
        with picture(answer) as got:
            assert (got.format, got.width) == ("WEBP", width)
            assert got.width / got.height == pytest.approx(hit["aspect"], rel=0.01)
            expected = read_page(Path(hit["doc"]), hit["page"]).image.resize(got.size)
            difference = np.asarray(got.convert("RGB"), int) - np.asarray(expected, int)
        assert np.abs(difference).mean() < 3  # of 255: lossy, and another filter
        again = client.get(f"/api/page/{hit['page_id']}.webp", params={"size": size})
        assert again.content == answer.content
    kept = sorted((index.path / "thumbs").iterdir())
    assert [p.suffix for p in kept] == [".webp", ".webp"]  # no temporary file either
    kept[0].write_bytes(b"kept")
    served = [
        client.get(f"/api/page/{hit['page_id']}.webp", params={"size": s}).content
        for s in ("thumb", "full")
    ]
    assert b"kept" in served


def test_a_folder_that_cannot_be_written_only_keeps_no_thumbnails(client, index, monkeypatch):
    def full(path, write):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("compress3g.retrieval.server.pictures.atomic_write", full)
    with picture(client.get("/api/page/0.webp")) as got:
        assert got.width == 320


@pytest.mark.parametrize("what", ["missing", "changed", "unreadable"])
def test_a_source_that_is_not_what_was_indexed_is_not_shown(client, index, what):
    hit = search(client, "net revenue", where="year = 2024")["hits"][0]
    address = f"/api/page/{hit['page_id']}.webp"
    before = client.get(address)
    assert before.headers["cache-control"].startswith("private")
    path = Path(hit["doc"])
    if what == "missing":
        path.unlink()
    elif what == "changed":
        write_pdf(path, [["something else"]] * 3)
        os.utime(path, (1, 1))
    else:
        original = path.stat()
        path.write_bytes(b"%PDF-1.4 cut short")
        os.utime(path, ns=(original.st_atime_ns, original.st_mtime_ns))
        for thumbnail in (index.path / "thumbs").iterdir():
            thumbnail.unlink()
    after = client.get(address)
    assert after.headers["cache-control"] == "no-store"
    with picture(after) as got, picture(before) as page:
        assert got.width == 320
        assert np.median(np.asarray(page.convert("L"))) > 250  # paper
        assert np.median(np.asarray(got.convert("L"))) < 245  # grey
    again = search(client, "revenue river", where="year = 2024")["hits"]
    expected = "present" if what == "unreadable" else what  # whose words were read before
    assert {h["source"] for h in again} == {expected}
    layer = client.get(f"/api/heatmap/{hit['page_id']}", params={"q": "net revenue"})
    with picture(layer) as got:
        assert np.asarray(got)[..., 3].any()


def test_a_source_touched_but_not_changed_is_shown(client, index):
    hit = search(client, "bread", where="year = 1999")["hits"][0]
    os.utime(hit["doc"], (1, 1))
    assert search(client, "crust", where="year = 1999")["hits"][0]["source"] == "present"


def test_heat_is_strongest_on_the_word_that_fits_best(client, index):
    hit = search(client, "river", where="year = 2024")["hits"][0]
    tokens = search(client, "the river")["tokens"]
    page = read_page(Path(hit["doc"]), hit["page"])
    assert tokens == [" the", " river"]
    maps = {}
    for token in (None, 0, 1):
        asked = {"q": "the river"} | ({} if token is None else {"token": token})
        with picture(client.get(f"/api/heatmap/{hit['page_id']}", params=asked)) as got:
            assert (got.format, got.mode) == ("PNG", "RGBA")
            maps[token] = np.asarray(got)[..., 3].astype(float)
    vectors = index.encoder.encode_queries(["the river"])[0]
    heat = index.heatmap(vectors, hit["page_id"])
    for token, alpha in maps.items():
        height, width = alpha.shape
        cells = heat.sum(0) if token is None else heat[token]
        row, column = np.unravel_index(np.nanargmax(cells), cells.shape)
        best = [
            w for w in page.words
            if int((w.box[1] + w.box[3]) / 2 * 112) == row
            and int(w.box[0] * 80) <= column <= int(w.box[2] * 80)
        ]  # fmt: skip
        assert len(best) == 1
        left, top, right, bottom = best[0].box
        at = int((top + bottom) / 2 * height), int((left + right) / 2 * width)
        assert alpha[at] == alpha.max() > 100
    assert (maps[0] != maps[1]).any()


BAD = [
    ("/api/search", 400, "q: field required"),
    ("/api/search?q=", 400, "query is empty"),
    ("/api/search?q=%20%09", 400, "query is empty"),
    ("/api/search?q=a&k=0", 400, "k: "),
    ("/api/search?q=a&k=101", 400, "k: "),
    ("/api/search?q=a&k=many", 400, "k: "),
    (f"/api/search?q={'a' * 9000}", 400, "q: "),
    (f"/api/search?q={'river+' * 300}", 400, "word-pieces"),
    ("/api/search?q=a&where=year+%3D", 400, "where: expected"),
    ("/api/search?q=a&where=1%3D1", 400, "where: "),
    ("/api/search?q=a&where=year+%3D+1%3B+drop+table+pages", 400, "where: cannot read ';"),
    ("/api/search?q=a&where=year+%3D+1+union+select+1", 400, "where: expected"),
    ("/api/search?q=a&where=lang+%3D+'x'+--", 400, "where: "),
    ("/api/search?q=a&where=lang+%3D+'%00'", 400, "where: cannot read"),
    (f"/api/search?q=a&where={'(' * 400}", 400, "where: more than 40"),
    (f"/api/search?q=a&where={'a=1+and+' * 250}a=1", 400, "where: more than 200"),
    ("/api/page/99.webp", 404, "no page 99"),
    ("/api/page/-1.webp", 400, "page: "),
    ("/api/page/1e3.webp", 400, "page: "),
    (f"/api/page/{10**30}.webp", 400, "page: "),
    ("/api/page/0.webp?size=huge", 400, "size: "),
    ("/api/page/0.png", 404, "nothing at"),
    ("/api/page/..%2f..%2fcatalog.sqlite.webp", 404, "nothing at"),
    ("/api/page/%2e%2e.webp", 400, "page: "),
    ("/api/heatmap/0", 400, "q: field required"),
    ("/api/heatmap/0?q=", 400, "query is empty"),
    ("/api/heatmap/99?q=a", 404, "no page 99"),
    ("/api/heatmap/0?q=the+river&token=2", 400, "token 2: the query has 2 tokens"),
    ("/api/heatmap/0?q=a&token=-1", 400, "token: "),
    ("/static/app.py", 404, "nothing at"),
    ("/static/..%2fapp.py", 404, "nothing at"),
    ("/static/%2e%2e/app.py", 404, "nothing at"),
    ("/static/%2fetc%2fpasswd", 404, "nothing at"),
    ("/static/index.html%00", 404, "nothing at"),
    ("/thumbs/x.webp", 404, "nothing at"),
    ("/docs", 404, "nothing at"),
    ("/openapi.json", 404, "nothing at"),
]


@pytest.mark.parametrize(("address", "status", "told"), BAD)
def test_bad_requests_are_one_line_of_json(unchanged, address, status, told):
    answer = unchanged.get(address)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    (error,) = answer.json().values()
    assert told in error
    assert "\n" not in error
    assert search(unchanged, "river")["hits"]  # and nothing broke


def test_only_reading_is_answered(unchanged):
    for method in ("POST", "PUT", "DELETE"):
        answer = unchanged.request(method, "/api/search?q=a")
        assert (answer.status_code, answer.json()) == (405, {"error": "Method Not Allowed"})


def test_names_of_other_machines_are_refused(client, index):
    for host in ("127.0.0.1:8311", "localhost", "localhost:80", "[::1]:8311"):
        assert client.get("/healthz", headers={"host": host}).status_code == 200
    for host in ("evil.example", "127.0.0.1.evil.example:80", ""):
        answer = client.get("/healthz", headers={"host": host})
        assert answer.status_code == 400
        assert "is not this machine" in answer.json()["error"]
    with asking(index, "http://archive.example", hosts=False) as open_to_all:
        assert open_to_all.get("/healthz").status_code == 200


def test_what_others_commit_is_seen_at_the_next_request(client, index, tmp_path, encoder):
    assert client.get("/healthz").json()["pages"] == 4
    new = write_pdf(tmp_path / "new.pdf", [TOPICS[0]])
    with Index.open(index.path, encoder=encoder) as other:
        other.add([new], metadata={"year": 2030})
    hit = search(client, "river", where="year = 2030")["hits"][0]
    address = f"/api/page/{hit['page_id']}.webp"
    assert client.get(address).status_code == 200
    with Index.open(index.path, encoder=encoder) as other:
        other.remove(str(new))
    assert client.get(address).status_code == 404
    assert search(client, "river", where="year = 2030")["hits"] == []
    # What was shown of it goes when the next server starts.
    assert Pictures(index.path).forget(index.documents) == 1


def test_threads_search_while_another_process_would_write(client, index, tmp_path, encoder):
    paths = [write_pdf(tmp_path / f"n{i}.pdf", [TOPICS[i % 4]]) for i in range(4)]
    wrong, done = [], threading.Event()

    def ask(i: int) -> None:
        while not done.is_set():
            for address in (f"/api/search?q=river+{i}", "/api/page/0.webp", "/api/heatmap/0?q=the"):
                answer = client.get(address)
                if answer.status_code != 200:
                    wrong.append((address, answer.text))

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    try:
        with Index.open(index.path, encoder=encoder) as other:
            for path in paths:
                other.add([path])
                other.remove(str(path))
            other.compact()
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    # The last commit may be younger than every thread's last question.
    assert client.get("/api/search?q=river").status_code == 200
    assert len(index) == 4
    assert not index.outdated()


def test_a_slow_search_does_not_stop_other_requests(client, monkeypatch):
    began, go_on = threading.Event(), threading.Event()

    def slow(*_):
        began.set()
        assert go_on.wait(60)
        return {}

    monkeypatch.setattr(server, "_search", slow)
    with ThreadPoolExecutor(1) as elsewhere:
        answer = elsewhere.submit(client.get, "/api/search?q=a")
        try:
            assert began.wait(60)
            assert client.get("/").status_code == 200
            assert client.get("/healthz").status_code == 200
            assert not answer.done()
        finally:
            go_on.set()
        assert answer.result(60).status_code == 200


def test_an_index_that_was_removed_is_said_to_be(client, index):
    for file in index.path.glob("catalog.sqlite*"):
        file.rename(file.with_name(f"was-{file.name}"))
    answer = client.get("/api/search?q=river")
    assert answer.status_code == 503
    assert "start it again" in answer.json()["error"]


def test_names_and_metadata_that_are_no_utf8_are_answered(client, index, tmp_path):
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.pdf")
    os.rename(write_pdf(tmp_path / "plain.pdf", [TOPICS[1]]), odd)
    index.add([odd], metadata={"note": "caf\udce9", "n": 7})
    hit = search(client, "net revenue", where="n = 7")["hits"][0]
    assert hit["name"] == "caf?.pdf"
    assert hit["source"] == "present"
    assert client.get(f"/api/page/{hit['page_id']}.webp").headers["cache-control"] != "no-store"


def test_an_index_without_patches_has_hits_and_no_heat(tmp_path, encoder):
    write_pdf(tmp_path / "a.pdf", TOPICS)
    config = IndexConfig(k=64, residual="none", patches=False)
    with Index.create(tmp_path / "tiny", encoder=encoder, config=config) as index:
        index.add([tmp_path / "a.pdf"])
    with Index.open(tmp_path / "tiny", encoder=encoder) as index, asking(index) as client:
        hits = search(client, "river")["hits"]
        assert [h["token_scores"] for h in hits] == [None] * 4
        answer = client.get("/api/heatmap/0?q=river")
        assert (answer.status_code, "--patches" in answer.json()["error"]) == (400, True)


def test_the_page_asks_nobody_else_and_names_what_it_has(unchanged):
    html = unchanged.get("/").text
    assert "default-src 'self'" in unchanged.get("/").headers["content-security-policy"]
    script = unchanged.get("/static/script.js").text
    style = unchanged.get("/static/style.css").text
    for text in (html, script, style):
        assert not re.search(r"(?:https?:)?//[\w.]+\.\w", text)
    assert set(re.findall(r'\$\("([\w-]+)"\)', script)) <= set(re.findall(r'\bid="([\w-]+)"', html))
    assert set(re.findall(r"/static/[\w.]+", html)) == {f"/static/{n}" for n in server._FILES}
    for control in re.findall(r"<(?:input|select)\b[^>]*>", html):
        before = html[: html.index(control)]
        assert before.rfind("<label") > before.rfind("</label"), control  # inside its label
    assert all("alt=" in image for image in re.findall(r"<img\b[^>]*>", html))
    assert {p.name for p in STATIC.iterdir()} == {"index.html", *server._FILES}
