"""`index search --ray`: actors find what one process finds; what cannot be is said in one line."""

from __future__ import annotations

import importlib.util
import json
import sys

import numpy as np
import pytest

from compress3g.cli.main import main
from compress3g.errors import BackendError, ConfigError, DocumentError, VectorError
from compress3g.retrieval.search_config import SearchConfig

from .conftest import DIMENSION, fill, make_page, make_query
from .test_page_shards import DOCUMENTS, same


def call(capsys, *words) -> tuple[int, str, str]:
    code = main(["index", *map(str, words)])
    out, err = capsys.readouterr()
    return code, out, err


def test_without_ray_the_extra_is_named(build, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    index = build({"a": [1]})
    np.save(tmp_path / "q.npy", make_query(0))
    asked = ("search", index.path, "--vectors", tmp_path / "q.npy")
    code, _, err = call(capsys, *asked, "--ray")
    # Threads of a Ray that an earlier test started may have their say about this, too.
    assert code == 2
    assert "pip install 'compress3g[ray]'" in err
    assert call(capsys, *asked, "--actors", "2")[0] == 2
    assert call(capsys, *asked)[0] == 0


needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is missing")


@needs_ray
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_actors_find_what_one_process_finds(build):
    from compress3g.retrieval.sharded import open_sharded

    index = build(DOCUMENTS, residual="pq16", store="none", metadata={"doc3": {"year": 2003}})
    fill(index, {"again": [21, 22]})
    index.remove("doc5")
    queries = [make_query(i) for i in range(20)]
    with open_sharded(index.path, actors=2) as shared:
        for config in (SearchConfig(k=4, n1=9), SearchConfig(k=100)):
            same(shared.rank(queries, config=config), index.rank(queries, config=config))
        # The whole of a hit, a filter, and what was committed meanwhile.
        asked = {"where": "year = 2003 or doc = 'again'"}
        assert shared.search_vectors(queries, 5, **asked) == index.search_vectors(
            queries, 5, **asked
        )
        fill(index, {"late": [99]})
        late = make_page(99).vectors[:5].astype(np.float32)
        assert "late" not in {h.doc for h in shared.search_vectors([late], 100)[0]}
        shared.refresh()
        assert shared.search_vectors([late], 1)[0][0].doc == "late"
        _bad_queries_are_refused(shared)
        index.compact()  # which removes what the actors of a new view would map
        shared.refresh()
        same(shared.rank(queries), index.rank(queries))


def _bad_queries_are_refused(shared) -> None:
    for query, error in (
        (np.zeros((0, DIMENSION), np.float32), DocumentError),
        (np.ones((2, 8), np.float32), VectorError),
        (np.zeros((2, DIMENSION), np.float32), VectorError),
    ):
        with pytest.raises(error):
            shared.search_vectors([query])
    with pytest.raises(ConfigError, match="--store f16"):
        shared.search_vectors([make_query(0)], config=SearchConfig(exact=True))


@needs_ray
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_command_prints_what_it_prints_without_ray(build, tmp_path, capsys):
    index = build(DOCUMENTS)
    np.save(tmp_path / "q.npy", make_query(3))
    words = ("search", index.path, "--vectors", tmp_path / "q.npy", "--json")
    one, many = call(capsys, *words), call(capsys, *words, "--ray", "--actors", "2")
    assert many[0] == one[0] == 0
    assert json.loads(many[1]) == json.loads(one[1])
    code, _, err = call(capsys, *words, "--ray", "--graph", "on")
    assert (code, "--graph on" in err) == (2, True)


@needs_ray
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_actors_that_die_start_again_or_say_so_in_one_line(build):
    from compress3g.retrieval.sharded import open_sharded

    index, queries = build(DOCUMENTS), [make_query(i) for i in range(2)]
    wanted = index.rank(queries)
    with open_sharded(index.path, actors=2) as shared:
        same(shared.rank(queries), wanted)
        actors = shared._actors
        shared._ray.kill(actors[0], no_restart=False)
        same(shared.rank(queries), wanted)
        shared._ray.kill(actors[0])
        with pytest.raises(BackendError, match="a search process failed"):
            shared.rank(queries)
        same(shared.rank(queries), wanted)  # the next search starts others


@needs_ray
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_an_index_without_pages_says_so(tmp_path):
    from compress3g.retrieval.index import Index
    from compress3g.retrieval.sharded import open_sharded

    Index.create(tmp_path / "idx", dimension=16).close()
    with (
        open_sharded(tmp_path / "idx", actors=2) as shared,
        pytest.raises(DocumentError, match="empty: add documents"),
    ):
        shared.search_vectors([np.ones((2, 16), np.float32)])
