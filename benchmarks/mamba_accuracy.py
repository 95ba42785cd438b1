"""Accuracy of the shipped Vim with fewer tokens: scores, alignments, merging, fine-tuning.

    python benchmarks/mamba_accuracy.py --data FOLDER --work FOLDER [--part zero-shot|fine-tuned]
    python benchmarks/mamba_accuracy.py --quick

FOLDER has the ten JSON files that _fashion.py names. Tokens go after blocks 2, 4 and 6 of 8. Every
setting of `zero-shot` prunes the dense weights as they are; `fine-tuned` trains each contender for
the same steps with the dense model as teacher. `--work` keeps what was measured, so that a run goes
on where it stopped, which `--minutes` may say; the results file has what there is by then.
Standard errors are of the test pictures: of differences, over pairs of answers to the same picture,
and over seeds where there are several. `--quick` takes the 500 pictures that are shipped.
"""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _fashion import splits
from _report import goal, parser, report
from train_fashion import FINE, LAYERS, OUT

from compress3g.mamba import (
    PruneConfig,
    PruneSchedule,
    apply_patch,
    flops,
    load_checkpoint,
    preset,
    pruned,
)
from compress3g.mamba.data import Arrays, open_data
from compress3g.mamba.train import correct, train

KEEPS = (0.65, 0.8)
STEPS = 86  # of fine-tuning
SCORES = ("clip", "l1", "sum", "l2", "max", "gated", "delta", "attentiveness", "hidden_attention",
          "random")  # fmt: skip
OURS, MERGED = "l1, current, zero", "merged, current, zero"


def settings(keep: float) -> dict[str, PruneConfig]:
    """Name to pruning; a name says score (or `merged`), scan alignment, convolution alignment."""
    schedule = PruneSchedule(layers=LAYERS, keep=(keep,) * len(LAYERS))
    plain = PruneConfig(schedule=schedule)
    made = {
        OURS: plain,
        "r_meeto": preset("r_meeto", schedule),
        "l1, none, none": replace(plain, align="none", conv_align="none"),
        "l1, none, zero": replace(plain, align="none"),
        "l1, current, none": replace(plain, conv_align="none"),
        MERGED: replace(plain, method="merge"),
        "merged, none, zero": replace(plain, method="merge", align="none"),
        "top": preset("top", schedule),
        "top_vim_code": preset("top_vim_code", schedule),
    }
    made |= {f"{s}, current, zero": replace(plain, score=s) for s in SCORES if s != "l1"}
    made |= {
        "clip, none, none": replace(plain, score="clip", align="none", conv_align="none"),
        "clip, none, zero": replace(plain, score="clip", align="none"),
        "l1, none, hold": replace(plain, align="none", conv_align="hold"),
        "l1, current, hold": replace(plain, conv_align="hold"),
        "mirrored, none, none": replace(plain, score="mirrored", align="none", conv_align="none"),
        "clip, none, none, centred class token": replace(
            plain, schedule=replace(schedule, cls="center"), score="clip", align="none",
            conv_align="none",
        ),
        **{p: preset(p, schedule) for p in ("utr", "evit", "random")},
    }  # fmt: skip
    aligns = ("previous", "mean", "bias", "recorded")
    return made | {f"l1, {a}, zero": replace(plain, align=a) for a in aligns}


CONTENDERS = (OURS, "r_meeto", "l1, none, none", MERGED, "top")


class OutOfTime(Exception):
    """The minutes that were given are over."""


class Answers:
    """Which pictures were right under which name, kept in a folder."""

    def __init__(self, folder: Path | None, minutes: float = 1e9) -> None:
        self.folder, self._until = folder, time.monotonic() + 60 * minutes
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def of(self, name: str, compute) -> np.ndarray:
        """Booleans by picture; computed once."""
        file = None if self.folder is None else self.folder / f"{name}.npy"
        if file is not None and file.exists():
            return np.load(file)
        if time.monotonic() > self._until:
            raise OutOfTime
        found = compute().numpy()
        if file is not None:
            np.save(file, found)
        print(f"{name:60}{100 * found.mean():>8.2f} %", flush=True)
        return found


def zero_shot(rows, found, parts: dict[str, Arrays], answers: Answers, keeps, names=None) -> None:
    """Adds the accuracy of every setting on each of the splits to `rows`."""
    model, look = found.model, found.preprocess
    for split, pictures in parts.items():
        dense = answers.of(f"{split} dense", lambda p=pictures: correct(model, p, look))
        rows[f"{split} dense"] = _row(dense, 1.0)
        for keep in keeps:
            for name, config in settings(keep).items():
                if names is not None and name not in names:
                    continue

                def run(p=pictures, c=config):
                    with pruned(model, c):
                        return correct(model, p, look)

                key = f"{split} {keep:g} {name}"
                share = flops(model, config.schedule).total / flops(model).total
                rows[key] = _row(answers.of(key, run), share)


def _row(right: np.ndarray, share: float) -> dict[str, float]:
    top1 = right.mean()
    return {
        "top1": 100 * float(top1),
        "standard_error": 100 * float(np.sqrt(top1 * (1 - top1) / len(right))),
        "macs_share": share,
    }


def difference(a: list[np.ndarray], b: list[np.ndarray]) -> tuple[float, float]:
    """Points by which a is better than b, and its standard error; one array per seed.

    Pictures are pairs; the mean over seeds is taken picture by picture, and what seeds scatter
    comes on top.
    """
    gaps = np.stack([x.astype(float) - y.astype(float) for x, y in zip(a, b, strict=True)])
    over_pictures = gaps.mean(0).std(ddof=1) / np.sqrt(gaps.shape[1])
    seeds = gaps.mean(1)
    over_seeds = seeds.std(ddof=1) / np.sqrt(len(seeds)) if len(seeds) > 1 else 0.0
    return 100 * float(gaps.mean()), 100 * float(np.hypot(over_pictures, over_seeds))


def fine_tuned(
    rows, model_path: Path, parts: dict[str, Arrays], answers: Answers, seeds, keeps, steps: int
) -> None:
    """Adds the accuracy after `steps` of training of each contender, by keep, name and seed."""
    for keep in keeps:
        for seed in seeds:
            for name in CONTENDERS:
                config = settings(keep)[name]

                def run(c=config, s=seed):
                    student, teacher = load_checkpoint(model_path), load_checkpoint(model_path)
                    apply_patch(student.model, c)
                    epochs = steps * FINE.batch / len(parts["train"])
                    recipe = replace(FINE, epochs=epochs, seed=s)
                    train(student.model, parts["train"], student.preprocess, recipe,
                          teacher=teacher.model)  # fmt: skip
                    return correct(student.model, parts["test"], student.preprocess)

                key = f"fine-tuned {keep:g} {name} seed {seed}"
                rows[key] = {"top1": 100 * float(answers.of(key, run).mean())}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--data", type=Path)
    options.add_argument("--model", type=Path, default=OUT / "dense")
    options.add_argument("--work", type=Path)
    options.add_argument("--part", choices=["zero-shot", "fine-tuned"])
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--keeps", default="0.65,0.8")
    options.add_argument("--contenders", action="store_true", help="Only those of fine-tuning.")
    options.add_argument("--minutes", type=float, default=1e9, help="Begin nothing after these.")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    found = load_checkpoint(chosen.model)
    keeps = [float(k) for k in chosen.keeps.split(",")]
    names = CONTENDERS if chosen.contenders else None
    steps, seeds = STEPS, range(chosen.seeds)
    if chosen.quick:
        pictures = open_data(chosen.model.parent / "test_500.npz")
        assert isinstance(pictures, Arrays)
        parts, names = {"test": pictures}, CONTENDERS
        answers, chosen.part = Answers(None), "zero-shot"
    elif chosen.data is None:
        options.error("--data FOLDER is needed without --quick")
    else:
        everything = splits(chosen.data)
        answers = Answers(chosen.work, chosen.minutes)
        parts = {"test": everything["test"]}
    rows: dict[str, Any] = {}
    with contextlib.suppress(OutOfTime):
        if chosen.part in (None, "zero-shot"):
            zero_shot(rows, found, parts, answers, keeps, names)
            if names is None:
                by = [f"{s}, current, zero" for s in SCORES] + ["l1, none, zero", MERGED]
                validation = {"validation": everything["validation"]}
                zero_shot(rows, found, validation, answers, keeps, by)
        if chosen.part in (None, "fine-tuned"):
            fine_tuned(rows, chosen.model, everything, answers, seeds, keeps, steps)
    rows |= compared(rows, answers, seeds)
    goals = [
        goal(f"{key}: points over merging, in standard errors", row["standard_errors"], 2.0)
        for key, row in rows.items()
        if "standard_errors" in row and f": {OURS} - " in key  # the default
    ]
    report("mamba_accuracy", chosen, seeds=list(seeds), goals=goals, rows=rows, layers=LAYERS,
           steps=steps)  # fmt: skip


def compared(rows: dict[str, Any], answers: Answers, seeds) -> dict[str, Any]:
    """Ours, by score or merged, against ordered merging at equal multiply-adds."""
    made: dict[str, Any] = {}

    for keep in KEEPS if answers.folder is not None else ():
        for ours in (OURS, MERGED):
            for part, ends in (("test", [""]), ("fine-tuned", [f" seed {s}" for s in seeds])):
                keys = [[f"{part} {keep:g} {n}{e}" for e in ends] for n in (ours, "r_meeto")]
                both = [e for e in zip(*keys, strict=True) if set(e) <= set(rows)]
                if both:  # only seeds that both have
                    found = [[np.load(answers.folder / f"{k}.npy") for k in e] for e in both]
                    a, b = [x for x, _ in found], [y for _, y in found]
                    made[f"{part} {keep:g}: {ours} - r_meeto"] = _gap(a, b)
    return made


def _gap(a: list[np.ndarray], b: list[np.ndarray]) -> dict[str, float]:
    points, error = difference(a, b)
    print(json.dumps({"points": points, "standard_error": error}))
    return {"points": points, "standard_error": error, "standard_errors": points / error}


if __name__ == "__main__":
    main()
