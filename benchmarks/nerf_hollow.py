"""Does pruning space help? Every pruner and its controls at equal steps and marching policy.

    python benchmarks/nerf_hollow.py [--quick] [--json] [--scenes lantern orchard lego] [--seeds 3]

Columns: PSNR (mean over seeds and test views), its spread, CPU seconds of training, counted
parameters (HollowNeRF's rule, plus a 32nd of the mask's bits), kept cells, and the share of G with
p above 0.5 / 0.1 / 0.01. Arms take turns seed by seed, so that a busy machine slows all of them.

Controls: plain at T, T/2, T/4; plain with as many entries in levels fitted to the whole box, and
in the levels that rewind chose (what rewind gains over these is due to the mask, the rest to the
levels); plain with one more dense level as large as the saliency grid; rewind with plain's levels;
the mask without rewind; an oracle mask from a larger trained model, on from the first step, with
plain's levels and with levels fitted to it. Side arms run on the first --side-seeds seeds, and the
tables with the hull hold the main arms alone.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
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
from compress3g.nerf.inside import fitted_levels, share_out
from compress3g.nerf.occupancy import dilate
from compress3g.nerf.phase import Phase
from compress3g.nerf.pruning import RewindPruner
from compress3g.nerf.result import Result, result_of
from compress3g.nerf.scene import Scene
from compress3g.nerf.trainer import Trainer
from compress3g.nerf.visibility import visibility

SHIPPED = Path(__file__).parent.parent / "scenes"


@dataclass(slots=True)
class Known:
    """What an arm may learn from others."""

    oracle: torch.Tensor  # mask
    rewind: Levels | None = None  # that rewind chose last


Arm = Callable[[Scene, TrainConfig, Known], Trainer]


@dataclass(frozen=True, slots=True)
class Row:
    """One arm on one scene, mean over seeds."""

    psnr: float
    spread: float
    cpu_seconds: float
    seconds: float
    params: float
    kept: float
    p: dict[str, float] | None


def plain(scene: Scene, config: TrainConfig, known: Known, *, halvings: int = 0) -> Trainer:
    return Trainer(scene, replace(config, log2_hashmap=config.log2_hashmap - halvings))


def box(config: TrainConfig) -> torch.Tensor:
    return torch.ones((config.occupancy,) * 3, dtype=torch.bool)


def fitted(scene: Scene, config: TrainConfig, known: Known) -> Trainer:
    """The rule by which rewind chooses levels, without a mask."""
    phase, kept = Phase.whole(config), box(config)
    levels = fitted_levels(kept, phase.levels.entries, finest=config.finest)
    return Trainer(scene, config, phase=replace(phase, levels=levels, kept=kept))


def rewind_levels(scene: Scene, config: TrainConfig, known: Known) -> Trainer:
    """The resolutions that rewind chose, over the whole box."""
    assert known.rewind is not None, "rewind comes first"
    phase, cells = Phase.whole(config), known.rewind.resolutions
    sizes = share_out([(n + 1) ** 3 for n in cells], phase.levels.entries)
    phase = replace(phase, levels=Levels.ranked(cells, sizes), kept=box(config))
    return Trainer(scene, config, phase=phase)


def plain_and_level(scene: Scene, config: TrainConfig, known: Known) -> Trainer:
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


def hollow(
    scene: Scene, config: TrainConfig, known: Known, *, pruner: Any, drop: int = 0
) -> Trainer:
    size = config.log2_hashmap - drop
    return Trainer(scene, replace(config, hollow=True, pruner=pruner, log2_hashmap=size))


def plain_levels(scene: Scene, config: TrainConfig, known: Known) -> Trainer:
    return Trainer(scene, config, pruner=RewindPruner(config, fit=False))


def no_rewind(scene: Scene, config: TrainConfig, known: Known) -> Trainer:
    return Trainer(scene, config, pruner=RewindPruner(config, reinitialise=False))


def oracle(scene: Scene, config: TrainConfig, known: Known, *, fit: bool = False) -> Trainer:
    phase = Phase.whole(config)
    if fit:
        levels = fitted_levels(known.oracle, phase.levels.entries, finest=config.finest)
        phase = replace(phase, levels=levels, kept=known.oracle)
    trainer = Trainer(scene, config, phase=phase)
    trainer.occupancy.allow(known.oracle)
    return trainer


MAIN: dict[str, Arm] = {
    "plain T": plain,
    "rewind T": partial(hollow, pruner="rewind"),
    "plain T, box levels": fitted,
    "plain T, rewind levels": rewind_levels,
    "rewind T/4": partial(hollow, pruner="rewind", drop=2),
}
SIDE: dict[str, Arm] = {
    "plain T/2": partial(plain, halvings=1),
    "plain T/4": partial(plain, halvings=2),
    "plain T + dense level": plain_and_level,
    "rewind T, plain levels": plain_levels,
    "mask without rewind": no_rewind,
    "oracle, plain levels": oracle,
    "oracle, its levels": partial(oracle, fit=True),
    "saliency T": partial(hollow, pruner="saliency"),
    "projected T": partial(hollow, pruner="projected"),
    "paper T": partial(hollow, pruner="paper"),
}


def teacher(scene: Scene, config: TrainConfig) -> torch.Tensor:
    """Cells that a larger model, trained longer with every aid, shows to be visible."""
    options = replace(config, log2_hashmap=16, steps=2 * (config.steps or 1), hull=True)
    trainer = Trainer(scene, options)
    trainer.fit()
    return dilate(visibility(trainer, 200_000) > 0.05)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run."""

    result: Result
    cpu_seconds: float
    mask_bits: int


def measure(arm: Arm, scene: Scene, config: TrainConfig, known: Known) -> Outcome:
    trainer = arm(scene, config, known)
    began = time.process_time()
    trainer.fit()
    cpu = time.process_time() - began
    if config.log2_hashmap == trainer.config.log2_hashmap and trainer.config.hollow:
        known.rewind = trainer.field.levels if trainer.config.pruner == "rewind" else known.rewind
    return Outcome(result_of(trainer), cpu, trainer.pruner.mask_bits(trainer))


def summarise(outcomes: list[Outcome]) -> Row:
    results = [o.result for o in outcomes]
    scores = torch.tensor([r.psnr for r in results])
    return Row(
        psnr=float(scores.mean()),
        spread=float(scores.max() - scores.min()),
        cpu_seconds=sum(o.cpu_seconds for o in outcomes) / len(outcomes),
        seconds=sum(r.seconds for r in results) / len(results),
        params=sum(o.result.params + o.mask_bits / 32 for o in outcomes) / len(outcomes),
        kept=sum(r.kept_fraction for r in results) / len(results),
        p=results[0].p_histogram,
    )


def table(scene: Scene, config: TrainConfig, seeds: int, arms: dict[str, int]) -> dict[str, Row]:
    """arms: how many of the seeds each runs."""
    aid = "with" if config.hull else "without"
    print(f"\n{scene.name}, {aid} hull, T = 2^{config.log2_hashmap}, {config.steps} steps")
    print(f"{'':24}{'PSNR':>8}{'spread':>8}{'CPU-s':>8}{'counted':>10}{'kept':>8}  p histogram")
    known = Known(teacher(scene, config) if "oracle, its levels" in arms else box(config))
    outcomes: dict[str, list[Outcome]] = {name: [] for name in arms}
    for seed in range(seeds):
        for name, most in arms.items():
            if seed < most:
                arm = {**MAIN, **SIDE}[name]
                outcomes[name].append(measure(arm, scene, replace(config, seed=seed), known))
    rows = {name: summarise(runs) for name, runs in outcomes.items()}
    for name, row in rows.items():
        shares = "" if row.p is None else " / ".join(f"{v:.1%}" for v in row.p.values())
        print(
            f"{name:24}{row.psnr:>8.2f}{row.spread:>8.2f}{row.cpu_seconds:>8.1f}"
            f"{row.params:>10,.0f}{row.kept:>8.1%}  {shares}",
            flush=True,
        )
    return rows


def judge(tables: dict[str, dict[str, Row]]) -> list[dict[str, Any]]:
    """Against plain with the paper's levels, and against the best plain arm of as many entries."""
    goals = []
    for name, rows in tables.items():
        best = max(
            (arm for arm in MAIN if arm.startswith("plain") and arm in rows),
            key=lambda arm: rows[arm].psnr,
        )
        for peer in dict.fromkeys(("plain T", best)):
            gain = rows["rewind T"].psnr - rows[peer].psnr
            if name.endswith("with hull"):
                goals.append(goal(f"{name}: rewind T over {peer}", gain, -0.1, unit="dB"))
                continue
            goals.append(goal(f"{name}: rewind T over {peer}", gain, 1.0, unit="dB"))
            time_ratio = rows["rewind T"].cpu_seconds / rows[peer].cpu_seconds
            goals.append(
                goal(f"{name}: its CPU time over {peer}'s", time_ratio, 1.0, at_least=False)
            )
            if "rewind T/4" in rows:
                quarter = rows["rewind T/4"].psnr - rows[peer].psnr
                goals.append(goal(f"{name}: rewind T/4 over {peer}", quarter, -0.1, unit="dB"))
    return goals


def main() -> None:
    options_of = parser(__doc__)
    options_of.add_argument("--scenes", nargs="+", default=["lantern", "orchard", "lego"])
    options_of.add_argument(
        "--hull", nargs="+", choices=["with", "without"], default=["without", "with"]
    )
    options_of.add_argument("--seeds", type=int, default=3)
    options_of.add_argument("--side-seeds", type=int, default=1)
    options_of.add_argument("--steps", type=int, default=800)
    options_of.add_argument("--log2-hashmap", type=int, default=9)
    options_of.add_argument("--threads", type=int, default=2)
    options_of.add_argument("--out", default="nerf_hollow", help="Name of the results file.")
    options = options_of.parse_args()
    torch.set_num_threads(options.threads)
    hulls, names, seeds, steps = options.hull, options.scenes, options.seeds, options.steps
    main_arms = dict.fromkeys(MAIN, seeds)
    arms = {"without": main_arms | dict.fromkeys(SIDE, options.side_seeds), "with": main_arms}
    if options.quick:
        hulls, names, seeds, steps = ["without"], ["orchard"], 1, 400
        arms["without"] = dict.fromkeys(("plain T", "rewind T", "plain T, rewind levels"), 1)
    tables = {}
    for name in names:
        scene = lego() if name == "lego" else Scene.load(SHIPPED / name)
        if scene is None:
            continue
        for hull in hulls:
            config = TrainConfig(
                steps=steps, log2_hashmap=options.log2_hashmap, hull=hull == "with", march=256
            )
            tables[f"{name} {hull} hull"] = table(scene, config, seeds, arms[hull])
    print()
    goals = judge(tables)
    rows = {t: {n: asdict(row) for n, row in rows.items()} for t, rows in tables.items()}
    report(
        options.out,
        options,
        seeds=range(seeds),
        goals=goals,
        rows=rows,
        steps=steps,
        log2_hashmap=options.log2_hashmap,
    )


if __name__ == "__main__":
    main()
