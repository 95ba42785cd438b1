"""`compress3g index serve` as a process: it starts, answers, stops; what cannot start says why."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from compress3g.cli.main import main
from compress3g.retrieval.config import IndexConfig
from compress3g.retrieval.encoders import load_encoder
from compress3g.retrieval.index import Index

from .documents_made import TOPICS, write_pdf, write_tiny_bert

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("pypdfium2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("served")
    encoder = load_encoder(f"text:{write_tiny_bert(where / 'bert')}")
    with Index.create(where / "idx", encoder=encoder, config=IndexConfig(k=64)) as index:
        index.add([write_pdf(where / "report.pdf", TOPICS)])
    return where / "idx"


def get(address: str):
    with urlopen(address, timeout=60) as answer:
        return answer.read()


def test_the_server_answers_until_it_is_interrupted(folder):
    words = [sys.executable, "-m", "compress3g.cli.main", "index", "serve", str(folder)]
    process = subprocess.Popen(
        [*words, "--port", "0", "--json", "--threads", "1"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        about = json.loads(process.stdout.readline())
        url = about["url"]
        assert about["pages"] == 4
        assert url.startswith("http://127.0.0.1:")
        assert json.loads(get(f"{url}/healthz"))["status"] == "ok"
        assert b"<!doctype html>" in get(url)
        hits = json.loads(get(f"{url}/api/search?q=net+revenue&k=2"))["hits"]
        with Index.open(folder) as index:
            expected = index.search("net revenue", k=2)
        assert [h["page_id"] for h in hits] == [h.page_id for h in expected]
        assert get(f"{url}/api/page/{hits[0]['page_id']}.webp")[8:12] == b"WEBP"
        assert get(f"{url}/api/heatmap/{hits[0]['page_id']}?q=net+revenue")[1:4] == b"PNG"
        with pytest.raises(HTTPError, match="404") as error:
            get(f"{url}/api/page/77.webp")
        assert json.load(error.value)["error"].startswith("no page 77")
        error.value.close()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, out, err) == (0, "", "")


@pytest.fixture
def told(capsys):
    """Exit code and the only line of errors of `index serve`."""

    def call(*words: str) -> tuple[int, str]:
        code = main(["index", "serve", *words])
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1, err
        return code, err

    return call


def test_a_port_in_use_is_named(folder, told):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, error = told(str(folder), "--port", port)
    assert code == 2
    assert f"--port {port}: address already in use" in error


def test_addresses_of_nobody_are_refused(folder, told):
    code, error = told(str(folder), "--host", "no.such.host.invalid", "--port", "0")
    assert code == 2
    assert "--host no.such.host.invalid is no address of this machine" in error
    assert told(str(folder), "--port", "99999")[0] == 2


def test_what_is_no_index_or_has_no_encoder_is_refused(tmp_path, told):
    assert "is not an index" in told(str(tmp_path / "absent"), "--port", "0")[1]
    Index.create(tmp_path / "vectors", dimension=8).close()
    code, error = told(str(tmp_path / "vectors"), "--port", "0")
    assert code == 2
    assert "built from vectors" in error


def test_the_missing_extra_is_named(folder, told, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    code, error = told(str(folder), "--port", "0")
    assert code == 2
    assert "pip install 'compress3g[serve]'" in error


def test_only_loopback_addresses_are_local():
    from compress3g.retrieval.server.run import address, is_local, listen

    assert [is_local(h) for h in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "10.0.0.1")] == [
        True, True, True, False, False,
    ]  # fmt: skip
    with listen("127.0.0.1", 0) as listening:
        assert address(listening) == f"http://127.0.0.1:{listening.getsockname()[1]}"
