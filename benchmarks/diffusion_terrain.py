"""A really pretrained network, pruned without retraining: the terrain U-Net in one step.

    python benchmarks/diffusion_terrain.py [--quick] [--json] [--weights FILE.onnx] [--sheet PNG]

Needs onnx and adaptive-terrain-diffusion 0.4.2 (10.5 million parameters, MIT); with onnxruntime the
port is checked against it first. Shares of all parameters go by each method, through the same
surgery, kept channels unrounded. Error: of height fields from fresh noise at deviation 80, over the
dense fields' energy. Spectrum: mean gap in dB, over wavenumbers 1 to 64, between radially averaged
power spectra of pruned and dense fields. What looks at data sees fields that the dense network
makes, noised at four deviations; the loss is to get them back. `ecodiff@0.3` prunes at any ratio by
masks learnt for 30 % against the dense fields, with the product's defaults and its one step; "from
fisher": in half of the updates, from logits in the order of fisher's scores (`--checkpoint` is a
folder that keeps what is learnt; left out with `--quick`). "+refit" is cd.refit on the same
batches.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from _report import goal, parser, report
from _terrain import SIGMA_MAX, SIZE, Pipe, TerrainUNet, load, onnx_file
from torch import Tensor, nn

import compress3g.diffusion as cd
from compress3g.criteria import CRITERIA, gather, score
from compress3g.diffusion.metrics import relative_error
from compress3g.diffusion.prune import priced_units
from compress3g.diffusion.sheet import write_sheet

RATIOS = (0.1, 0.2, 0.3, 0.4)
METHODS = (
    "random", "magnitude", "taylor", "fisher", "ecodiff@0.3", "ecodiff@0.3 from fisher",
    "magnitude+refit", "fisher+refit", "ecodiff@0.3+refit", "ecodiff@0.3 from fisher+refit",
)  # fmt: skip
DEVIATIONS = (SIGMA_MAX, 10.0, 2.0, 0.5)
Batch = tuple[Tensor, Tensor, Tensor, Tensor]  # noisy, sigma, difficulty, clean


def noise(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """First noise at deviation 80, and difficulties."""
    g = torch.Generator().manual_seed(seed)
    fields = SIGMA_MAX * torch.randn(count, 1, SIZE, SIZE, generator=g)
    return fields, torch.full((count,), SIGMA_MAX), torch.rand(count, generator=g)


@torch.no_grad()
def made(model: nn.Module, count: int, seed: int) -> Tensor:
    parts = zip(*(t.split(4) for t in noise(count, seed)), strict=True)
    return torch.cat([model(*part) for part in parts])


def batches(model: TerrainUNet, count: int, seed: int) -> list[Batch]:
    """The dense network's fields, each batch of four at one deviation."""
    g = torch.Generator().manual_seed(seed + 1)
    clean = made(model, count, seed)
    difficulty = noise(count, seed)[2]
    found: list[Batch] = []
    for x, d in zip(clean.split(4), difficulty.split(4), strict=True):
        for sigma in DEVIATIONS:
            noisy = x + sigma * torch.randn(x.shape, generator=g)
            found.append((noisy, torch.full((len(x),), sigma), d, x))
    return found


def loss(model: nn.Module, batch: Batch) -> Tensor:
    noisy, sigma, difficulty, clean = batch
    # Of fields with much noise little can be got back: each deviation counts alike.
    error = (model(noisy, sigma, difficulty) - clean).square().mean()
    return error / error.detach().clamp_min(1e-12)


def spectrum(fields: Tensor) -> Tensor:
    """Power by wavenumber 1 to 64, averaged over directions and fields."""
    size = fields.shape[-1]
    power = torch.fft.fft2(fields.double() - fields.double().mean((2, 3), keepdim=True)).abs() ** 2
    k = torch.fft.fftfreq(size, 1 / size)
    ring = (k[:, None].square() + k.square()).sqrt().round().long().flatten()
    total = torch.zeros(int(ring.max()) + 1, dtype=torch.double)
    total.index_add_(0, ring, power.mean((0, 1)).flatten())
    return (total / ring.bincount())[1 : size // 2 + 1]


def decibels(ours: Tensor, theirs: Tensor) -> float:
    return float((10 * (spectrum(ours) / spectrum(theirs)).log10()).abs().mean())


def gap_to_onnx(model: TerrainUNet, file: Path) -> float | None:
    """Largest difference to onnxruntime; None without it."""
    try:
        import onnxruntime
    except ImportError:
        print("onnxruntime is not installed: the port is not checked")
        return None
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    g, worst = torch.Generator().manual_seed(5), 0.0
    for sigma in DEVIATIONS:
        given = (
            sigma * torch.randn(1, 1, SIZE, SIZE, generator=g),
            torch.tensor([sigma]),
            torch.tensor([0.5]),
        )
        names = ("noisy", "sigma", "difficulty")
        feeds = {n: t.numpy() for n, t in zip(names, given, strict=True)}
        theirs = torch.from_numpy(session.run(None, feeds)[0])
        with torch.no_grad():
            worst = max(worst, float((model(*given) - theirs).abs().max()))
    return worst


def learnt(model: TerrainUNet, folder: Path | None, start: Any = None) -> Any:
    """EcoDiff's logits for 30 %; the terrain's prompts are difficulties. start: scores."""
    g = torch.Generator().manual_seed(7)
    difficulties = [str(d) for d in torch.rand(64, generator=g).tolist()]
    config = cd.EcoDiffConfig(target=0.3, steps=1, batch=4, accumulate=2)
    if start is not None:
        config = replace(config, updates=config.updates // 2)
    name = "open" if start is None else "ordered"
    checkpoint = folder / f"{name}.checkpoint" if folder is not None else None
    learned = cd.learn_masks(Pipe(model), difficulties, config, start=start, checkpoint=checkpoint)
    return learned.logits


def pruned(
    model: TerrainUNet, name: str, ratio: float, scores: Any, data: list[Batch]
) -> nn.Module:
    method = name.removesuffix("+refit")
    pipe = Pipe(copy.deepcopy(model))
    known: Any = method.partition("@")[0]  # how its scores are ranked
    config = cd.PruneConfig(method=known, ratio=ratio, round_to=1)

    def fit(denoiser: nn.Module, units: Any, keep: Any) -> None:
        cd.refit(denoiser, units, keep, lambda: data, run=lambda m, b: m(*b[:3]))

    refit = fit if name.endswith("+refit") else None
    return cd.prune(pipe, scores[method], before_cut=refit, **config.how()).unet.eval()


def run(options: Any, model: TerrainUNet) -> dict[str, Any]:
    count, looked_at = (2, 4) if options.quick else (8, 8)
    dense, data = made(model, count, 1000), batches(model, looked_at, 0)
    units = priced_units(model)
    criteria = {n: CRITERIA[n] for n in ("random", "magnitude", "taylor", "fisher")}
    evidence = gather(
        model, units, criteria.values(), data, loss=loss, generator=torch.Generator().manual_seed(0)
    )
    scores = {name: score(criterion, evidence)[0] for name, criterion in criteria.items()}
    if not options.quick:
        scores["ecodiff@0.3"] = learnt(model, options.checkpoint)
        scores["ecodiff@0.3 from fisher"] = learnt(model, options.checkpoint, scores["fisher"])
    rows: dict[str, Any] = {}
    pictures = [dense[:8]]
    print(f"{'':29}" + "".join(f"{f'{r:.0%}: error':>14}{'dB':>6}" for r in RATIOS))
    fitted_to = data[:2] if options.quick else data
    for name in METHODS:
        if options.quick and (name == "magnitude+refit" or name.startswith("ecodiff")):
            continue
        line = f"{name:29}"
        for ratio in RATIOS:
            small = pruned(model, name, ratio, scores, fitted_to)
            fields = made(small, count, 1000)
            row = rows[f"{name}/{ratio}"] = {
                "error": relative_error(fields, dense),
                "mse": float((fields - dense).square().mean()),
                "spectrum dB": decibels(fields, dense),
                "gone": 1 - sum(p.numel() for p in small.parameters()) / options.size,
            }
            line += f"{row['error']:>14.4f}{row['spectrum dB']:>6.2f}"
            if ratio == 0.3:
                pictures.append(fields[:8])
        print(line, flush=True)
    if options.sheet is not None:
        write_sheet(options.sheet, [(p / 2 + 0.5).expand(-1, 3, -1, -1) for p in pictures])
    return rows


def main() -> None:
    options_of = parser(__doc__)
    options_of.add_argument("--weights", type=Path, help="The network's ONNX file.")
    options_of.add_argument("--sheet", type=Path, help="PNG: dense, then each method at 30 %%.")
    options_of.add_argument("--checkpoint", type=Path, help="Folder of EcoDiff's learning.")
    options = options_of.parse_args()
    torch.set_num_threads(1)
    file = onnx_file(options.weights)
    model = load(file).requires_grad_(False)
    options.size = sum(p.numel() for p in model.parameters())
    print(f"{options.size:,} parameters")
    goals = []
    if (gap := gap_to_onnx(model, file)) is not None:
        # Float32 sums of some thousand terms, through 70 layers.
        goals.append(goal("port against ONNX, largest difference", gap, 1e-4, at_least=False))
    rows = run(options, model)
    best = min(rows[f"{m}/0.3"]["error"] for m in ("random", "magnitude"))
    share = rows["fisher+refit/0.3"]["error"] / best
    goals.append(goal("error at 30 %, refit over norms and chance", share, 0.5, at_least=False))
    report("diffusion_terrain", options, seeds=[0], goals=goals, rows=rows)


if __name__ == "__main__":
    main()
