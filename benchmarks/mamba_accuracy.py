"""Accuracy of the small Vims with fewer tokens: scores, alignments, merging, fine-tuning.

    python benchmarks/mamba_accuracy.py --dataset cifar10 --data FOLDER --work FOLDER [--validation]
    python benchmarks/mamba_accuracy.py --quick

FOLDER has the files that _small_pictures.py names. Tokens go after three blocks. Every setting of
`zero-shot` prunes the dense weights as they are; `fine-tuned` trains each contender, and the dense
model, for the same `--steps` with the dense model as teacher, over three seeds. `--validation` asks
the 5,000 pictures that one may choose by, too: `chosen` names who is best there, and what it
reaches on the test split. `--work` keeps what was measured, so that a run goes on where it stopped,
which `--minutes` may say; the results file has what there is by then. `--share 1/4` does every
fourth fine-tuning, for several processes with one `--work`; `--part none` then gathers them.
`--earlier` is a results file of the same settings: seeds and rows that are only there are taken
from there. Standard errors are of the test pictures: of differences, over pairs of answers to the
same picture, and over seeds where there are several (_paired.py). `--quick` takes the 500 pictures
that are shipped.
"""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _mamba_results import earlier, outdated
from _paired import difference
from _report import goal, parser, report
from _small_pictures import DATA_SETS, DataSet
from safetensors.torch import save_file
from train_vim import on

from compress3g.mamba import (
    PruneConfig,
    PruneSchedule,
    apply_patch,
    flops,
    load_checkpoint,
    preset,
    pruned,
)
from compress3g.mamba.data import Arrays, Pictures, open_data
from compress3g.mamba.train import correct, train

KEEPS = (0.65, 0.8)
STEPS = 300  # of fine-tuning
SCORES = ("clip", "l1", "sum", "l2", "max", "gated", "delta", "attentiveness", "hidden_attention",
          "random")  # fmt: skip
DENSE, MERGED = "dense", "merged, current, zero"


def settings(keep: float, layers: tuple[int, ...]) -> dict[str, PruneConfig]:
    """Name to pruning; a name says score (or `merged`), scan alignment, convolution alignment."""
    schedule = PruneSchedule(layers=layers, keep=(keep,) * len(layers))
    plain = PruneConfig(schedule=schedule)
    made = {
        f"{score}, {align}, {conv}": replace(plain, score=score, align=align, conv_align=conv)
        for score in ("l1", "clip", "hidden_attention")
        for align in ("none", "current")
        for conv in ("none", "zero", "hold")
    }
    made |= {
        f"merged, {align}, {conv}": replace(plain, method="merge", align=align, conv_align=conv)
        for align, conv in (("current", "zero"), ("none", "zero"))
    }
    made |= {
        f"{kind}, {align}, {conv}": replace(plain, method=method, align=align, conv_align=conv)
        for kind, method in (("merged", "merge"), ("ward", "ward"))
        for align, conv in (("size", "none"), ("none", "hold"), ("size", "hold"))
    }
    for name in ("ward", "r_meeto", "top_vim_code", "utr", "evit", "random"):
        made[name] = preset(name, schedule)
    made |= {f"{s}, current, zero": replace(plain, score=s) for s in SCORES}
    made |= {f"{s}, none, zero": replace(plain, score=s, align="none") for s in SCORES}
    made["mirrored, none, none"] = replace(plain, score="mirrored", align="none", conv_align="none")
    made["clip, none, none, centred class token"] = replace(
        plain, schedule=replace(schedule, cls="center"), score="clip", align="none",
        conv_align="none",
    )  # fmt: skip
    aligns = ("previous", "mean", "bias", "recorded")
    return made | {
        f"{score}, {a}, zero": replace(plain, score=score, align=a)
        for score in ("l1", "clip")
        for a in aligns
    }


# In the order in which they are trained: what a short run has is the heart of the matter.
CONTENDERS = (
    "ward", "hidden_attention, none, zero", "r_meeto", "l1, current, zero", "clip, none, zero",
    "l1, none, none", "l1, none, zero", "clip, current, zero", DENSE,
    "hidden_attention, none, none", "hidden_attention, none, hold", "l1, none, hold",
    "clip, current, none", MERGED, "random", "utr", "evit", "clip, none, none",
    "l1, current, none", "random, none, zero", "merged, none, zero", "merged, none, hold",
    "merged, size, none", "merged, size, hold", "ward, none, hold", "ward, size, none",
)  # fmt: skip
FIRST = 4  # of them for all seeds before any other
RIVALS = ("r_meeto", "utr", "evit", "random", "top_vim_code", DENSE)  # may not be chosen
QUICK = ("l1, current, zero", "ward", "r_meeto", "l1, none, none", MERGED, "clip, current, none")


class OutOfTime(Exception):
    """The minutes that were given are over."""


class Answers:
    """Which pictures were right under which name, kept in a folder."""

    def __init__(self, folder: Path | None, minutes: float = 1e9) -> None:
        self.folder, self._until = folder, time.monotonic() + 60 * minutes
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def _file(self, name: str) -> Path | None:
        return None if self.folder is None else self.folder / f"{name}.npy"

    def has(self, name: str) -> bool:
        """Whether they are known."""
        file = self._file(name)
        return file is not None and file.exists()

    def keep(self, name: str, found: np.ndarray) -> np.ndarray:
        """Booleans by picture, written down."""
        file = self._file(name)
        if file is not None:
            np.save(file, found)
        print(f"{name:60}{100 * found.mean():>8.2f} %", flush=True)
        return found

    def of(self, name: str, compute) -> np.ndarray:
        """Booleans by picture; computed once. Raises OutOfTime for new ones after the minutes."""
        if self.has(name):
            return np.load(self._file(name))
        self.check()
        return self.keep(name, compute().numpy())

    def stop(self) -> None:
        """Nothing new from now on."""
        self._until = 0.0

    def check(self) -> None:
        """Raises OutOfTime after the minutes."""
        if time.monotonic() > self._until:
            raise OutOfTime


def zero_shot(rows, found, data_set, parts: dict[str, Pictures], answers, keeps, names, batch):
    """Adds the accuracy of every setting on each of the splits to `rows`."""
    model, look = found.model, found.preprocess
    todo: dict[str, PruneConfig | None] = {"dense": None}
    for keep in keeps:
        made = settings(keep, data_set.layers)
        todo |= {f"{keep:g} {n}": c for n, c in made.items() if names is None or n in names}
    for name, config in todo.items():
        for split, pictures in parts.items():

            def run(p=pictures, c=config):
                with pruned(model, c):
                    return correct(model, p, look, batch=batch)

            key = f"{split} {name}"
            with contextlib.suppress(OutOfTime):
                rows[key] = _row(answers.of(key, run), share_of(model, config))


def share_of(model, config: PruneConfig | None) -> float:
    if config is None:
        return 1.0
    return flops(model, config.schedule).total / flops(model).total


def _row(right: np.ndarray, share: float) -> dict[str, float]:
    top1 = right.mean()
    return {
        "top1": 100 * float(top1),
        "standard_error": 100 * float(np.sqrt(top1 * (1 - top1) / len(right))),
        "macs_share": share,
    }


def fine_tuned(data_set, chosen, parts: dict[str, Pictures], answers: Answers, known) -> None:
    """Trains each contender for equal steps, by seed, keep and name, and asks all splits."""
    runs = [
        (seed, keep, name)
        for names in _in_turn(chosen)
        for seed in range(chosen.seeds)
        for keep in chosen.keeps
        for name in names
        if name != DENSE or keep == chosen.keeps[0]
    ]
    which, of = (int(n) for n in chosen.share.split("/"))
    for seed, keep, name in runs[which - 1 :: of]:
        keys = {split: _key(split, keep, name) for split in parts if split != "train"}
        if all(score(key, seed, answers, known) is not None for key in keys.values()):
            continue
        told = {split: f"{key} seed {seed}" for split, key in keys.items()}
        answers.check()
        _fine_tune(data_set, chosen, parts, answers, told, (seed, keep, name))


def _in_turn(chosen) -> list[tuple[str, ...]]:
    """Contenders of which all seeds come before those of the next group."""
    if chosen.only is None:
        return [CONTENDERS[:FIRST], CONTENDERS[FIRST:]]
    return [tuple(name for name in CONTENDERS if name in chosen.only)]


def _key(split: str, keep: float, name: str) -> str:
    at = name if name == DENSE else f"{keep:g} {name}"
    return f"fine-tuned {split} {at}"


def _fine_tune(data_set, chosen, parts, answers, told, run) -> None:
    seed, keep, name = run
    student, teacher = (load_checkpoint(chosen.model) for _ in range(2))
    model = student.model.to(chosen.device)
    if name != DENSE:
        apply_patch(model, settings(keep, data_set.layers)[name])
    size = chosen.pictures or data_set.fine.batch
    epochs = chosen.steps * size / len(parts["train"])
    recipe = replace(data_set.fine, epochs=epochs, seed=seed, batch=size)
    train(model, parts["train"], student.preprocess, recipe,
          teacher=teacher.model.to(chosen.device))  # fmt: skip
    if chosen.weights is not None:
        chosen.weights.mkdir(parents=True, exist_ok=True)
        state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
        at = "1" if name == DENSE else f"{keep:g}"
        save_file(state, chosen.weights / f"{at} {name} seed {seed}.safetensors")
    for split, key in told.items():
        found = correct(model, parts[split], student.preprocess, batch=chosen.batch)
        answers.keep(key, found.numpy())


def score(key: str, seed: int, answers: Answers, known: dict[str, Any]) -> float | None:
    """Percent right after training from this seed; `known`: rows of earlier runs."""
    told = f"{key} seed {seed}"
    if answers.has(told):
        return 100 * float(answers.of(told, None).mean())
    seeds = known.get(key, {}).get("seeds", [])
    return seeds[seed] if seed < len(seeds) else None


def gathered(data_set: DataSet, model, chosen, answers: Answers, known) -> dict[str, Any]:
    """Every contender after training: the mean over seeds from 0 up to the first unknown one."""
    rows: dict[str, Any] = {}
    for split in ("validation", "test"):
        for keep in chosen.keeps:
            for name in CONTENDERS:
                if name == DENSE and keep != chosen.keeps[0]:
                    continue
                key = _key(split, keep, name)
                scores = (score(key, seed, answers, known) for seed in range(chosen.seeds))
                right = list(takewhile(lambda found: found is not None, scores))
                if right:
                    config = None if name == DENSE else settings(keep, data_set.layers)[name]
                    rows[key] = {
                        "top1": float(np.mean(right)),
                        "seeds": right,
                        "macs_share": share_of(model, config),
                    }
    return rows


def best(rows: dict[str, Any], start: str, keep: float) -> str | None:
    """Who is best on the rows that begin so, rivals left out."""
    begins = f"{start} {keep:g} "
    found = {
        key.removeprefix(begins): row["top1"] for key, row in rows.items() if key.startswith(begins)
    }
    ours = {k: v for k, v in found.items() if k not in RIVALS}
    return max(ours, key=lambda k: ours[k]) if ours else None


def compared(rows: dict[str, Any], answers: Answers, chosen, known) -> dict[str, Any]:
    """Ours, as validation chooses and by default, against ordered merging at equal cost."""
    made: dict[str, Any] = {}
    default = PruneConfig()
    named = f"{default.score}, {default.align}, {default.conv_align}"
    for keep in chosen.keeps:
        for start, ends in (
            ("{}", [""]),
            ("fine-tuned {}", [f" seed {s}" for s in range(chosen.seeds)]),
        ):
            picked = best(rows, start.format("validation"), keep)
            test = f"{start.format('test')} {keep:g}"
            for role, ours in (("default", named), ("ward", "ward"), ("chosen", picked)):
                pair = (f"{test} {ours}", f"{test} r_meeto")
                both = [e for e in ends if all(answers.has(f"{key}{e}") for key in pair)]
                if ours is not None and both:  # only seeds that both have
                    found = [[answers.of(f"{key}{e}", None) for e in both] for key in pair]
                    made[f"{test}: {role} ({ours}) - r_meeto"] = _gap(
                        *found, _further(pair, both, answers, known, chosen)
                    )
    return made


def _further(pair, both, answers: Answers, known, chosen) -> list[float]:
    """Points between the two at seeds of which both were scored, but answers are not kept."""
    left = [seed for seed in range(chosen.seeds) if both != [""] and f" seed {seed}" not in both]
    scores = [[score(key, seed, answers, known) for key in pair] for seed in left]
    return [ours - theirs for ours, theirs in scores if None not in (ours, theirs)]


def _gap(a: list[np.ndarray], b: list[np.ndarray], further: list[float]) -> dict[str, float]:
    points, error = difference(a, b, further)
    print(json.dumps({"points": points, "standard_error": error}))
    return {"points": points, "standard_error": error, "standard_errors": points / error,
            "seeds": len(a) + len(further)}  # fmt: skip


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--dataset", choices=list(DATA_SETS), default="fashion")
    options.add_argument("--data", type=Path)
    options.add_argument("--model", type=Path)
    options.add_argument("--work", type=Path)
    options.add_argument("--weights", type=Path, help="Keep what was fine-tuned here.")
    options.add_argument("--part", choices=["zero-shot", "fine-tuned", "none"])
    options.add_argument("--validation", action="store_true", help="Ask the validation split too.")
    options.add_argument("--device", default="cpu")
    options.add_argument("--batch", type=int, default=50, help="Of pictures that are asked.")
    options.add_argument("--steps", type=int, default=STEPS)
    options.add_argument("--pictures", type=int, help="Of a step; unset, the recipe's 128.")
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--keeps", default="0.65,0.8")
    options.add_argument("--share", default="1/1")
    options.add_argument("--contenders", action="store_true", help="Only those of fine-tuning.")
    options.add_argument("--only", action="append", help="This setting; may be repeated.")
    options.add_argument("--earlier", type=Path, help="A results file to go on from.")
    options.add_argument("--minutes", type=float, default=1e9, help="Begin nothing after these.")
    chosen = options.parse_args()
    data_set = DATA_SETS[chosen.dataset]
    torch.set_num_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = True
    chosen.model = chosen.model or data_set.folder / "dense"
    chosen.keeps = [float(k) for k in chosen.keeps.split(",")]
    found = load_checkpoint(chosen.model)
    found.model.to(chosen.device)
    answers = Answers(None if chosen.quick else chosen.work, chosen.minutes)
    names = CONTENDERS if chosen.contenders else chosen.only
    if chosen.quick:
        pictures = open_data(chosen.model.parent / "test_500.npz")
        assert isinstance(pictures, Arrays)
        parts, names = on(chosen.device, {"test": pictures}), QUICK
        chosen.part = "zero-shot"
    elif chosen.data is None or chosen.work is None:
        options.error("--data FOLDER and --work FOLDER are needed without --quick")
    else:
        parts = on(chosen.device, data_set.splits(chosen.data))
        if not chosen.validation:
            del parts["validation"]
    name = "mamba_accuracy" if chosen.dataset == "fashion" else f"mamba_accuracy_{chosen.dataset}"
    name += "_fine_tuned" if chosen.part == "fine-tuned" else ""
    name += "_only" if chosen.only else ""
    known = earlier(chosen.earlier, chosen, data_set, name)
    rows = dict(known)
    if chosen.part in (None, "fine-tuned"):
        with contextlib.suppress(OutOfTime):
            fine_tuned(data_set, chosen, parts, answers, known)
    asked = {split: parts[split] for split in ("validation", "test") if split in parts}
    if chosen.part in ("fine-tuned", "none"):
        answers.stop()  # what is known stands in the results all the same
    zero_shot(rows, found, data_set, asked, answers, chosen.keeps, names, chosen.batch)
    rows |= gathered(data_set, found.model, chosen, answers, known)
    rows |= compared(rows, answers, chosen, known)
    for key in outdated(rows):
        del rows[key]
    goals = [
        goal(f"{key}, in standard errors", row["standard_errors"], 2.0)
        for key, row in rows.items()
        if "standard_errors" in row
    ]
    report(name, chosen, seeds=list(range(chosen.seeds)), goals=goals, rows=rows,
           layers=data_set.layers, steps=chosen.steps,
           pictures=chosen.pictures or data_set.fine.batch)  # fmt: skip


if __name__ == "__main__":
    main()
