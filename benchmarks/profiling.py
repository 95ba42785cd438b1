"""Profiling: FLOPs against hand formulas and peers, false and missed winners, tracker's overhead.

    python benchmarks/profiling.py [--quick] [--json]

FLOPs are 2 per multiply-add everywhere; peers that count multiply-adds (fvcore, calflops' MACs) are
doubled. Comparisons run while two other processes of ours multiply matrices in bursts; the
sequential peer measures A for half the time, then B, and bootstraps both medians independently.
(Not called profile.py: every benchmark beside it would import it for the standard library's.)
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import logging
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from _report import goal, parser, report
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from compress3g.kernels.hash_grid import Levels, encode
from compress3g.kernels.mlp import mlp
from compress3g.profile import compare, count_flops, measure_latency, measure_memory

MISSING = "skipped: not installed"
BURSTS = """
import random, time, torch
torch.set_num_threads(1)
a = torch.randn(600, 600)
while True:
    until = time.time() + random.expovariate(4)
    while time.time() < until:
        a @ a
    time.sleep(random.expovariate(8))
"""


@dataclass(frozen=True)
class Case:
    """A module, its inputs, and the FLOPs of a forward pass counted by hand."""

    name: str
    model: nn.Module
    inputs: tuple[Tensor, ...]
    by_hand: int


class Attention(nn.Module):
    """Grouped-query attention, causal: 8 heads of 32 over 2 of keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(256, 256 + 64 + 64)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.project(x).split((256, 64, 64), -1)
        q, k, v = (part.unflatten(-1, (-1, 32)).transpose(1, 2) for part in parts)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def modules() -> Iterator[Case | str]:
    """Modules with formulas; a string is the name of a package that is not installed."""
    b, t, d = 2, 128, 256
    x = torch.randn(b, t, d)
    yield Case("linear 256-512", nn.Linear(d, 512), (x,), 2 * b * t * d * 512)
    conv = nn.Conv2d(16, 32, 3, stride=2, padding=1, groups=4)
    yield Case(
        "conv 3x3, 4 groups", conv, (torch.randn(2, 16, 32, 32),), 2 * 2 * 32 * 16 * 16 * 4 * 9
    )
    attended = 2 * b * t * d * (d + 128) + 4 * b * t * t * d
    yield Case("attention, causal, grouped", Attention(), (x,), attended)
    layer = nn.TransformerEncoderLayer(d, 8, 512, batch_first=True).eval()
    layers = 2 * b * t * (4 * d * d + 2 * d * 512) + 4 * b * t * t * d
    yield Case("transformer layer, inference", layer, (x,), layers)
    yield from _language_models()
    yield from _diffusion_models()


def _language_models() -> Iterator[Case | str]:
    try:
        import transformers
    except ImportError:
        yield "transformers"
        return
    b, t, d, f, n = 2, 64, 64, 128, 3
    ids = torch.randint(0, 100, (b, t))
    bert = transformers.BertModel(
        transformers.BertConfig(
            vocab_size=100, hidden_size=d, num_hidden_layers=n, num_attention_heads=4,
            intermediate_size=f, attn_implementation="sdpa",
        )
    ).eval()  # fmt: skip
    layer = 2 * b * t * (4 * d * d + 2 * d * f) + 4 * b * t * t * d
    yield Case("BERT, 3 layers", bert, (ids,), n * layer + 2 * b * d * d)
    llama = transformers.LlamaModel(
        transformers.LlamaConfig(
            vocab_size=100, hidden_size=d, num_hidden_layers=n, num_attention_heads=4,
            num_key_value_heads=2, intermediate_size=f, attn_implementation="sdpa",
        )
    ).eval()  # fmt: skip
    layer = 2 * b * t * (3 * d * d + 3 * d * f) + 4 * b * t * t * d
    yield Case("Llama, grouped queries", llama, (ids,), n * layer)


def _diffusion_models() -> Iterator[Case | str]:
    """A U-Net. By hand: all its attention spelled out as products, which torch's counter sees."""
    try:
        from diffusers import UNet2DConditionModel
        from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
    except ImportError:
        yield "diffusers"
        return
    unet = UNet2DConditionModel(
        sample_size=16, block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=8,
        cross_attention_dim=32, attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()  # fmt: skip
    inputs = (torch.randn(1, 4, 16, 16), torch.tensor(10), torch.randn(1, 7, 32))
    unet.set_attn_processor(AttnProcessor())
    spelled_out = by_torch(Case("", unet, inputs, 0))
    unet.set_attn_processor(AttnProcessor2_0())
    yield Case("U-Net with cross-attention", unet, inputs, spelled_out)


def by_torch(case: Case) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        case.model(*case.inputs)
    return counter.get_total_flops()


def by_fvcore(case: Case) -> int | str:
    try:
        from fvcore.nn import FlopCountAnalysis
    except ImportError:
        return MISSING
    try:
        analysis = FlopCountAnalysis(case.model, case.inputs)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        with torch.no_grad():
            return 2 * int(analysis.total())
    except Exception as error:
        return f"fails: {type(error).__name__}"


def by_calflops(case: Case) -> int | str:
    try:
        from calflops import calculate_flops
    except ImportError:
        return MISSING
    try:
        _, macs, _ = calculate_flops(
            model=case.model, args=list(case.inputs), print_results=False, output_as_string=False
        )
        return 2 * int(macs)
    except Exception as error:
        return f"fails: {type(error).__name__}"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what peers print and warn."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def flops() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for case in modules():
        if isinstance(case, str):
            print(f"{case}: {MISSING}")
            continue
        with quiet():
            with torch.no_grad():
                ours = count_flops(lambda case=case: case.model(*case.inputs)).total
            rows.append(
                {
                    "module": case.name, "by hand": case.by_hand, "ours": ours,
                    "FlopCounterMode": by_torch(case), "fvcore x 2": by_fvcore(case),
                    "calflops MACs x 2": by_calflops(case),
                }
            )  # fmt: skip
    return [
        *rows,
        _own("hash grid, f+b", *_hash_grid()),
        _own("network 32-64-16, f+b", *_network()),
    ]


def _hash_grid() -> tuple[Callable[[], None], int]:
    levels, n = Levels.geometric(log2_size=12), 1000
    table, x = torch.randn(levels.entries, 2, requires_grad=True), torch.rand(n, 3)
    return lambda: encode(table, x, levels).sum().backward(), 2 * (2 * 8 * n * 16 * 2)


def _network() -> tuple[Callable[[], None], int]:
    n = 1000
    weights = [torch.randn(64, 32, requires_grad=True), torch.randn(16, 64, requires_grad=True)]
    x = torch.randn(n, 32, requires_grad=True)
    return lambda: mlp(x, weights).sum().backward(), 3 * 2 * n * (64 * 32 + 16 * 64)


def _own(name: str, run: Callable[[], None], by_hand: int) -> dict[str, Any]:
    with FlopCounterMode(display=False) as counter:
        run()
    peers = {"fvcore x 2": "not an nn.Module", "calflops MACs x 2": "not an nn.Module"}
    ours, theirs = count_flops(run).total, counter.get_total_flops()
    return {"module": name, "by hand": by_hand, "ours": ours, "FlopCounterMode": theirs, **peers}


@contextlib.contextmanager
def load(processes: int = 2) -> Iterator[None]:
    """Other work on the machine, in bursts."""
    started = [subprocess.Popen([sys.executable, "-c", BURSTS]) for _ in range(processes)]
    try:
        time.sleep(5)  # they import torch first
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def products(count: int, rows: int) -> Callable[[], None]:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(rows, 256, generator=generator)
    w = torch.randn(256, 256, generator=generator)

    def run() -> None:
        for _ in range(count):
            torch.mm(a, w)

    return run


def sequential(a: Callable[[], None], b: Callable[[], None], seconds: float, seed: int) -> bool:
    """Whether measuring one after the other and a plain bootstrap call `a` or `b` faster."""
    times = [np.array(measure_latency(f, seconds=seconds / 2).samples) for f in (a, b)]
    generator = np.random.default_rng(seed)
    medians = [np.median(generator.choice(t, (500, len(t))), axis=1) for t in times]
    low, high = np.quantile(medians[1] / medians[0], [0.025, 0.975])
    return not low <= 1 <= high


def decisions(rows: int, seconds: float, runs: int, clock: Any) -> dict[str, Any]:
    """Winners between a function and itself, and between it and itself with 5 % more work."""
    f, more = products(20, rows), products(21, rows)
    false, found, widths, ms = 0, 0, [], []
    for seed in range(runs):
        same = compare(f, f, seconds=seconds, seed=seed, clock=clock)
        false += same.winner is not None
        widths.append(same.high - same.low)
        ms.append(same.a.p50)
        found += compare(f, more, seconds=seconds, seed=seed, clock=clock).winner == "a"
    row = {
        "ms": float(np.median(ms)), "clock": clock, "seconds": seconds, "runs": runs,
        "false": false, "found": found, "width": float(np.median(widths)),
    }  # fmt: skip
    print(
        f"{row['ms']:7.2f} ms  {clock:4}  {seconds:g} s  false winners {false:3} of {runs}  "
        f"5 % found {found:3} of {runs}  interval {row['width']:.4f} wide",
        flush=True,
    )
    return row


def tracker(seconds: float) -> list[dict[str, Any]]:
    """A training step under the memory tracker, against the same step without."""
    rows = []
    for width, batch in ((64, 64), (256, 512), (1024, 512)):
        model = nn.Sequential(
            *(layer for _ in range(4) for layer in (nn.Linear(width, width), nn.GELU()))
        )
        x = torch.randn(batch, width)

        def step(model: nn.Module = model, x: Tensor = x) -> None:
            model(x).square().mean().backward()

        def tracked(model: nn.Module = model, step: Callable[[], None] = step) -> None:
            measure_memory(step, model=model)

        ratio = compare(step, tracked, seconds=seconds)
        rows.append(
            {
                "activation": batch * width * 4, "step_ms": ratio.a.p50, "ratio": ratio.median,
                "low": ratio.low, "high": ratio.high,
            }
        )  # fmt: skip
        print(
            f"activations of {batch * width * 4 / 2**20:6.3f} MiB, step {ratio.a.p50:8.3f} ms: "
            f"tracked takes {ratio.median:.2f} times as long ({ratio.low:.2f} to {ratio.high:.2f})",
            flush=True,
        )
    return rows


def versions() -> dict[str, str]:
    found = {}
    for name in ("fvcore", "calflops", "transformers", "diffusers"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = MISSING
    return found


def main() -> None:
    options = parser(__doc__).parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    table = flops()
    for row in table:
        print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    wrong = sum(row["ours"] != row["by hand"] for row in table)
    runs, seconds = (20, 0.2) if options.quick else (100, 0.5)
    with load():
        began = time.time()
        main_row = decisions(8, seconds, runs, "wall")
        f = products(20, 8)
        more = products(21, 8)
        one_by_one = {
            "false": sum(sequential(f, f, seconds, seed) for seed in range(runs)),
            "found": sum(sequential(f, more, seconds, seed) for seed in range(runs)),
        }
        print(
            f"one after the other: false winners {one_by_one['false']} of {runs}, "
            f"5 % found {one_by_one['found']} of {runs}",
            flush=True,
        )
        few, longer = (4, 0.5) if options.quick else (25, 2.0)
        long_rows = [decisions(128, longer, few, clock) for clock in ("wall", "cpu")]
        busy = {"load": os.getloadavg(), "minutes": (time.time() - began) / 60}
    overhead = tracker(0.5 if options.quick else 4.0)
    share = runs / 100
    goals = [
        goal("modules whose FLOPs differ from the hand formula", wrong, 0, at_least=False),
        goal("false winners per 100 runs", main_row["false"] / share, 7, at_least=False),
        goal("a 5 % difference found per 100 runs", main_row["found"] / share, 90),
    ]
    rows = {
        "flops": table,
        "decisions": [main_row, *long_rows],
        "one_after_the_other": one_by_one,
        "tracker": overhead,
    }
    report(
        "profiling",
        options,
        seeds=range(runs),
        goals=goals,
        rows=rows,
        peers=versions(),
        busy=busy,
    )


if __name__ == "__main__":
    main()
