from __future__ import annotations

import types

import pytest

from compress3g.profile.power import Nvml, Rapl, counter_for, measure_energy


def _package(folder, index, microjoules, span=1_000_000):
    place = folder / f"intel-rapl:{index}"
    place.mkdir()
    (place / "energy_uj").write_text(f"{microjoules}\n")
    (place / "max_energy_range_uj").write_text(f"{span}\n")
    return place / "energy_uj"


def test_rapl_adds_packages_and_survives_a_wrap(tmp_path):
    first, second = _package(tmp_path, 0, 900_000), _package(tmp_path, 1, 10)
    nested = tmp_path / "intel-rapl:0:0"  # a core domain inside the package: already in its sum
    nested.mkdir()
    (nested / "energy_uj").write_text("5")
    counter = Rapl(tmp_path)
    assert counter.read() == 0
    first.write_text("100000")  # 900,000 -> wrap at 1,000,000 -> 100,000
    second.write_text("50010")
    assert counter.read() == pytest.approx(0.25)
    second.write_text("60010")
    assert counter.read() == pytest.approx(0.26)


def test_no_counter_is_an_error_of_the_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="RAPL"):
        Rapl(tmp_path)


class _Steps:
    """A counter that gains 3 J with every call of the function."""

    source = "steps"

    def __init__(self):
        self.calls = 0

    def run(self):
        self.calls += 1

    def read(self):
        return 3.0 * self.calls


def test_energy_is_the_counters_difference_per_call():
    steps = _Steps()
    found = measure_energy(steps.run, seconds=0.01, counter=steps)
    assert found.joules == pytest.approx(3.0)
    assert found.calls == steps.calls - 1  # one before the first reading
    assert found.source == "steps"


def test_without_a_counter_there_is_a_reason_and_no_number():
    found = measure_energy(lambda: pytest.fail("not needed"), counter="nobody may read it")
    assert found.joules is None
    assert found.source == "nobody may read it"


def test_nvml_reads_millijoules(monkeypatch):
    nvml = types.SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: 2500 + handle,
        NVMLError=RuntimeError,
    )
    counter = Nvml(0, nvml)
    assert counter.read() == 2.5
    assert "device 0" in counter.source
    monkeypatch.setitem(__import__("sys").modules, "pynvml", nvml)
    assert isinstance(counter_for("cuda:1"), Nvml)


def test_a_missing_or_failing_nvml_is_a_reason(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "pip install" in counter_for("cuda:0")

    class Error(Exception):
        pass

    def fail():
        raise Error("driver not loaded")

    monkeypatch.setitem(
        sys.modules, "pynvml", types.SimpleNamespace(nvmlInit=fail, NVMLError=Error)
    )
    assert "driver not loaded" in counter_for("cuda:0")
