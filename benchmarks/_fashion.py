"""Fashion-MNIST as fixed splits: 55,000 pictures to train, 5,000 to choose by, 10,000 to test.

The source is the ten files `0.json` to `9.json` of the JavaScript package fashion-mnist 1.1.0
(MIT): one class each, rows of 784 values, no split of their own. All pictures in the order of the
files are shuffled with numpy's `default_rng(0)`; the first 10,000 are the test split, the next
5,000 the validation split. This is not the test split of the original authors.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from compress3g.mamba.data import Arrays
from compress3g.mamba.pictures import Preprocess

CLASSES = (
    "t-shirt", "trouser", "pullover", "dress", "coat",
    "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
PREPROCESS = Preprocess(size=(28, 28), mean=(0.286,), std=(0.353,))
SIZES = {"test": 10_000, "validation": 5_000}


def splits(folder: Path) -> dict[str, Arrays]:
    """`train`, `validation` and `test`; read from JSON once, then from an .npz beside it."""
    kept = folder / "fashion.npz"
    if not kept.exists():
        images, labels = [], []
        for label in range(10):
            rows = json.loads((folder / f"{label}.json").read_text())["data"]
            whole = [row for row in rows if len(row) == 784]  # two rows of a file may be empty
            images.append(np.array(whole, np.uint8).reshape(-1, 28, 28))
            labels.append(np.full(len(whole), label, np.int64))
        np.savez(kept, X=np.concatenate(images), Y=np.concatenate(labels))
    with np.load(kept) as found:
        everything = Arrays(found["X"], found["Y"])
    order = np.random.default_rng(0).permutation(len(everything))
    parts, start = {}, 0
    for name, size in SIZES.items():
        parts[name] = everything.part(order[start : start + size])
        start += size
    return {"train": everything.part(order[start:]), **parts}


def write(folder: Path, to: Path) -> None:
    """train.npz, validation.npz and test.npz, which the command line reads."""
    to.mkdir(parents=True, exist_ok=True)
    for name, part in splits(folder).items():
        np.savez_compressed(to / f"{name}.npz", X=part.images, Y=part.labels)
