"""Trains the small Vims of pipelines/ from nothing: Fashion-MNIST and CIFAR-10.

    python benchmarks/train_vim.py --dataset cifar10 --data FOLDER [--device cuda] [--minutes 2]
    python benchmarks/train_vim.py --dataset fashion --data FOLDER --fine-tune

FOLDER has the files of the package that _small_pictures.py names. Without `--fine-tune` the dense
model is trained and written to OUT/dense, OUT being pipelines/<dataset>_vim or `--out`; with it,
OUT/dense is fine-tuned at keep 0.8 and 0.65 with the defaults, with its own dense self as teacher,
and each goes to OUT/keep_0.8 and OUT/keep_0.65. Accuracy is that of all 10,000 test pictures;
nothing is chosen by it. `--minutes` trains by the clock, which is for a GPU.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from _report import goal, parser, report
from _small_pictures import DATA_SETS, DataSet

from compress3g.mamba import (
    PruneConfig,
    PruneSchedule,
    apply_patch,
    create_model,
    load_checkpoint,
    save_checkpoint,
)
from compress3g.mamba.data import Arrays, Pictures, Resident
from compress3g.mamba.train import TrainConfig, Trained, accuracy, train

_GOALS = {  # % of the test split
    "fashion": {"dense": 86.0, "keep_0.8": 84.0, "keep_0.65": 80.0},
    "cifar10": {"dense": 75.0, "keep_0.8": 72.0, "keep_0.65": 68.0},
}


def on(device: str, parts: dict[str, Arrays]) -> dict[str, Pictures]:
    """The pictures where the model runs."""
    if device == "cpu":
        return dict(parts)
    return {name: Resident(part, device) for name, part in parts.items()}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--dataset", choices=list(DATA_SETS), default="fashion")
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--out", type=Path)
    options.add_argument("--epochs", type=float)
    options.add_argument("--minutes", type=float)
    options.add_argument("--device", default="cpu")
    options.add_argument("--fine-tune", action="store_true")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--export", type=Path, help="Only write the splits as .npz here.")
    chosen = options.parse_args()
    data_set = DATA_SETS[chosen.dataset]
    chosen.out = chosen.out or data_set.folder
    if chosen.export:
        data_set.write(chosen.data, chosen.export)
        return
    arrays = data_set.splits(chosen.data)
    if chosen.quick:
        arrays = {name: part.part(np.arange(1000)) for name, part in arrays.items()}
    torch.set_num_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = True
    parts = on(chosen.device, arrays)
    rows = (_fine_tuned if chosen.fine_tune else _dense)(data_set, parts, chosen)
    goals = [
        goal(name, row["test"], _GOALS[chosen.dataset][name], unit="% of the test split")
        for name, row in rows.items()
    ]
    name = f"{data_set.name}_{'fine_tuned' if chosen.fine_tune else 'dense'}"
    report(name, chosen, seeds=[chosen.seed], goals=goals, rows=rows)


def _config(base: TrainConfig, chosen) -> TrainConfig:
    changed = {k: v for k in ("epochs", "minutes") if (v := getattr(chosen, k)) is not None}
    return replace(base, seed=chosen.seed, **changed)


def _dense(data_set: DataSet, parts: dict[str, Pictures], chosen) -> dict:
    torch.manual_seed(chosen.seed)
    model = create_model(data_set.model).to(chosen.device)
    config, look, began = _config(data_set.recipe, chosen), data_set.preprocess, time.monotonic()

    def watch(step: int) -> None:
        seconds = time.monotonic() - began
        top1 = accuracy(model, parts["validation"], look, batch=1000)
        print(
            f"{seconds:6.1f} s, {step / seconds:6.1f} steps/s, validation {top1:.2f} %", flush=True
        )

    trained = train(model, parts["train"], look, config, watch=watch)
    row = _row(data_set, model, parts, trained, config)
    if not chosen.quick:
        save_checkpoint(chosen.out / "dense", model, look, row)
    return {"dense": row}


def _fine_tuned(data_set: DataSet, parts: dict[str, Pictures], chosen) -> dict:
    rows, look = {}, data_set.preprocess
    for keep in (0.65, 0.8):
        teacher, model = (
            load_checkpoint(chosen.out / "dense").model.to(chosen.device) for _ in range(2)
        )
        layers = data_set.layers
        schedule = PruneSchedule(layers=layers, keep=(keep,) * len(layers))
        apply_patch(model, PruneConfig(schedule=schedule))
        config = _config(data_set.fine, chosen)
        trained = train(model, parts["train"], look, config, teacher=teacher)
        row = rows[f"keep_{keep}"] = _row(data_set, model, parts, trained, config)
        if not chosen.quick:
            save_checkpoint(chosen.out / f"keep_{keep}", model, look, row)
    return rows


def _row(
    data_set: DataSet, model, parts: dict[str, Pictures], trained: Trained, config: TrainConfig
) -> dict:
    found = {
        part: accuracy(model, parts[part], data_set.preprocess, batch=500)
        for part in ("validation", "test")
    }
    row = {
        **found,
        "classes": list(data_set.classes),
        "epochs": round(trained.steps * config.batch / len(parts["train"]), 2),
        "steps": trained.steps,
        "loss": trained.loss,
        "cpu_seconds": round(trained.cpu_seconds),
        "seed": config.seed,
    }
    print(row, flush=True)
    return row


if __name__ == "__main__":
    main()
