"""`index build --ray`: the index of one process, and a valid one whoever is killed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from compress3g.cli.main import main
from compress3g.retrieval.index import Index
from compress3g.retrieval.writer import Writer

from .documents_made import MANY, TOPICS, write_pdf, write_tiny_bert
from .test_shards import same

pytest.importorskip("pypdfium2")


def test_without_ray_the_extra_is_named_and_nothing_is_written(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    write_pdf(tmp_path / "a.pdf", TOPICS)
    bert = write_tiny_bert(tmp_path / "bert")
    words = ["index", "build", str(tmp_path / "a.pdf"), "-o", str(tmp_path / "idx")]
    words += ["--encoder", f"text:{bert}"]
    assert main([*words, "--ray"]) == 2
    assert "pip install 'compress3g[ray]'" in capsys.readouterr().err
    assert main([*words, "--actors", "2"]) == 2
    assert "--actors needs --ray" in capsys.readouterr().err
    assert main([*words, "--meta", "nothing"]) == 2
    assert "is not KEY=VALUE" in capsys.readouterr().err
    assert not (tmp_path / "idx").exists()


needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is missing")


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for i in range(12):
        write_pdf(folder / f"d{i:02}.pdf", MANY if i == 4 else MANY[i : i + 1 + i % 3])
    (folder / "d05.pdf").write_bytes(b"%PDF-1.4 cut short")
    return folder


def run(*words: str):
    return subprocess.run(
        [sys.executable, "-m", "compress3g.cli.main", "index", *words],
        capture_output=True, text=True, timeout=280,
    )  # fmt: skip


@needs_ray
@pytest.mark.slow
def test_two_actors_make_the_index_of_one_process(tmp_path, corpus, encoder):
    built = []
    for name, more in (("one", ()), ("many", ("--ray", "--actors", "2"))):
        words = ("build", str(corpus), "-o", str(tmp_path / name), "--encoder", encoder.name)
        done = run(*words, "--k", "64", "--json", *more)
        assert done.returncode == 3, done.stderr  # one is broken
        built.append([json.loads(line) for line in done.stdout.splitlines()])
    assert built[0] == built[1]
    one, many = (Index.open(tmp_path / n, encoder=encoder) for n in ("one", "many"))
    with one, many:
        same(one, many)
        assert len([n for n in os.listdir(many.path) if n.startswith("seg-")]) == 1


SCRIPT = """
import sys
from compress3g.retrieval import shards
from compress3g.retrieval.index import Index

shards.COMMIT_VECTORS = 1  # each document by itself
with Index.open(sys.argv[1]) as index:
    index.add([sys.argv[2]], ray=True, actors=2, outcome=lambda *told: print(*told, flush=True))
"""


@needs_ray
@pytest.mark.slow
def test_a_killed_driver_leaves_a_valid_index_that_goes_on(tmp_path, corpus, encoder):
    from compress3g.retrieval.config import IndexConfig

    config = IndexConfig(k=64)
    Index.create(tmp_path / "many", encoder=encoder, config=config).close()
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "many"), str(corpus)],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    told = [process.stdout.readline() for _ in range(3)]
    process.kill()
    process.communicate()
    assert all("added" in line for line in told)
    with Index.open(tmp_path / "many", encoder=encoder) as index:
        assert index.verify(deep=True).problems == ()
        there = {d.path for d in index.documents()}
        assert {line.split()[0] for line in told} <= there
    time.sleep(3)  # for actors to see that their driver is gone
    with Writer(tmp_path / "many") as writer:
        known = {s.name for s in writer.snapshot().segments}
        known |= set(writer.snapshot().codebook or ())
    on_disk = {p.name for p in Path(tmp_path / "many").iterdir() if p.is_dir()}
    assert on_disk == {n for n in known if n in on_disk}
    with Index.open(tmp_path / "many", encoder=encoder) as index:
        done = index.add([corpus])  # by one process, for a change
        assert set(done.unchanged) == there
    with Index.create(tmp_path / "one", encoder=encoder, config=config) as one:
        one.add([corpus])
        with Index.open(tmp_path / "many", encoder=encoder) as many:
            same(one, many)
