"""`compress3g index`: exit codes, one-line errors, JSON that parses."""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from compress3g.cli.main import main
from compress3g.retrieval.writer import Writer

from .conftest import make_page, make_query


def write_vectors(path: Path, seeds) -> None:
    pages = [make_page(seed) for seed in seeds]
    np.savez(
        path,
        vectors=np.concatenate([p.vectors for p in pages]),
        offsets=np.cumsum([0] + [len(p) for p in pages]),
        grid=np.concatenate([p.grid for p in pages]),
    )


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "corpus"
    folder.mkdir()
    for i in range(5):
        write_vectors(folder / f"d{i}.npz", range(10 * i, 10 * i + 1 + i % 3))
    np.save(tmp_path / "q.npy", make_page(21).vectors[:6].astype(np.float32))
    return folder


def call(capsys, *words: str) -> tuple[int, str, str]:
    code = main(["index", *map(str, words)])
    out, err = capsys.readouterr()
    return code, out, err


BUILD = ("build", "corpus", "-o", "idx", "--encoder", "vectors", "--k", "64", "--store", "f16")


@pytest.fixture
def built(corpus, capsys):
    assert call(capsys, *BUILD, "--meta", "year=2024", "--meta", "lang=en")[0] == 0
    return corpus


def test_build_search_remove_compact_verify(built, capsys):
    code, out, _ = call(capsys, "search", "idx", "--vectors", "q.npy", "--k", "2", "--json")
    hits = json.loads(out)["hits"]
    assert code == 0
    assert (Path(hits[0]["doc"]).name, hits[0]["page"]) == ("d2.npz", 2)
    assert hits[0]["meta"] == {"year": 2024, "lang": "en"}
    assert call(capsys, "remove", "idx", "corpus/d2.npz", "--json")[1] == '{"pages": 3}\n'
    assert call(capsys, "compact", "idx")[0] == 0
    code, out, _ = call(capsys, "verify", "idx", "--deep", "--json")
    assert (code, json.loads(out)["problems"], json.loads(out)["pages"]) == (0, [], 6)
    assert "d2.npz" not in call(capsys, "search", "idx", "--vectors", "q.npy")[1]


def test_json_of_an_addition_is_a_line_for_each_document_and_a_total(built, capsys):
    write_vectors(built / "d0.npz", [99])
    write_vectors(built / "new.npz", [77, 78])
    code, out, _ = call(capsys, "add", "idx", "corpus", "--json")
    *documents, total = map(json.loads, out.splitlines())
    assert code == 0
    outcomes = {Path(d["path"]).name: d["outcome"] for d in documents}
    assert outcomes == {
        "d0.npz": "replaced", "d1.npz": "unchanged", "d2.npz": "unchanged", "d3.npz": "unchanged",
        "d4.npz": "unchanged", "new.npz": "added",
    }  # fmt: skip
    assert total == {
        "added": 1, "replaced": 1, "unchanged": 4, "skipped": 0, "pages": 3, "vectors": 90,
        "retrained": False,
    }  # fmt: skip


def test_files_that_cannot_be_read_are_skipped_with_code_3(corpus, capsys):
    (corpus / "broken.npz").write_bytes(b"PK\x03\x04 cut short")
    code, _, err = call(capsys, *BUILD)
    assert code == 3
    assert err.count("\n") == 1
    assert err.startswith(f"skipped: {corpus / 'broken.npz'} is damaged: ")
    code, _, err = call(capsys, "add", "idx", "corpus", "--strict")
    assert code == 2
    assert err.startswith("error: ")
    assert "broken.npz" in err


def test_npy_files_are_pages_of_vectors_and_pictures_beside_them_are_left_alone(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Path("vec").mkdir()
    for seed in range(5):
        np.save(f"vec/p{seed}.npy", make_page(seed).vectors)
    Path("vec/photo.png").write_bytes(b"none")
    words = ("-o", "idx", "--encoder", "vectors", "--k", "64", "--store", "f16")
    code, out, err = call(capsys, "build", "vec", *words)
    assert (code, err) == (0, "")
    assert "5 documents, 5 pages" in out
    np.save("q.npy", make_page(3).vectors[:6].astype(np.float32))
    assert "p3.npy page 1" in call(capsys, "search", "idx", "--vectors", "q.npy", "--k", "1")[1]
    assert call(capsys, "add", "idx", "vec")[1].startswith("unchanged 5")


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("a.npy", lambda f: np.save(f, np.ones((2, 3, 8), np.float32)), "of shape (2, 3, 8)"),
        ("a.npy", lambda f: np.save(f, np.ones((2, 8))), "type float64: give [patches"),
        ("a.npy", lambda f: f.write(b"words"), "a.npy is damaged: EOF"),
        ("a.npz", lambda f: np.savez(f, embeddings=np.ones((2, 8))), "`vectors`: it has embed"),
        ("a.txt", lambda f: f.write(b"words"), "a.txt is no file of vectors: vectors are float16"),
        ("vec/a.png", lambda f: f.write(b"words"), "looked for .npy .npz .safetensors; vectors"),
    ],
)  # fmt: skip
def test_files_without_vectors_are_refused_with_file_and_reason(
    tmp_path, monkeypatch, capsys, name, make, message
):
    monkeypatch.chdir(tmp_path)
    Path("vec").mkdir()
    with open(name, "wb") as file:
        make(file)
    source = "vec" if name.startswith("vec") else name
    code, out, err = call(capsys, "build", source, "-o", "idx", "--encoder", "vectors")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert not Path("idx").exists()


def test_building_again_goes_on_and_other_settings_are_refused(built, capsys):
    code, out, _ = call(capsys, *BUILD)
    assert code == 0
    assert "unchanged 5" in out
    code, _, err = call(capsys, *BUILD, "--pool", "2")
    assert code == 2
    assert "other settings" in err


def test_presets_give_way_to_options(corpus, capsys):
    words = ("build", "corpus", "-o", "idx", "--encoder", "vectors", "--preset", "tiny")
    assert call(capsys, *words, "--store", "int8")[0] == 0
    config = json.loads(call(capsys, "info", "idx", "--json")[1])["config"]
    assert (config["k"], config["patches"], config["store"]) == (256, False, "int8")


def test_heat_maps_are_pictures_of_the_patches(built, capsys):
    from PIL import Image

    code, out, _ = call(
        capsys, "search", "idx", "--vectors", "q.npy", "--k", "1", "--heatmap", "heat", "--json"
    )
    assert code == 0
    with Image.open(json.loads(out)["hits"][0]["heatmap"]) as picture:
        assert picture.width * 6 == picture.height * 5  # 6 rows of 5 patches


@pytest.mark.parametrize(
    ("words", "message"),
    [
        *(
            ((*words, "absent"), "error: absent is not an index: no such folder\n")
            for words in (("search",), ("info",), ("compact",), ("verify",), ("verify", "--deep"))
        ),
        (("search", "idx", "words"), "search it with vectors"),
        (("search", "idx", ""), "query is empty"),
        (("search", "idx", "--vectors", "none.npy"), "none.npy does not exist"),
        (("search", "idx", "--vectors", "q.npy", "--k", "0"), "--k 0"),
        (("search", "idx", "--vectors", "q.npy", "--where", "a = 1; drop"), "--where"),
        (("search", "idx", "--vectors", "bad.npy"), "dimension 3"),
        (("remove", "idx", "absent.npz"), "no document"),
        (("remove", "idx"), "needs a document, or a condition"),
        (("add", "idx", "absent"), "absent does not exist"),
        (("add", "idx", "empty"), "holds no document"),
        (("add", "idx", "corpus", "--meta", "year"), "KEY=VALUE"),
        (("build", "corpus", "-o", "x", "--encoder", "vectors", "--k", "many"), "many"),
        (("build", "corpus", "-o", "x", "--encoder", "vectors", "--keep", "2"), "--keep 2"),
        (("verify", "corpus"), "is not an index"),
        pytest.param(
            ("export", "idx", "--to", "lancedb", "-o", "out"),
            "pip install 'compress3g[export]'",
            marks=pytest.mark.skipif(find_spec("lancedb") is not None, reason="it is installed"),
        ),
    ],
)
def test_mistakes_are_one_line_and_code_2(built, capsys, words, message):
    np.save("bad.npy", np.ones((2, 3), np.float32))
    (built.parent / "empty").mkdir()
    code, out, err = call(capsys, *words)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


def test_a_second_writer_is_told_to_wait(built, capsys):
    with Writer(Path("idx")):
        code, _, err = call(capsys, "add", "idx", "corpus")
    assert code == 2
    assert f"is being written by process {os.getpid()}" in err


def test_damage_is_named_and_search_goes_on_when_allowed(built, capsys):
    write_vectors(built / "more.npz", [50])
    assert call(capsys, "add", "idx", "corpus")[0] == 0
    victim = sorted(Path("idx").glob("seg-*"))[-1] / "unique.u8"
    victim.write_bytes(b"")
    code, out, _ = call(capsys, "verify", "idx")
    assert code == 2
    assert str(victim) in out
    assert call(capsys, "search", "idx", "--vectors", "q.npy")[0] == 2
    code, out, err = call(capsys, "search", "idx", "--vectors", "q.npy", "--allow-damaged")
    assert code == 0
    assert "d2.npz" in out
    assert "left out" in err


def test_names_that_are_no_utf8_can_be_indexed_and_printed(corpus, capsysbinary):
    name = os.fsencode(corpus) + b"/caf\xe9.npz"
    write_vectors(Path("plain.npz"), [60])
    os.rename("plain.npz", name)
    assert main(["index", *BUILD]) == 0
    capsysbinary.readouterr()
    np.save("q.npy", make_page(60).vectors[:6].astype(np.float32))
    assert main(["index", "search", "idx", "--vectors", "q.npy", "--k", "1"]) == 0
    assert "caf\ufffd.npz".encode() in capsysbinary.readouterr().out
    assert main(["index", "remove", "idx", os.fsdecode(name)]) == 0


def test_bench_reports_bytes_times_and_recall(built, capsys):
    code, out, _ = call(capsys, "bench", "idx", "--queries", "3", "--tokens", "5", "--json")
    figures = json.loads(out)
    assert code == 0
    assert figures["recall"] == 1.0  # every page is passed on: nine pages, n1 = 200
    assert set(figures["milliseconds"]) == {"total", "scan", "rescore", "exact"}


def test_the_query_made_of_a_page_finds_it(built):
    from compress3g.retrieval.index import Index

    with Index.open("idx") as index:
        assert len(index.search_vectors([make_query(0)])[0]) == len(index)
