"""Does pruning space help? Every pruner and its controls at equal steps and marching policy.

    python benchmarks/nerf_hollow.py [--quick] [--json] [--scenes lantern orchard lego] [--seeds 3]

Columns: PSNR (mean over seeds and test views), seconds, counted parameters (HollowNeRF's
rule, plus a 32nd of the mask's bits), kept cells, and the share of G with p above 0.5 / 0.1 / 0.01.
Controls: plain at T, T/2, T/4; plain with one more dense level as large as the saliency grid; the
rewind mask without rewind; an oracle mask from a larger trained model, on from the first step.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

# Before torch is loaded, as the command line does it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from _report import goal, parser, report
from nerf_train import lego

from compress3g.kernels.hash_grid import Levels
from compress3g.nerf.config import TrainConfig
from compress3g.nerf.occupancy import dilate
from compress3g.nerf.phase import Phase
from compress3g.nerf.pruning import RewindPruner
from compress3g.nerf.result import result_of
from compress3g.nerf.scene import Scene
from compress3g.nerf.trainer import Trainer
from compress3g.nerf.visibility import visibility

SHIPPED = Path(__file__).parent.parent / "scenes"
Mask = torch.Tensor
Arm = Callable[[Scene, TrainConfig, Mask], Trainer]


@dataclass(frozen=True, slots=True)
class Row:
    """One arm on one scene, mean over seeds."""

    psnr: float
    spread: float
    seconds: float
    params: float
    kept: float
    p: dict[str, float] | None


def plain(scene: Scene, config: TrainConfig, mask: Mask, *, halvings: int = 0) -> Trainer:
    return Trainer(scene, replace(config, log2_hashmap=config.log2_hashmap - halvings))


def plain_and_level(scene: Scene, config: TrainConfig, mask: Mask) -> Trainer:
    """One dense level with as many numbers as G has: n vertices per axis, 2 n^3 = R^3."""
    phase = Phase.whole(config)
    extra = Levels.single(round((config.saliency_res**3 / 2) ** (1 / 3)), features=2)
    size = -(-extra.sizes[0] // 8) * 8
    levels = Levels(
        (*phase.levels.resolutions, *extra.resolutions),
        (*phase.levels.offsets, phase.levels.entries),
        (*phase.levels.sizes, size),
        2,
    )
    return Trainer(scene, config, phase=replace(phase, levels=levels))


def hollow(scene: Scene, config: TrainConfig, mask: Mask, *, pruner: Any, drop: int = 0) -> Trainer:
    size = config.log2_hashmap - drop
    return Trainer(scene, replace(config, hollow=True, pruner=pruner, log2_hashmap=size))


def no_rewind(scene: Scene, config: TrainConfig, mask: Mask) -> Trainer:
    return Trainer(scene, config, pruner=RewindPruner(config, reinitialise=False))


def oracle(scene: Scene, config: TrainConfig, mask: Mask) -> Trainer:
    trainer = Trainer(scene, config)
    trainer.occupancy.allow(mask)
    return trainer


ARMS: dict[str, Arm] = {
    "plain T": plain,
    "plain T/2": partial(plain, halvings=1),
    "plain T/4": partial(plain, halvings=2),
    "plain T + dense level": plain_and_level,
    "rewind T": partial(hollow, pruner="rewind"),
    "rewind T/4": partial(hollow, pruner="rewind", drop=2),
    "mask without rewind": no_rewind,
    "saliency T": partial(hollow, pruner="saliency"),
    "projected T": partial(hollow, pruner="projected"),
    "paper T": partial(hollow, pruner="paper"),
    "oracle mask T": oracle,
}


def teacher(scene: Scene, config: TrainConfig) -> Mask:
    """Cells that a larger model, trained longer with every aid, shows to be visible."""
    options = replace(config, log2_hashmap=16, steps=2 * (config.steps or 1), hull=True)
    trainer = Trainer(scene, options)
    trainer.fit()
    return dilate(visibility(trainer, 200_000) > 0.05)


def measure(arm: Arm, scene: Scene, config: TrainConfig, mask: Mask, seeds: int) -> Row:
    results = []
    for seed in range(seeds):
        trainer = arm(scene, replace(config, seed=seed), mask)
        trainer.fit()
        results.append((result_of(trainer), trainer.pruner.mask_bits(trainer)))
    scores = torch.tensor([r.psnr for r, _ in results])
    first, bits = results[0]
    return Row(
        psnr=float(scores.mean()),
        spread=float(scores.max() - scores.min()),
        seconds=sum(r.seconds for r, _ in results) / seeds,
        params=first.params + bits / 32,
        kept=sum(r.kept_fraction for r, _ in results) / seeds,
        p=first.p_histogram,
    )


def table(scene: Scene, config: TrainConfig, seeds: int, arms: dict[str, Arm]) -> dict[str, Row]:
    aid = "with" if config.hull else "without"
    print(f"\n{scene.name}, {aid} hull, T = 2^{config.log2_hashmap}, {config.steps} steps")
    print(f"{'':24}{'PSNR':>8}{'spread':>8}{'seconds':>9}{'counted':>10}{'kept':>8}  p histogram")
    mask = teacher(scene, config) if oracle in arms.values() else torch.empty(0, dtype=torch.bool)
    rows = {}
    for name, arm in arms.items():
        row = rows[name] = measure(arm, scene, config, mask, seeds)
        shares = "" if row.p is None else " / ".join(f"{v:.1%}" for v in row.p.values())
        print(
            f"{name:24}{row.psnr:>8.2f}{row.spread:>8.2f}{row.seconds:>9.1f}{row.params:>10,.0f}"
            f"{row.kept:>8.1%}  {shares}",
            flush=True,
        )
    return rows


def judge(tables: dict[str, dict[str, Row]]) -> list[dict[str, Any]]:
    goals = []
    for name, rows in tables.items():
        gain = rows["rewind T"].psnr - rows["plain T"].psnr
        if name.endswith("without hull"):
            goals.append(goal(f"{name}: rewind T over plain T", gain, 1.0, unit="dB"))
            time = rows["rewind T"].seconds / rows["plain T"].seconds
            goals.append(goal(f"{name}: its time over plain's", time, 1.05, at_least=False))
            if "rewind T/4" in rows:
                quarter = rows["rewind T/4"].psnr - rows["plain T"].psnr
                goals.append(goal(f"{name}: rewind T/4 over plain T", quarter, -0.1, unit="dB"))
        else:
            goals.append(goal(f"{name}: rewind T over plain T", gain, -0.1, unit="dB"))
    return goals


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--scenes", nargs="+", default=["lantern", "orchard", "lego"])
    arguments.add_argument(
        "--hull", nargs="+", choices=["with", "without"], default=["without", "with"]
    )
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--steps", type=int, default=800)
    arguments.add_argument("--log2-hashmap", type=int, default=9)
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--out", default="nerf_hollow", help="Name of the results file.")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    arms, hulls, names, seeds, steps = (
        ARMS,
        options.hull,
        options.scenes,
        options.seeds,
        options.steps,
    )
    if options.quick:
        arms = {name: ARMS[name] for name in ("plain T", "rewind T")}
        hulls, names, seeds, steps = ["without"], ["orchard"], 1, 400
    tables = {}
    for name in names:
        scene = lego() if name == "lego" else Scene.load(SHIPPED / name)
        if scene is None:
            continue
        for hull in hulls:
            config = TrainConfig(
                steps=steps, log2_hashmap=options.log2_hashmap, hull=hull == "with", march=256
            )
            tables[f"{name} {hull} hull"] = table(scene, config, seeds, arms)
    print()
    goals = judge(tables)
    rows = {t: {n: {k: getattr(r, k) for k in Row.__slots__} for n, r in rows.items()}
            for t, rows in tables.items()}  # fmt: skip
    report(options.out, options, seeds=range(seeds), goals=goals, rows=rows,
           steps=steps, log2_hashmap=options.log2_hashmap)  # fmt: skip


if __name__ == "__main__":
    main()
