from __future__ import annotations

import statistics
import time
from math import exp, inf, log

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from compress3g.errors import ConfigError
from compress3g.profile import Latency, compare, measure_latency
from compress3g.profile.interval import _sign_rank, _student, median_interval


class Noise:
    """A clock that a test sets: seconds of a call are the function's times what the noise says."""

    def __init__(self, monkeypatch, disturbance):
        self.now, self.disturbance, self.calls = 0.0, disturbance, 0
        monkeypatch.setattr(time, "perf_counter_ns", lambda: int(self.now * 1e9))
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def spend(self, seconds):
        def call():
            self.now += seconds * exp(self.disturbance(self.calls))
            self.calls += 1

        return call


def test_latency_is_the_time_that_passes(monkeypatch):
    noise = Noise(monkeypatch, lambda i: 0.0)
    found = measure_latency(noise.spend(0.003), seconds=0.3)
    assert found.n in (100, 101)
    assert found.p50 == pytest.approx(3.0, rel=1e-6)
    assert found.steady
    assert found.warmup == 10  # two windows of five


def test_warm_up_waits_until_it_settles(monkeypatch):
    """Each call takes 3 % less until the fortieth: medians of five differ by 14 % until then."""
    noise = Noise(monkeypatch, lambda i: -0.03 * min(i, 40))
    found = measure_latency(noise.spend(0.01), seconds=2.0)
    assert found.steady
    assert found.warmup > 40
    assert found.p50 == pytest.approx(10 * exp(-1.2), rel=1e-6)


def test_warm_up_gives_up_and_says_so(monkeypatch):
    noise = Noise(monkeypatch, lambda i: (i // 5 % 2) * log(2))
    assert not measure_latency(noise.spend(0.01), seconds=0.5).steady


def test_short_calls_share_a_sample(monkeypatch):
    noise = Noise(monkeypatch, lambda i: 0.0)
    found = measure_latency(noise.spend(2e-6), seconds=0.05)
    assert found.calls == 100
    # A nanosecond clock rounds the 200 µs of a sample.
    assert found.p50 == pytest.approx(2e-3, rel=1e-4)


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=50))
@settings(deadline=None)
def test_percentiles_are_those_of_the_samples(samples):
    found = Latency(samples=tuple(samples), calls=1, warmup=0, steady=True, clock="")
    assert found.min == min(samples)
    assert found.p50 == pytest.approx(statistics.median(samples))
    assert found.min <= found.p10 <= found.p50 <= found.p90 <= max(samples)


@pytest.mark.parametrize("seconds", [0.0, -1.0, inf, float("nan")])
def test_impossible_seconds_are_refused(seconds):
    with pytest.raises(ConfigError, match="seconds"):
        measure_latency(lambda: None, seconds=seconds)
    with pytest.raises(ConfigError, match="seconds"):
        compare(lambda: None, lambda: None, seconds=seconds)


def test_processor_time_is_refused_on_a_gpu():
    with pytest.raises(ConfigError, match="cuda:0"):
        measure_latency(lambda: None, device="cuda:0", clock="cpu")


def test_waiting_costs_no_processor_time():
    """A tenth of the wall time is far above what sleeping burns."""
    found = measure_latency(lambda: time.sleep(0.005), seconds=0.1, clock="cpu")
    assert found.p50 < 0.5
    assert measure_latency(lambda: time.sleep(0.005), seconds=0.1).p50 >= 5.0


def _bursts(generator):
    state = {"slow": False}

    def disturbance(i):
        if generator.random() < 0.03:
            state["slow"] = not state["slow"]
        return 0.01 * generator.normal() + state["slow"] * (0.7 + 0.3 * generator.normal())

    return disturbance


def _remembering(generator):
    state = {"now": 0.0}

    def disturbance(i):
        state["now"] = 0.95 * state["now"] + 0.05 * generator.normal()
        return state["now"]

    return disturbance


def _period_of_four(generator):
    """Always slows down the same place of a quad: fixed ABBA would name a winner every time."""
    return lambda i: 0.3 * (i % 4 == 1) + 0.02 * generator.normal()


NOISES = {"bursts": _bursts, "memory": _remembering, "period": _period_of_four}


@pytest.mark.parametrize("name", NOISES)
def test_equal_functions_have_no_winner_in_autocorrelated_noise(name, monkeypatch):
    winners = 0
    for seed in range(100):
        noise = Noise(monkeypatch, NOISES[name](np.random.default_rng(seed)))
        f = noise.spend(0.001)
        winners += compare(f, f, seconds=0.2, seed=seed).winner is not None
    # 5 of 100 at most are expected; 12 or more of 100 have probability 0.4 % then.
    assert winners < 12


@pytest.mark.parametrize("name", NOISES)
def test_five_percent_are_found_in_autocorrelated_noise(name, monkeypatch):
    found = 0
    for seed in range(20):
        noise = Noise(monkeypatch, NOISES[name](np.random.default_rng(seed)))
        ratio = compare(noise.spend(0.001), noise.spend(0.00105), seconds=1.0, seed=seed)
        found += ratio.winner == "a"
    assert found >= 18


def test_the_faster_wins_whichever_comes_first(monkeypatch):
    noise = Noise(monkeypatch, lambda i: 0.0)
    fast, slow = noise.spend(0.001), noise.spend(0.002)
    assert compare(fast, slow, seconds=0.1).winner == "a"
    ratio = compare(slow, fast, seconds=0.1)
    assert ratio.winner == "b"
    assert ratio.median == pytest.approx(0.5, rel=1e-4)
    assert (ratio.a.p50, ratio.b.p50) == pytest.approx((2.0, 1.0), rel=1e-4)
    assert ratio.low <= ratio.median <= ratio.high


def test_each_side_runs_as_often_and_both_orders_occur():
    order = []
    compare(lambda: order.append("a"), lambda: order.append("b"), seconds=0.05)
    assert order.count("a") > 0
    measured = compare(lambda: time.sleep(0.001), lambda: time.sleep(0.001), seconds=0.2)
    assert len(measured.ratios) % 2 == 0
    assert len(measured.ratios) >= 10


def test_real_functions_are_told_apart():
    a = torch.randn(64, 64)

    def once():
        return a @ a

    def twice():
        return a @ a @ a

    assert compare(once, twice, seconds=0.5).winner == "a"


def test_the_interval_is_invariant_to_swapping_sides():
    rows = np.random.default_rng(0).normal(size=(40, 2))
    middle, low, high = median_interval(rows, np.random.default_rng(1))
    other = median_interval(-rows, np.random.default_rng(1))
    assert other[0] == pytest.approx(-middle)
    # Quantiles of 1000 resamples: the two ends are mirror images to interpolation.
    assert (-other[2], -other[1]) == pytest.approx((low, high), abs=1e-9)


@given(st.integers(6, 300))
@settings(deadline=None)
def test_sign_interval_holds_the_median_with_95_percent(count):
    """Exact binomial probabilities, summed from the other end."""
    from math import comb

    k = _sign_rank(count)
    below = sum(comb(count, i) for i in range(k)) / 2**count
    more = sum(comb(count, i) for i in range(k + 1)) / 2**count
    assert 2 * below <= 0.05 < 2 * more


def test_sign_ranks_meet_where_the_normal_approximation_takes_over():
    assert abs(_sign_rank(1000) - _sign_rank(1001)) <= 1


@pytest.mark.parametrize(
    ("freedom", "value"), [(4, 2.7764), (5, 2.5706), (10, 2.2281), (30, 2.0423)]
)
def test_student_quantiles_are_those_of_the_tables(freedom, value):
    # Five quads, four degrees of freedom, are the fewest; the expansion is 0.4 % off there.
    assert _student(freedom) == pytest.approx(value, rel=5e-3)


@pytest.mark.gpu
def test_cuda_latency_times_the_device():
    a = torch.randn(2048, 2048, device="cuda")
    found = measure_latency(lambda: a @ a, seconds=0.3, device="cuda:0")
    assert found.clock == "cuda events"
    assert found.calls == 1
    assert found.p50 > 0
