"""What a text-to-image pipeline still draws right, at equal parameters, by method.

A `Task` is a model, captions, and who says what is right; `Bench` measures one seed of it, and
keeps what is finished, from where an interrupted run goes on.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _diffusion_methods import DRAWS, METHODS, SETTINGS, UPDATES, Methods
from torch import Tensor

import compress3g.diffusion as cd
from compress3g.diffusion.metrics import relative_error, ssim
from compress3g.diffusion.sheet import write_sheet
from compress3g.engine.checkpoint import atomic_write, load_tensors, save_tensors
from compress3g.errors import Compress3GError

STEPS, GUIDANCE = 12, 3.0
LOOKED_AT = 96  # training captions


@dataclass(frozen=True, slots=True)
class Task:
    """A pipeline's folder, what it is asked for, and who says whether that is what it drew.

    held_out: (count, seed) to things to draw that have a `caption`; looked_at: likewise to captions
    of training; judged: images (n, 3, h, w) in [0, 1] and what was wanted to shares, by columns.
    """

    model: Path
    held_out: Callable[[int, int], Sequence[Any]]
    looked_at: Callable[[int, int], list[str]]
    judged: Callable[[Tensor, Sequence[Any]], dict[str, float]]
    columns: tuple[str, ...]


def made(pipe: Any, wanted: Sequence[Any], seed: int) -> tuple[Tensor, Tensor]:
    """Latents and images (n, 3, h, w), 100 at a time."""
    parts = []
    for first in range(0, len(wanted), 100):
        captions = [s.caption for s in wanted[first : first + 100]]
        how: dict[str, Any] = {"seed": seed * 100_000 + first, "steps": STEPS, "guidance": GUIDANCE}
        parts.append(cd.generate(pipe, captions, **how, output="latent"))
    latents = torch.cat(parts)
    with torch.no_grad():
        rows = (latents / pipe.vae.config.scaling_factor).split(100)
        decoded = torch.cat([pipe.vae.decode(z).sample for z in rows])
    return latents.cpu(), (decoded / 2 + 0.5).clamp(0, 1).cpu()


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

    def __init__(
        self, task: Task, seed: int, count: int, work: Work, *, device: str = "cpu",
        quick: bool = False,
    ) -> None:  # fmt: skip
        self.task, self.pipe = task, cd.open_pipeline(task.model, device=device)
        self.seed, self.work = seed, work
        self.wanted = task.held_out(count, seed)
        self.size = sum(p.numel() for p in self.pipe.unet.parameters())
        self.methods = Methods(
            self.pipe,
            task.looked_at(12 if quick else LOOKED_AT, seed),
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
            self.work.keep(f"dense/0/{self.seed}.0", self.task.judged(images, self.wanted))
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
            row = self.task.judged(images, self.wanted)
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


def about(task: Task, count: int, *, quick: bool = False) -> str:
    """A folder's name for this model and what rows depend on besides their names."""
    weights = sorted(task.model.glob("*/*.safetensors"))
    state = hashlib.sha256(repr((count, STEPS, GUIDANCE, LOOKED_AT, SETTINGS)).encode())
    for file in weights:
        state.update(file.read_bytes())
    return ("quick-" if quick else "") + state.hexdigest()[:12]


def run(task: Task, options: Any) -> tuple[dict[str, Any], list[int]]:
    seeds = (
        [0]
        if options.quick
        else list(range(options.first_seed, options.first_seed + options.seeds))
    )
    ratios = [0.2] if options.quick else [float(r) for r in options.ratios.split(",")]
    count = 24 if options.quick else options.captions
    name_ = about(task, count, quick=options.quick)
    if options.quick:
        shutil.rmtree(options.work / name_, ignore_errors=True)
    work = Work(options.work, name_)
    rows: dict[str, Any] = {}
    columns = "".join(f"{c[:10]:>11}" for c in task.columns)
    print(f"{'':22}{'ratio':>6}{'gone':>7}{columns}{'latents':>9}{'SSIM':>7}")
    for seed in seeds:
        bench = Bench(task, seed, count, work, device=options.device, quick=options.quick)
        rows[f"dense/0/{seed}.0"] = work.rows[f"dense/0/{seed}.0"]
        show(task, f"dense/0/{seed}.0", rows)
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
                    show(task, name, rows)
    return rows, seeds


def show(task: Task, name: str, rows: dict[str, Any]) -> None:
    row = rows[name]
    exact = "".join(f"{row[k]:>11.1%}" for k in task.columns)
    close = "".join(
        f"{row.get(k, math.nan):>{w}.3f}" for k, w in (("latent error", 9), ("ssim", 7))
    )
    print(f"{name:28}{row.get('gone', 0):>7.1%}{exact}{close}", flush=True)


def mean(rows: dict[str, Any], method: str, ratio: float, of: str = "all") -> float:
    """Over seeds and draws; NaN when it was not measured."""
    found = [r[of] for k, r in rows.items() if k.startswith(f"{method}/{ratio:g}/")]
    return sum(found) / len(found) if found else math.nan


def table(
    rows: dict[str, Any], methods: Sequence[str], ratios: Sequence[float], of: str = "all"
) -> None:
    """Means over seeds and draws, in the form of docs/diffusion.md."""
    print("\n| parameters gone |" + "".join(f" {r:.0%} | |" for r in ratios))
    for method in methods:
        cells = []
        for ratio in ratios:
            exact, far = (mean(rows, method, ratio, key) for key in (of, "latent error"))
            cells.append(f" {100 * exact:.1f} | {far:.3f} |")
        print(f"| {method} |" + "".join(cells))
    print()


def add_options(made_by: Any, work: str, *, captions: int) -> None:
    """What both benchmarks are told."""
    made_by.add_argument("--methods", default=",".join(METHODS))
    made_by.add_argument("--ratios", default="0.3,0.2,0.4,0.1,0.6", help="Shares that go.")
    made_by.add_argument("--seeds", type=int, default=3, help="How many.")
    made_by.add_argument("--first-seed", type=int, default=0)
    made_by.add_argument("--captions", type=int, default=captions, help="Per seed.")
    made_by.add_argument("--device", default="cpu")
    made_by.add_argument("--work", type=Path, default=Path(work), help="For what is finished.")
    made_by.add_argument(
        "--finished", action="store_true", help="Measure nothing more: report what is in --work."
    )
    made_by.add_argument("--sheet", type=Path, help="Only draw: a PNG with a row per --rows.")


def draw_sheet(task: Task, options: Any) -> None:
    """A row of twelve images by "dense" or "method/ratio"."""
    work = Work(options.work, about(task, options.captions))
    bench = Bench(task, 0, options.captions, work, device=options.device)
    names = options.rows.split(",")
    write_sheet(options.sheet, [bench.picture(name) for name in names])
    print("rows:", ", ".join(names))
