"""What the shipped text-to-image model still draws right, at equal parameters, by method.

    python benchmarks/diffusion_quality.py [--quick] [--json] [--methods a,b] [--sheet FILE]

The denoiser of pipelines/digits_t2i loses shares of its parameters (all of them in the denominator)
by each method, without retraining. Held-out captions of one, two and four objects; the score is the
share of images that are right in every digit and colour, by the classifier beside the model.
Methods: `step` is EcoDiff's baseline, the loss of every step on its own; `control` keeps as many
units of each group as `ecodiff`, but at random; `+refit` adds the ridge regression of readers;
`ecodiff@0.3` prunes at any ratio by masks that were learnt for 30 %; torch-pruning is the library's
own pruner, one ratio for all layers but the residual stream, which stays whole. Whatever a method
looks at are training captions. Seeds draw these, the scores' own noise, and the images' noise.
Everything that is finished is kept in `--work`, from where an interrupted run goes on.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _diffusion_methods import DRAWS, METHODS, SETTINGS, UPDATES, Methods
from _digits import Classifier, Scene, correct, scenes
from _report import goal, parser, report
from torch import Tensor

import compress3g.diffusion as cd
from compress3g.diffusion.metrics import relative_error, ssim
from compress3g.diffusion.sheet import write_sheet
from compress3g.engine.checkpoint import atomic_write, load_tensors, save_tensors
from compress3g.errors import Compress3GError

MODEL = Path(__file__).parent.parent / "pipelines" / "digits_t2i"
STEPS, GUIDANCE = 12, 3.0
OBJECTS = (1, 2, 4)
LOOKED_AT = 96  # training captions
QUICK = "ecodiff,magnitude,taylor+refit,torch-pruning"
SHEET = (
    "dense,magnitude/0.3,taylor/0.3,ecodiff/0.3,ecodiff+refit/0.3,taylor/0.4,taylor+refit/0.4,"
    "ecodiff@0.3/0.4,ecodiff@0.3+refit/0.4"
)
ECODIFF = "ecodiff@0.3"  # that the goals are about
PEERS = ("random", "magnitude", "taylor")  # that EcoDiff's goal names


def made(pipe: Any, wanted: Sequence[Scene], seed: int) -> tuple[Tensor, Tensor]:
    """Latents and images (n, 3, 16, 16), 100 at a time."""
    parts = []
    for first in range(0, len(wanted), 100):
        captions = [s.caption for s in wanted[first : first + 100]]
        how: dict[str, Any] = {"seed": seed * 100_000 + first, "steps": STEPS, "guidance": GUIDANCE}
        parts.append(cd.generate(pipe, captions, **how, output="latent"))
    latents = torch.cat(parts)
    with torch.no_grad():
        decoded = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    return latents, (decoded / 2 + 0.5).clamp(0, 1)


def judged(images: Tensor, wanted: Sequence[Scene], judge: Classifier) -> dict[str, float]:
    right = correct(images, wanted, judge).float()
    counts = torch.tensor([len(s.objects) for s in wanted])
    row = {f"{n} objects": float(right[counts == n].mean()) for n in OBJECTS}
    return {**row, "all": float(right.mean())}


def held_out(count: int, seed: int) -> list[Scene]:
    """As many scenes of every number of objects."""
    noise = np.random.default_rng(seed)
    shares = [count // 3, count // 3, count - 2 * (count // 3)]
    parts = zip(OBJECTS, shares, strict=True)
    return [s for n, c in parts for s in scenes(n, c, noise, held_out=True)]


def looked_at(count: int, seed: int) -> list[str]:
    """Captions of training scenes, as many of every number of objects."""
    noise = np.random.default_rng(1000 + seed)
    drawn = [s.caption for n in OBJECTS for s in scenes(n, count // 3, noise, held_out=False)]
    return [drawn[i] for i in noise.permutation(len(drawn))]


class Work:
    """What is finished: rows by "method/ratio/seed.draw", and the dense model's latents."""

    def __init__(self, folder: Path, about: str) -> None:
        self.folder = folder / about  # of this model and these settings
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file = self.folder / "rows.json"
        found = self._file.exists()
        self.rows: dict[str, Any] = json.loads(self._file.read_text()) if found else {}

    def keep(self, name: str, row: dict[str, float]) -> None:
        self.rows[name] = row
        text = json.dumps(self.rows, indent=1)
        atomic_write(self._file, lambda file: file.write(text.encode()))


class Bench:
    """One seed: its captions, the dense model's answers, and the methods."""

    def __init__(self, seed: int, count: int, work: Work, *, quick: bool = False) -> None:
        self.pipe, self.judge = _model()
        self.seed, self.work = seed, work
        self.wanted = held_out(count, seed)
        self.size = sum(p.numel() for p in self.pipe.unet.parameters())
        self.methods = Methods(
            self.pipe,
            looked_at(12 if quick else LOOKED_AT, seed),
            STEPS,
            GUIDANCE,
            seed,
            work.folder,
            updates=4 if quick else UPDATES,
        )
        self.latents, self.images = self._dense()

    def _dense(self) -> tuple[Tensor, Tensor]:
        file = self.work.folder / f"dense-{self.seed}.safetensors"
        if not file.exists():
            latents, images = made(self.pipe, self.wanted, self.seed)
            save_tensors(file, {"latents": latents, "images": images}, {})
            self.work.keep(f"dense/0/{self.seed}.0", judged(images, self.wanted, self.judge))
        found = load_tensors(file)[0]
        return found["latents"], found["images"]

    def row(self, method: str, ratio: float, draw: int) -> dict[str, float]:
        """Measured, or from before."""
        name = f"{method}/{ratio:g}/{self.seed}.{draw}"
        if name not in self.work.rows:
            began = time.process_time()
            small = self.methods.prune(method, ratio, draw)
            cut = time.process_time()
            latents, images = made(small, self.wanted, self.seed)
            row = judged(images, self.wanted, self.judge)
            row["latent error"] = relative_error(latents, self.latents)
            row["ssim"] = float(ssim(images, self.images).mean())
            row["gone"] = 1 - sum(p.numel() for p in small.unet.parameters()) / self.size
            row["seconds"] = cut - began
            self.work.keep(name, row)
        return self.work.rows[name]

    def picture(self, name: str) -> Tensor:
        """Images of twelve captions by "dense" or "method/ratio"."""
        pipe = self.pipe
        if name != "dense":
            method, _, ratio = name.rpartition("/")
            pipe = self.methods.prune(method, float(ratio))
        return made(pipe, self.wanted[:: len(self.wanted) // 12][:12], self.seed)[1]


def _model() -> tuple[Any, Classifier]:
    return cd.open_pipeline(MODEL), Classifier.load(MODEL / "classifier.safetensors")


def _about(count: int, *, quick: bool = False) -> str:
    """A folder's name for this model and what rows depend on besides their names."""
    weights = sorted(MODEL.glob("*/*.safetensors"))
    state = hashlib.sha256(repr((count, STEPS, GUIDANCE, LOOKED_AT, SETTINGS)).encode())
    for file in weights:
        state.update(file.read_bytes())
    return ("quick-" if quick else "") + state.hexdigest()[:12]


def run(options: Any) -> tuple[dict[str, Any], list[int]]:
    seeds = [0] if options.quick else list(range(options.seeds))
    ratios = [0.2] if options.quick else [float(r) for r in options.ratios.split(",")]
    count = 24 if options.quick else options.captions
    about = _about(count, quick=options.quick)
    if options.quick:
        shutil.rmtree(options.work / about, ignore_errors=True)
    work = Work(options.work, about)
    rows: dict[str, Any] = {}
    print(
        f"{'':22}{'ratio':>6}{'gone':>7}{'1':>8}{'2':>8}{'4':>8}{'all':>8}{'latents':>9}{'SSIM':>7}"
    )
    for seed in seeds:
        bench = Bench(seed, count, work, quick=options.quick)
        rows[f"dense/0/{seed}.0"] = work.rows[f"dense/0/{seed}.0"]
        show(f"dense/0/{seed}.0", rows)
        for ratio in ratios:
            for method in options.methods.split(","):
                draws = 1 if options.quick else DRAWS.get(method, 1)
                for draw in range(draws * seed, draws * (seed + 1)):
                    name = f"{method}/{ratio:g}/{seed}.{draw}"
                    if options.finished and name not in work.rows:
                        continue
                    try:
                        rows[name] = bench.row(method, ratio, draw)
                    except Compress3GError as error:
                        print(f"{name:22} {error}")
                        continue
                    show(name, rows)
    return rows, seeds


def show(name: str, rows: dict[str, Any]) -> None:
    row = rows[name]
    exact = "".join(f"{row[k]:>8.1%}" for k in (*(f"{n} objects" for n in OBJECTS), "all"))
    close = "".join(
        f"{row.get(k, math.nan):>{w}.3f}" for k, w in (("latent error", 9), ("ssim", 7))
    )
    print(f"{name:28}{row.get('gone', 0):>7.1%}{exact}{close}", flush=True)


def mean(rows: dict[str, Any], method: str, ratio: float, of: str = "all") -> float:
    """Over seeds and draws; NaN when it was not measured."""
    found = [r[of] for k, r in rows.items() if k.startswith(f"{method}/{ratio:g}/")]
    return sum(found) / len(found) if found else math.nan


def table(rows: dict[str, Any], methods: Sequence[str], ratios: Sequence[float]) -> None:
    """Means over seeds and draws, in the form of docs/diffusion.md."""
    print("\n| parameters gone |" + "".join(f" {r:.0%} | |" for r in ratios))
    for method in methods:
        cells = []
        for ratio in ratios:
            exact, far = (mean(rows, method, ratio, of) for of in ("all", "latent error"))
            cells.append(f" {100 * exact:.1f} | {far:.3f} |")
        print(f"| {method} |" + "".join(cells))
    print()


def goals(rows: dict[str, Any]) -> list[dict[str, Any]]:
    """Of the issue, for masks that were learnt once, as far as they were measured."""
    found = []
    lost = 100 * (mean(rows, "dense", 0) - mean(rows, ECODIFF, 0.2))
    if not math.isnan(lost):
        found.append(goal(f"points lost at 20 %, {ECODIFF}", lost, 2, unit="", at_least=False))
    peers = [100 * mean(rows, m, 0.3) for m in PEERS]
    gained = 100 * mean(rows, ECODIFF, 0.3) - max(
        (p for p in peers if not math.isnan(p)), default=math.nan
    )
    if not math.isnan(gained):
        found.append(goal(f"points of {ECODIFF} above the best peer at 30 %", gained, 10))
    return found


def main() -> None:
    made_by = parser(__doc__)
    made_by.add_argument("--methods", default=",".join(METHODS))
    made_by.add_argument("--ratios", default="0.3,0.2,0.4,0.1,0.6", help="Shares that go.")
    made_by.add_argument("--seeds", type=int, default=3)
    made_by.add_argument("--captions", type=int, default=168, help="Per seed.")
    made_by.add_argument(
        "--work", type=Path, default=Path("runs/diffusion_quality"), help="For what is finished."
    )
    made_by.add_argument(
        "--finished", action="store_true", help="Measure nothing more: report what is in --work."
    )
    made_by.add_argument("--sheet", type=Path, help="Only draw: a PNG with a row per --rows.")
    made_by.add_argument("--rows", default=SHEET, help="Of the sheet.")
    options = made_by.parse_args()
    if options.quick:
        options.methods = QUICK
    torch.set_num_threads(1)
    if options.sheet is not None:
        bench = Bench(0, options.captions, Work(options.work, _about(options.captions)))
        names = options.rows.split(",")
        write_sheet(options.sheet, [bench.picture(name) for name in names])
        print("rows:", ", ".join(names))
        return
    rows, seeds = run(options)
    ratios = sorted({float(name.split("/")[1]) for name in rows} - {0.0})
    table(rows, options.methods.split(","), ratios)
    report("diffusion_quality", options, seeds=seeds, goals=goals(rows), rows=rows)


if __name__ == "__main__":
    main()
