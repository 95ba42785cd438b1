from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET

import pytest
import torch
from torch import nn

from compress3g.profile import Latency, Ratio, Report, profile, profile_both
from compress3g.profile.page import to_html
from compress3g.profile.plots import latency_plot, ratio_plot
from compress3g.profile.report import verdict

pytestmark = pytest.mark.usefixtures("known_peaks")


def _step(width=16):
    model, x = nn.Sequential(nn.Linear(8, width), nn.GELU(), nn.Linear(width, 4)), torch.randn(6, 8)
    return model, lambda: model(x).sum().backward()


def _profile(name="step", **options):
    model, run = _step()
    return profile(run, model=model, seconds=0.02, name=name, **options)


def _ratio(low=0.9, high=1.2, median=1.1):
    def samples(*ms):
        return Latency(samples=ms, calls=3, warmup=10, steady=True, clock="perf_counter_ns")

    return Ratio(
        median=median, low=low, high=high, ratios=(1.0, 1.1, 1.2, 1.05),
        a=samples(1.0, 1.0, 1.0, 1.0), b=samples(1.0, 1.1, 1.2, 1.05),
    )  # fmt: skip


def test_a_profile_measures_all_of_it():
    p = _profile()
    assert p.device == "cpu"
    assert p.params == 8 * 16 + 16 + 16 * 4 + 4
    assert p.bytes == 4 * p.params
    # Forward, weight gradients, and the input gradient of the second layer.
    assert p.flops == 2 * 6 * (2 * 8 * 16 + 3 * 16 * 4)
    assert p.macs == p.flops // 2
    assert p.flops == sum(p.flops_by_op.values())
    assert "aten.gelu" in p.uncounted_ops
    assert p.latency.n == len(p.latency.samples) >= 5
    assert p.peak_bytes > p.bytes
    assert p.saved_bytes > 0
    assert p.roofline.achieved_ms == p.latency.p50
    assert p.env["threads"] == "1"


def test_what_is_not_asked_for_is_none():
    p = _profile(latency=False, memory=False, flops=False, energy=False)
    assert p.latency is p.peak_bytes is p.saved_bytes is p.energy_j is p.roofline is p.flops is None
    assert p.flops_by_op == p.uncounted_ops == {}
    json.dumps(p.to_json())


def test_json_holds_schema_environment_and_every_sample():
    p = _profile()
    data = json.loads(json.dumps(Report(profile=p, against=p, comparison=_ratio()).to_json()))
    assert data["schema"] == "compress3g.profile/1"
    assert set(data["env"]) >= {"command", "seed", "torch", "threads", "cpu", "clock", "compress3g"}
    assert tuple(data["profile"]["latency"]["samples"]) == p.latency.samples
    assert data["profile"]["latency"]["p50"] == p.latency.p50
    assert data["profile"]["macs"] * 2 == data["profile"]["flops"]
    assert data["comparison"]["winner"] is None
    assert data["comparison"]["ratios"] == [1.0, 1.1, 1.2, 1.05]


def test_two_profiles_show_the_samples_they_were_compared_by():
    (small, run), (large, longer) = _step(), _step(width=64)
    report = profile_both(run, longer, models=(small, large), names=("a", "b"), seconds=0.05)
    ratio = report.comparison
    assert (report.profile.latency, report.against.latency) == (ratio.a, ratio.b)
    assert ratio.a.n == ratio.b.n == len(ratio.ratios)
    pairs = [b / a for a, b in zip(ratio.a.samples, ratio.b.samples, strict=True)]
    assert pairs == pytest.approx(ratio.ratios)
    assert report.against.roofline.achieved_ms == ratio.b.p50
    plain = report.to_json()["comparison"]
    assert (plain["a_ms"], plain["b_ms"]) == (ratio.a.p50, ratio.b.p50)


def test_the_first_line_says_what_flops_leave_out():
    p = _profile()
    first = Report(profile=p).to_markdown().splitlines()[0]
    assert f"leave out {len(p.uncounted_ops)} operators" in first
    a = torch.ones(4, 4)
    whole = profile(lambda: a @ a, seconds=0.01, name="product")
    assert Report(profile=whole).to_markdown().splitlines()[0] == "# product on cpu"


def test_markdown_is_a_table_with_a_column_per_profile():
    text = Report(
        profile=_profile("one"), against=_profile("two"), comparison=_ratio()
    ).to_markdown()
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert table[0] == "| | one | two |"
    assert {line.count("|") for line in table} == {4}
    assert any("MACs (FLOPs / 2)" in line for line in table)


@pytest.mark.parametrize(
    ("low", "median", "high", "words"),
    [
        (0.9, 1.1, 1.2, "No winner"),
        (1.05, 1.1, 1.2, "one is 1.100 times as fast as two"),
        (0.4, 0.5, 0.6, "two is 2.000 times as fast as one"),
        (1.0, 1.1, 1.2, "No winner"),
    ],
)
def test_the_verdict_names_no_winner_when_the_interval_contains_one(low, median, high, words):
    p = _profile("one", memory=False)
    report = Report(
        profile=p, against=_profile("two", memory=False), comparison=_ratio(low, high, median)
    )
    assert words in verdict(report)


def _svgs(page):
    found = re.findall(r"<svg.*?</svg>", page, re.S)
    return [ET.fromstring(svg) for svg in found]


def test_the_page_needs_nothing_else(tmp_path):
    p = _profile("one", trace=tmp_path / "t.json")
    page = to_html(Report(profile=p, against=_profile("two"), comparison=_ratio()))
    for outside in ("<script", "<link", "http://", "https://", "url(", "@import", "src="):
        assert outside not in page
    assert len(_svgs(page)) == 4  # ratio, latency, operators, roofline: all well-formed XML
    assert "prefers-color-scheme: dark" in page
    assert page.count("<section>") == page.count("</section>") == 7
    assert "nan" not in page.lower().replace("nanos", "")


def test_names_cannot_break_out_of_the_page():
    evil = '<script>alert("x")</script>'
    page = to_html(Report(profile=_profile(evil), against=_profile("&<b>"), comparison=_ratio()))
    assert "<script" not in page
    assert len(_svgs(page)) == 4


@pytest.mark.parametrize(
    "samples", [(1.0,), (2.0, 2.0, 2.0), (1e-4, 1.1e-4), (5e3, 9e3), (1, 1, 1e6)]
)
def test_any_latency_can_be_drawn(samples):
    latency = Latency(samples=tuple(map(float, samples)), calls=1, warmup=0, steady=False, clock="")
    for number in _numbers(latency_plot([("f", latency)])):
        assert -1e4 < number < 1e4


@pytest.mark.parametrize("bounds", [(0.0, float("inf")), (1.0, 1.0), (0.2, 9.0)])
def test_any_ratio_can_be_drawn(bounds):
    for number in _numbers(ratio_plot(_ratio(*bounds), "a", "b")):
        assert -1e4 < number < 1e4


def _numbers(svg):
    root = ET.fromstring(svg)
    for element in root.iter():
        for name in ("x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "width", "height"):
            if name in element.attrib:
                yield float(element.attrib[name])
