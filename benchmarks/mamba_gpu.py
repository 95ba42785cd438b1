"""Selective scan in Triton on a GPU against torch and mamba_ssm, and what fewer tokens win there.

    python benchmarks/mamba_gpu.py [--quick] [--json] [--batch 64]

Shapes of Vim-S at 224 pixels: 197 tokens, 768 channels, 16 states, float32, with softplus, skip and
gate. Results are compared first; ratios are medians of neighbouring runs in the device's events
with their 95 % intervals. Peers: this package's two torch forms (chunked, looped), mamba_ssm's
kernel as the package calls it and as its own users do, where it is installed; for the convolution
torch's. Then Vim-T and Vim-S as a whole, random weights: with the kernels against chunked torch,
and dense against tokens pruned after blocks 5, 10 and 15 beside the ratio of multiply-adds, kernel
after kernel and as recorded graphs, which do not wait for launches. `--whole` measures these alone,
with larger batches.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import _scan
import torch
from _report import goal, parser, report
from _scan import TAPS, Arguments, Run, backward_of, scan
from torch import nn

from compress3g.kernels import registry
from compress3g.kernels.causal_conv import causal_conv1d
from compress3g.kernels.selective_scan import mamba_ssm
from compress3g.mamba import PruneConfig, PruneSchedule, create_model, preset, pruned
from compress3g.mamba.bench import benchmark
from compress3g.profile import compare

TOKENS, CHANNELS = 197, 768
LAYERS = (5, 10, 15)
ratio = partial(_scan.ratio, device="cuda")


def steps_last(x: Arguments) -> Arguments:
    """Laid out as mamba_ssm's users have it: the tokens last."""
    return {name: t.transpose(1, 2).contiguous() if t.ndim == 3 else t for name, t in x.items()}


def native(x: Arguments) -> torch.Tensor:
    """mamba_ssm's own fused call: softplus, skip and gate inside."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    out: torch.Tensor = selective_scan_fn(**x, delta_softplus=True)
    return out


def scans(batch: int, seconds: float) -> dict[str, Any]:
    """The Triton scan against each peer; forward, then with its gradients; then with holes."""
    x, rows = _scan.arguments(batch, TOKENS, CHANNELS, "cuda"), {}
    mine = partial(scan, backend="triton")
    peers: dict[str, tuple[Callable[[Arguments], torch.Tensor], Arguments]] = {
        "chunked torch": (partial(scan, backend="chunked"), x),
        "looped torch": (partial(scan, backend="looped"), x),
    }
    if mamba_ssm.usable() is None:
        peers["mamba_ssm through the package"] = (partial(scan, backend="mamba_ssm"), x)
        peers["mamba_ssm by itself"] = (native, steps_last(x))
    expected = mine(x)
    for name, (peer, given) in peers.items():
        found = peer(given)
        found = found if found.shape == expected.shape else found.transpose(1, 2)
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
        label = f"scan forward, against {name}"
        rows[label] = ratio(label, lambda: mine(x), partial(peer, given), seconds)
        label = f"scan forward+backward, against {name}"
        rows[label] = ratio(label, backward_of(mine, x), backward_of(peer, given), seconds)
        torch.cuda.empty_cache()
    gap = torch.randint(0, 4, (batch, TOKENS), device="cuda")
    for mode in ("current", "bias"):
        label = f"scan forward with holes ({mode}), over without"
        holes = partial(mine, x, gap=gap, gap_mode=mode)
        rows[label] = ratio(label, lambda: mine(x), holes, seconds)
    return rows


def convolution(batch: int, seconds: float) -> dict[str, Any]:
    """The convolution with silu against torch's, dense."""
    g = torch.Generator("cuda").manual_seed(0)
    x = torch.randn(batch, TOKENS, 2 * CHANNELS, generator=g, device="cuda")[..., :CHANNELS]
    weight = torch.randn(CHANNELS, TAPS, generator=g, device="cuda")
    bias = torch.randn(CHANNELS, generator=g, device="cuda")

    def run(backend: str) -> torch.Tensor:
        return causal_conv1d(x, weight, bias, activation="silu", backend=backend)

    torch.testing.assert_close(run("triton"), run("reference"), atol=1e-3, rtol=1e-3)
    label = "convolution forward, against torch"
    return {label: ratio(label, lambda: run("triton"), lambda: run("reference"), seconds)}


def config(keep: float) -> PruneConfig:
    return PruneConfig(schedule=PruneSchedule(layers=LAYERS, keep=(keep,) * len(LAYERS)))


def whole(name: str, batch: int, seconds: float) -> dict[str, Any]:
    """A model dense with the kernels against torch's forms, then pruned against dense."""
    torch.manual_seed(0)
    model = create_model(name).cuda().eval()
    images = torch.randn(batch, 3, 224, 224, device="cuda")
    rows: dict[str, Any] = {}

    def run(setting: PruneConfig | None = None, **backends: str) -> torch.Tensor:
        with torch.inference_mode(), registry.use(**backends), pruned(model, setting):
            out: torch.Tensor = model(images)
            return out

    ours = {"selective_scan": "triton", "causal_conv": "triton"}
    torchs = {"selective_scan": "chunked", "causal_conv": "reference"}
    torch.testing.assert_close(run(**ours), run(**torchs), atol=5e-3, rtol=5e-3)
    label = f"{name} whole, against chunked torch"
    rows[label] = ratio(label, lambda: run(**ours), lambda: run(**torchs), seconds)
    torch.cuda.empty_cache()
    return rows | fewer_tokens(model, name, images, seconds, ours)


def recorded(model: nn.Module, setting: PruneConfig | None, images: torch.Tensor) -> Run:
    """The pass as a CUDA graph; its pruning is over when it is recorded."""
    with torch.inference_mode(), pruned(model, setting):
        model(images)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            model(images)
    return graph.replay


def fewer_tokens(
    model: nn.Module, name: str, images: torch.Tensor, seconds: float, kernels: dict[str, str]
) -> dict[str, Any]:
    """Dense time over the pruned model's, launched and recorded, beside that of multiply-adds."""
    rows: dict[str, Any] = {}
    with registry.use(**kernels):
        dense = recorded(model, None, images)
        for keep in (0.8, 0.7):
            ward = preset("ward", config(keep).schedule)
            for title, setting in ((f"keep {keep}", config(keep)), (f"ward, keep {keep}", ward)):
                speed = benchmark(model, [setting], images=images, seconds=seconds)[0]
                graph = compare(
                    recorded(model, setting, images), dense, seconds=seconds, device="cuda"
                )
                rows[f"{name}, batch {len(images)}, {title}"] = {
                    **speed.to_json(),
                    "realised": 100 * speed.speed_up / speed.ideal,
                    "recorded": {
                        "ms": graph.a.p50, "dense_ms": graph.b.p50, "speed_up": graph.median,
                        "realised": 100 * graph.median / speed.ideal,
                    },
                }  # fmt: skip
                print(
                    f"{name}, batch {len(images)}, {title}: {speed.speed_up:.2f}x, recorded "
                    f"{graph.median:.2f}x ({graph.b.p50:.1f} -> {graph.a.p50:.1f} ms), "
                    f"ideal {speed.ideal:.2f}x",
                    flush=True,
                )
    return rows


def main() -> None:
    options_of = parser(__doc__)
    options_of.add_argument("--batch", type=int, default=64, help="Images (default 64).")
    options_of.add_argument("--seconds", type=float, default=2.0, help="Per ratio (default 2).")
    options_of.add_argument("--whole", action="store_true", help="Models, pruned, alone.")
    options = options_of.parse_args()
    if options.batch < 1 or options.seconds <= 0:
        options_of.error("give at least one image and more than no seconds")
    if not torch.cuda.is_available():
        print("skipped: no CUDA device is visible to torch")
        options.quick = True  # nothing to keep
        report("mamba_gpu", options, seeds=[0], goals=[], rows={})
        return
    seconds = 0.2 if options.quick else options.seconds
    reason = mamba_ssm.usable()
    if reason is not None:
        print(f"without mamba_ssm: {reason}")
    print(f"{'':58}{'ours':>9}{'peer':>10}   {'ratio':>9}")
    rows: dict[str, Any] = {}
    if not options.whole:
        rows |= scans(options.batch, seconds) | convolution(options.batch, seconds)
        finish(options, rows, reason)
    for name in ("vim_small", "vim_tiny"):
        rows |= whole(name, options.batch, seconds)
        finish(options, rows, reason)
    finish(options, rows, reason, complete=True)


def finish(
    options: argparse.Namespace, rows: dict[str, Any], reason: str | None, *, complete: bool = False
) -> None:
    """Writes what is known by now."""
    goals = []
    for keep in (0.8, 0.7) if complete else ():
        key = f"vim_small, batch {options.batch}, keep {keep}"
        title = f"speed-up realised, recorded, {key}"
        goals.append(goal(title, rows[key]["recorded"]["realised"], 90, unit="%"))
    report(
        f"mamba_gpu_whole_{options.batch}" if options.whole else "mamba_gpu", options, seeds=[0],
        goals=goals, rows=rows, complete=complete, shape=[options.batch, TOKENS],
        device=torch.cuda.get_device_name(), without_mamba_ssm=reason,
    )  # fmt: skip


if __name__ == "__main__":
    main()
