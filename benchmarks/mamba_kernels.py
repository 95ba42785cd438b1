"""Selective scan and causal convolution in C against torch, one core; the price of alignment.

    python benchmarks/mamba_kernels.py [--quick] [--json]

Shapes of Vim-T at 224 pixels and batch 4: 197 tokens, 384 channels, 16 states, with softplus, skip
and gate; the scan's cost with holes is measured on the 101 tokens that are left after its last
prune point, and on all. Ratios are medians of pairs that take turns, in CPU time, with their 95 %
intervals. Peers: the chunked torch form of this package (all chunks of 16 steps at once), torch
step by step, and a log-step (Hillis-Steele) scan in torch; results are compared first. Then Vim-T
as a whole, the same batch of images: with the kernels against the same model on either torch form
of the scan and torch's convolution (median and extremes of pairs that take turns), and which share
of the pass with the kernels is theirs. `bound` is the ratio if the kernels took no time at all.
Freed memory stays with the process (_memory), or the peers' large tensors would cost fresh pages as
well; the rows named so are measured first, as a process starts.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from statistics import median
from typing import Any

import _scan
import torch
import torch.nn.functional as F
from _memory import keep_freed_memory
from _report import goal, parser, report
from _scan import TAPS, Arguments, Run, backward_of, scan

from compress3g.kernels import _library, registry
from compress3g.kernels.causal_conv import causal_conv1d
from compress3g.kernels.cost import observe
from compress3g.mamba import create_model

BATCH, TOKENS, PRUNED, CHANNELS = 4, 197, 101, 384
ratio = partial(_scan.ratio, clock="cpu")


def arguments(tokens: int) -> Arguments:
    return _scan.arguments(BATCH, tokens, CHANNELS)


def log_step(x: Arguments) -> torch.Tensor:
    """The same by doubling: after pass i every step knows its 2^i predecessors."""
    delta = F.softplus(x["delta"] + x["delta_bias"])
    factor = (delta[..., None] * x["A"]).exp()
    state = (delta * x["u"])[..., None] * x["B"][:, :, None]
    reach = 1
    while reach < factor.shape[1]:
        state = torch.cat(
            [state[:, :reach], state[:, reach:] + factor[:, reach:] * state[:, :-reach]], 1
        )
        factor = torch.cat([factor[:, :reach], factor[:, reach:] * factor[:, :-reach]], 1)
        reach *= 2
    y = (state * x["C"][:, :, None]).sum(-1) + x["D"] * x["u"]
    return y * F.silu(x["z"])


def against_torch(seconds: float) -> dict[str, Any]:
    """The scan against each peer; forward, then with its gradients."""
    x = arguments(TOKENS)
    peers: dict[str, Callable[[Arguments], torch.Tensor]] = {
        "chunked": lambda x: scan(x, "chunked"),
        "log-step": log_step,
        "step by step": lambda x: scan(x, "reference"),
    }
    rows = {}
    for name, peer in peers.items():
        torch.testing.assert_close(scan(x, "cpu"), peer(x), atol=1e-4, rtol=1e-4)
        rows[f"scan forward, against {name}"] = ratio(
            f"scan forward, against {name}",
            lambda: scan(x, "cpu"),
            lambda peer=peer: peer(x),  # type: ignore[misc]
            seconds,
        )
        rows[f"scan forward+backward, against {name}"] = ratio(
            f"scan forward+backward, against {name}",
            backward_of(lambda x: scan(x, "cpu"), x),
            backward_of(peer, x),
            seconds,
        )
    return rows


def alignment(seconds: float) -> dict[str, Any]:
    """The scan with holes over the scan without, every rule; G in one tensor for comparison."""
    rows = {}
    for tokens in (PRUNED, TOKENS):
        x = arguments(tokens)
        g = torch.Generator().manual_seed(2)
        gap = torch.randint(0, 4, (BATCH, tokens), generator=g)
        # The other way to hand holes over: the decay of every hole, made outside.
        given = {
            "given as a tensor": lambda x=x, gap=gap: {
                "gap": gap[..., None] * F.softplus(x["delta"] + x["delta_bias"])
            }
        }
        rules = {
            mode: lambda mode=mode, gap=gap: {"gap": gap, "gap_mode": mode}
            for mode in ("current", "previous", "bias", "mean")
        }
        for rule, options in {**rules, **given}.items():
            name = f"holes {rule}, {tokens} tokens, forward"
            rows[name] = ratio(
                name,
                lambda x=x: scan(x, "cpu"),
                lambda x=x, options=options: scan(x, "cpu", **options()),
                seconds,
            )
    return rows


def instruction_sets(seconds: float) -> dict[str, Any]:
    """The scan of every set this processor has, against chunked torch."""
    x, rows = arguments(TOKENS), {}
    for name in ("scalar", "avx2", "avx512"):
        with _library.use_isa(name):
            label = f"scan forward in {name}, against chunked"
            rows[label] = ratio(label, lambda: scan(x, "cpu"), lambda: scan(x, "chunked"), seconds)
        if name == _library.isa():
            break
    return rows


def convolution(seconds: float) -> dict[str, Any]:
    """The convolution with silu against torch's, dense and with holes; then its gradients."""
    g = torch.Generator().manual_seed(0)
    # Half of a projection, as in the model: rows are not contiguous.
    x = torch.randn(BATCH, PRUNED, 2 * CHANNELS, generator=g)[..., :CHANNELS]
    weight, bias = torch.randn(CHANNELS, TAPS, generator=g), torch.randn(CHANNELS, generator=g)
    places = torch.rand(BATCH, TOKENS, generator=g).argsort(1)[:, :PRUNED].sort(1).values
    upstream, rows = torch.randn(x.shape, generator=g), {}
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
    for mode in ("none", "zero", "hold"):

        def run(*given: torch.Tensor, backend: str, mode: str = mode) -> torch.Tensor:
            return causal_conv1d(
                *given, positions=places, mode=mode, activation="silu", backend=backend
            )

        def step(backend: str, run: Any = run) -> Run:
            return lambda: torch.autograd.grad(run(*leaves, backend=backend), leaves, upstream)

        label = f"convolution {mode}, {PRUNED} tokens, forward"
        rows[label] = ratio(
            label,
            lambda run=run: run(x, weight, bias, backend="cpu"),
            lambda run=run: run(x, weight, bias, backend="reference"),
            seconds,
        )
        label = f"convolution {mode}, {PRUNED} tokens, forward+backward"
        rows[label] = ratio(label, step("cpu"), step("reference"), seconds)
    return rows


def seconds_of(run: Run) -> float:
    """CPU time of one call."""
    began = time.process_time()
    run()
    return time.process_time() - began


class Whole:
    """Vim-T on one batch of images, with one kernel or another."""

    def __init__(self) -> None:
        self.ours = {"selective_scan": "cpu", "causal_conv": "cpu"}
        torch.manual_seed(0)
        self.model, self.image = create_model("vim_tiny").eval(), torch.randn(BATCH, 3, 224, 224)

    def run(self, **backends: str) -> torch.Tensor:
        with torch.inference_mode(), registry.use(**backends):
            out: torch.Tensor = self.model(self.image)
            return out

    def against(self, scan_form: str, name: str, pairs: int) -> dict[str, Any]:
        """The kernels against a torch form of the scan and torch's convolution, in turn."""
        peer = {"selective_scan": scan_form, "causal_conv": "reference"}
        torch.testing.assert_close(self.run(**self.ours), self.run(**peer), atol=1e-4, rtol=1e-4)
        timed = [
            (seconds_of(lambda: self.run(**self.ours)), seconds_of(lambda: self.run(**peer)))
            for _ in range(pairs)
        ]
        ratios = sorted(b / a for a, b in timed)
        mine, theirs = (1e3 * median(t[i] for t in timed) for i in (0, 1))
        print(f"{name:58}{mine:>9.1f}{theirs:>10.1f} ms{median(ratios):>9.2f}x", flush=True)
        return {
            "ours_ms": mine, "peer_ms": theirs, "ratio": median(ratios),
            "low": ratios[0], "high": ratios[-1], "pairs": pairs,
        }  # fmt: skip


def with_fresh_pages(seconds: float, pairs: int) -> dict[str, Any]:
    """Chunked torch before anything told malloc to keep memory; the scan, then Vim-T."""
    x = arguments(TOKENS)
    name = "scan forward, against chunked, fresh pages"
    rows = {name: ratio(name, lambda: scan(x, "cpu"), lambda: scan(x, "chunked"), seconds)}
    name = "Vim-T whole, against chunked torch, fresh pages"
    return rows | {name: Whole().against("chunked", name, pairs)}


def whole_model(pairs: int) -> dict[str, Any]:
    """Vim-T: the kernels against each torch form, in turn; then where the time with them goes."""
    whole, rows = Whole(), {}
    for scan_form, name in (("reference", "torch step by step"), ("chunked", "chunked torch")):
        label = f"Vim-T whole, against {name}"
        rows[label] = whole.against(scan_form, label, pairs)
    spent: Counter[str] = Counter()

    @contextmanager
    def watch(op: str, _: int | None) -> Iterator[None]:
        began = time.process_time()
        yield
        spent[op] += time.process_time() - began

    with observe(watch):
        total = sum(seconds_of(lambda: whole.run(**whole.ours)) for _ in range(pairs))
    shares = {op: 100 * used / total for op, used in spent.items()}
    shares["projections and all else"] = 100 - sum(shares.values())
    rows["Vim-T whole, shares"] = shares
    for row in list(rows.values())[:2]:
        row["bound"] = row["ratio"] / (shares["projections and all else"] / 100)
    print("Vim-T whole, of its time: " + ", ".join(f"{k} {v:.0f} %" for k, v in shares.items()))
    bounds = ", ".join(f"{row['bound']:.1f}x" for row in list(rows.values())[:2])
    print(f"Vim-T whole, if the kernels took no time: {bounds}")
    return rows


def main() -> None:
    options_of = parser(__doc__)
    options_of.add_argument("--seconds", type=float, default=5.0, help="Per ratio (default 5).")
    options = options_of.parse_args()
    if options.seconds <= 0:
        options_of.error("give more than no seconds")
    torch.set_num_threads(1)
    if _library.status() is not None:
        raise SystemExit(f"nothing to measure: CPU kernels are {_library.status()}")
    seconds = 0.6 if options.quick else options.seconds
    print(f"{'':58}{'ours':>9}{'peer':>10}   {'ratio':>9}")
    rows = with_fresh_pages(seconds, 1 if options.quick else 3)
    kept = keep_freed_memory()
    rows |= against_torch(seconds)
    rows |= instruction_sets(seconds)
    rows |= convolution(seconds)
    rows |= whole_model(2 if options.quick else 10)
    print(f"{'':58}{'without':>9}{'with':>10}   {'ratio':>9}")
    rows |= alignment(seconds)
    goals = [
        goal(
            "scan forward against chunked torch", rows["scan forward, against chunked"]["ratio"], 20
        ),
        goal(
            "scan forward+backward against chunked torch",
            rows["scan forward+backward, against chunked"]["ratio"],
            10,
        ),
        goal(
            "Vim-T whole model against torch step by step",
            rows["Vim-T whole, against torch step by step"]["ratio"],
            9,
        ),
        goal(
            "Vim-T whole model against chunked torch",
            rows["Vim-T whole, against chunked torch"]["ratio"],
            9,
        ),
        goal(
            f"alignment (current) over none, {PRUNED} tokens",
            100 * (rows[f"holes current, {PRUNED} tokens, forward"]["ratio"] - 1),
            3,
            unit="% of the scan",
            at_least=False,
        ),
    ]
    report(
        "mamba_kernels",
        options,
        seeds=[0, 1, 2],
        goals=goals,
        rows=rows,
        shape=[BATCH, TOKENS],
        freed_memory_kept=kept,
    )


if __name__ == "__main__":
    main()
