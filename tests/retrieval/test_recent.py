"""Kept results: the last ones asked for, each made once, whatever threads do."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from compress3g.retrieval.server.recent import Recent


def test_the_results_asked_for_last_are_kept():
    made = []
    recent = Recent(lambda x: made.append(x) or x, limit=2)
    for key in (1, 2, 1, 3, 1, 2):
        assert recent(key) == key
    assert made == [1, 2, 3, 2]  # 2 went when 3 came, since 1 was asked for after it
    assert len(recent) == 2


def test_a_result_is_made_once_and_by_one_thread_at_a_time():
    busy, made = threading.Lock(), []

    def make(key):
        assert busy.acquire(blocking=False)
        made.append(key)
        busy.release()
        return None if key == 0 else key

    recent = Recent(make, limit=10)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(recent, list(range(10)) * 20))
    assert found == [None, *range(1, 10)] * 20
    assert sorted(made) == list(range(10))


def test_errors_are_not_kept():
    answers = iter([ValueError("first"), None])

    def make(key):
        if error := next(answers):
            raise error
        return key

    recent = Recent(make, limit=1)
    with pytest.raises(ValueError, match="first"):
        recent("a")
    assert recent("a") == "a"
