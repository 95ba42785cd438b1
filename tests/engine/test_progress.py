from __future__ import annotations

import io
from types import SimpleNamespace

import pytest

from compress3g.engine import progress
from compress3g.engine.progress import Progress, fitted


class _Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the test moves."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def terminal(monkeypatch):
    # Not sys.stderr itself, which is pytest's during a test.
    screen = _Terminal()
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=screen))
    return screen


def test_a_resumed_run_does_not_count_what_was_done_before(clock, terminal):
    line = Progress("run")
    line.update({}, 0.5)
    clock[0] += 10
    line.update({}, 0.6)
    # A tenth in ten seconds: four tenths are left.
    assert terminal.getvalue().endswith("run  60%  ETA 0:40")


@pytest.mark.parametrize("columns", [20, 40, 60, 200])
def test_a_live_line_ends_with_a_whole_field_on_any_terminal(columns, clock, terminal, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    line = Progress("hollow")
    fields = {"PSNR": "21.30", "kept": "15.0%", "it/s": "60.1", "Msamples/s": "0.98"}
    clock[0] += 1
    line.update(fields, 0.0)
    clock[0] += 1
    line.update(fields, 0.1)
    shown = terminal.getvalue().rsplit("\x1b[2K", 1)[1]
    assert len(shown) < columns
    whole = "  ".join(["hollow  10%", "ETA 0:09", *(f"{n} {v}" for n, v in fields.items())])
    assert whole.startswith(shown)
    assert whole == shown or whole[len(shown) :].startswith("  ")


def test_a_title_wider_than_the_terminal_is_cut():
    assert fitted(["a very long title", "ETA 0:09"], 6) == "a very"


def test_a_finished_line_is_wiped(clock, terminal):
    with Progress("run") as line:
        clock[0] += 1
        line.update({}, 0.5)
    assert terminal.getvalue().endswith("\r\x1b[2K")
