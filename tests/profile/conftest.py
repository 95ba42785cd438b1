from __future__ import annotations

import pytest

from compress3g.profile import Peaks, roofline


@pytest.fixture
def known_peaks(monkeypatch):
    """Peaks nobody has to wait two seconds for."""
    peaks = Peaks(flops_per_second=1e11, bytes_per_second=2e10, machine="a machine")
    monkeypatch.setattr(roofline, "measure_peaks", lambda device: peaks)
    return peaks
