from __future__ import annotations

import json
import time

import pytest
import torch

from compress3g.profile import record_trace
from compress3g.profile.trace import covered


def test_a_trace_names_its_kernels_and_writes_a_file(tmp_path):
    a = torch.randn(128, 128)
    found = record_trace(lambda: (a @ a).relu(), tmp_path / "trace.json")
    names = {k.name: k.calls for k in found.kernels}
    assert names["aten::mm"] == 1
    assert names["aten::relu"] == 1
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert any(e.get("name") == "aten::mm" for e in events)


def test_waiting_is_outside_any_kernel():
    a = torch.randn(8, 8)

    def run():
        a @ a
        time.sleep(0.05)

    found = record_trace(run)
    assert found.outside_ms >= 50
    assert found.outside_ms <= found.total_ms


def test_own_times_add_up_to_the_time_inside():
    a = torch.randn(300, 300)
    found = record_trace(lambda: (a @ a).softmax(-1).sum(), top=100)
    inside = found.total_ms - found.outside_ms
    # Nested operators count once on both sides; the profiler rounds to whole nanoseconds.
    assert sum(k.ms for k in found.kernels) == pytest.approx(inside, rel=0.05)


def test_covered_is_the_length_of_the_union():
    assert covered([]) == 0
    assert covered([(0, 10), (2, 3), (9, 12), (20, 21)]) == 13


def test_an_unwritable_trace_is_an_os_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        record_trace(lambda: None, tmp_path / "file" / "trace.json")
