"""Trains the small Vim of pipelines/fashion_vim from scratch, and its pruned versions, on one core.

    python benchmarks/train_fashion.py --data FOLDER [--epochs 1] [--out FOLDER] [--fine-tune]

FOLDER has the ten JSON files that _fashion.py names. Without `--fine-tune` the dense model is
trained and written to OUT/dense; with it, OUT/dense is fine-tuned while pruned after blocks 2, 4
and 6 at keep 0.8 and 0.65, with its own dense self as teacher, and each goes to OUT/keep_0.8 and
OUT/keep_0.65. The score is accuracy on the 10,000 pictures of the test split; nothing is chosen by
it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from _fashion import CLASSES, PREPROCESS, splits, write
from _report import goal, parser, report

from compress3g.mamba import (
    PruneConfig,
    PruneSchedule,
    apply_patch,
    create_model,
    load_checkpoint,
    save_checkpoint,
)
from compress3g.mamba.data import Arrays
from compress3g.mamba.train import TrainConfig, Trained, accuracy, train

OUT = Path(__file__).parent.parent / "pipelines" / "fashion_vim"
LAYERS = (2, 4, 6)
_FLOOR = {0.8: 84.0, 0.65: 80.0}  # % of the test split that a fine-tuned model has at least
RECIPE = TrainConfig(
    epochs=1, lr=2e-3, warmup=80, weight_decay=0.05, batch=64, flip=True, ema=0.995
)
FINE = TrainConfig(
    epochs=0.4, lr=3e-4, warmup=20, weight_decay=0.05, batch=64, flip=True,
    distill=0.5, ema=0.99,
)  # fmt: skip


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--out", type=Path, default=OUT)
    options.add_argument("--epochs", type=float)
    options.add_argument("--fine-tune", action="store_true")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--export", type=Path, help="Only write the splits as .npz here.")
    chosen = options.parse_args()
    if chosen.export:
        write(chosen.data, chosen.export)
        return
    parts = splits(chosen.data)
    if chosen.quick:
        parts = {name: part.part(np.arange(1000)) for name, part in parts.items()}
    torch.set_num_threads(1)
    rows = _fine_tuned(parts, chosen) if chosen.fine_tune else _dense(parts, chosen)
    goals = [
        goal(name, row["test"], row["goal"], unit="% of the test split")
        for name, row in rows.items()
    ]
    name = "fashion_fine_tuned" if chosen.fine_tune else "fashion_dense"
    report(name, chosen, seeds=[chosen.seed], goals=goals, rows=rows)


def _config(base: TrainConfig, chosen) -> TrainConfig:
    return replace(base, epochs=chosen.epochs or base.epochs, seed=chosen.seed)


def _dense(parts: dict[str, Arrays], chosen) -> dict:
    torch.manual_seed(chosen.seed)
    model = create_model("vim_fashion")
    config = _config(RECIPE, chosen)
    trained = train(model, parts["train"], PREPROCESS, config)
    row = {**_row(model, parts, trained, config), "goal": 50.0 if chosen.quick else 86.0}
    if not chosen.quick:
        save_checkpoint(chosen.out / "dense", model, PREPROCESS, row)
    return {"dense": row}


def _fine_tuned(parts: dict[str, Arrays], chosen) -> dict:
    rows = {}
    for keep in (0.65, 0.8):
        teacher = load_checkpoint(chosen.out / "dense").model
        model = load_checkpoint(chosen.out / "dense").model
        schedule = PruneSchedule(layers=LAYERS, keep=(keep,) * len(LAYERS))
        apply_patch(model, PruneConfig(schedule=schedule))
        config = _config(FINE, chosen)
        trained = train(model, parts["train"], PREPROCESS, config, teacher=teacher)
        row = {**_row(model, parts, trained, config), "goal": _FLOOR[keep]}
        rows[f"keep_{keep}"] = row
        if not chosen.quick:
            save_checkpoint(chosen.out / f"keep_{keep}", model, PREPROCESS, row)
    return rows


def _row(model, parts: dict[str, Arrays], trained: Trained, config: TrainConfig) -> dict:
    row = {
        "test": accuracy(model, parts["test"], PREPROCESS),
        "classes": list(CLASSES),
        "epochs": config.epochs,
        "steps": trained.steps,
        "loss": trained.loss,
        "cpu_seconds": round(trained.cpu_seconds),
    }
    print(row)
    return row


if __name__ == "__main__":
    main()
