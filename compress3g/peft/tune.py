"""A whole fine-tune from files: model, samples, cut, figure, folder."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments

from ..engine.fields import option
from ..engine.progress import Progress
from ..errors import ConfigError, require
from ..transformer.pretrained import is_pruned, load_tokenizer, read_config
from .config import LightPeftConfig
from .data import Rows
from .light import Light, get_light_peft_model
from .tasks import TASKS, Task, score
from .trainer import LightPeftCallback


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneConfig(LightPeftConfig):
    """A fine-tune with LoRA, and its cut."""

    task: Literal["classification", "lm", "retrieval"] = option(
        "classification",
        "classification: text and label; lm: text, or a .txt; retrieval: query and passage.",
    )
    steps: int = option(300, "Optimiser steps in all, estimation included.")
    batch: int = option(16, "Samples per step and process.")
    learning_rate: float = option(1e-3, "Of adapters and head, decaying linearly to zero.")
    lora_r: int = option(8, "Rank of every adapter before the cut.")
    lora_alpha: int = option(16, "Scale of the adapters, over their rank.")
    lora_dropout: float = option(0.05, "Before every adapter.")
    length: int = option(128, "Tokens per sample.")
    held_out: float = option(0.1, "Share of the samples kept for the figure, without --test.")

    def __post_init__(self) -> None:
        """Raise ConfigError naming the option for every value nothing can be tuned with."""
        LightPeftConfig.__post_init__(self)
        for name in ("steps", "batch", "lora_r", "length"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} {getattr(self, name)} is below 1")
        for name, most in (("learning_rate", 1.0), ("lora_dropout", 0.99), ("held_out", 0.9)):
            if not 0 <= getattr(self, name) <= most:
                flag = f"--{name.replace('_', '-')}"
                raise ConfigError(f"{flag} {getattr(self, name)} is out of range: at most {most}")


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a fine-tune is made of: a task, a model's folder, its tokenizer, samples."""

    task: Task
    folder: Path
    tokenizer: Any
    train: Rows
    held: Rows


@dataclass(frozen=True, slots=True)
class Tuned:
    """The tuned model, the figure of the samples held out, and what the cut did."""

    model: Any
    measure: str
    figure: float
    light: Light


class Live(TrainerCallback):
    """One line about the run; the cut, and how the step time fell, stay on the screen."""

    def __init__(self, line: Progress, callback: LightPeftCallback | None) -> None:
        self._line, self._callback, self._loss = line, callback, ""

    def on_log(self, args: Any, state: Any, control: Any, **about: Any) -> None:
        """Notes the loss."""
        loss = (about.get("logs") or {}).get("loss")
        self._loss = self._loss if loss is None else f"{float(loss):.3f}"

    def on_step_end(self, args: Any, state: Any, control: Any, **about: Any) -> None:
        """Rewrites the line."""
        light = None if self._callback is None else self._callback.light
        fields: dict[str, str] = {"loss": self._loss}
        if light is not None:
            fields["stage"] = light.stage
            if (report := light.report) is not None and report.step_ms is not None:
                before, after = report.step_ms
                fields["step"] = f"{before:.0f} -> {after:.0f} ms"
        self._line.update(fields, state.global_step / max(1, state.max_steps))


class TaskTrainer(Trainer):
    """The library's Trainer with a task's loss, where the model has none of its own."""

    task: Task

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss of a batch; with `return_outputs`, and what the model says."""
        if self.task.loss is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss = self.task.loss(model, inputs)
        return (loss, {"loss": loss}) if return_outputs else loss


def prepare(model: Path, data: Path, config: TuneConfig, test: Path | None) -> Prepared:
    """The folder's tokenizer, and samples to train and to test with. Raises ConfigError."""
    task = TASKS[config.task]
    task.check(read_config(model), model)  # before a tokenizer is looked for
    tokenizer = load_tokenizer(model)
    rows = task.read(data, tokenizer, config.length)
    train, held = rows.split(config.held_out, config.seed)
    if test is not None:
        train, held = rows, task.read(test, tokenizer, config.length, rows.labels)
    return Prepared(task, model, tokenizer, train, held)


def adapted(made: Prepared, config: TuneConfig) -> Any:
    """A PeftModel for the task on the dense model in its folder."""
    transformers = require("transformers", extra="peft", purpose="Light-PEFT")
    peft = require("peft", extra="peft", purpose="Light-PEFT")
    folder, task, labels = made.folder, made.task, made.train.labels
    about = read_config(folder)
    if is_pruned(about):
        raise ConfigError(f"{folder} is pruned already: tune the dense model it came from")
    if getattr(about, "quantization_config", None) is not None:
        raise ConfigError(f"{folder} is quantised: cut in bfloat16, quantise after")
    head: dict[str, Any] = {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {name: i for i, name in enumerate(labels)},
        "ignore_mismatched_sizes": True,  # a head for other classes; nothing else can differ
    }
    torch.manual_seed(config.seed)
    try:
        base = getattr(transformers, task.auto).from_pretrained(
            folder, local_files_only=True, **(head if labels else {})
        )
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"{folder} cannot be loaded for {config.task}: {reason}") from None
    lora = peft.LoraConfig(
        task_type=task.kind,
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
    )
    return get_light_peft_model(base, lora, config)


def tune(
    model: Path, data: Path, config: TuneConfig, *, test: Path | None = None, device: str = "cpu"
) -> Tuned:
    """Trains, cuts on the way, and says the task's figure for the samples held out."""
    made = prepare(model, data, config, test)
    tuned = adapted(made, config)
    callback = LightPeftCallback(config, loss=made.task.loss)
    with tempfile.TemporaryDirectory() as folder:
        fit(trainer_of(tuned, made, config, Path(folder), device, [callback]), callback)
    assert callback.light is not None
    figure = score(made.task, tuned, made.tokenizer, made.held)
    return Tuned(tuned, made.task.measure, figure, callback.light)


def trainer_of(
    model: Any,
    made: Prepared,
    config: TuneConfig,
    folder: Path,
    device: str,
    callbacks: Sequence[Any] = (),
) -> TaskTrainer:
    """The library's Trainer over the samples; what it writes goes into `folder`."""
    arguments = TrainingArguments(
        str(folder),
        max_steps=config.steps,
        per_device_train_batch_size=config.batch,
        learning_rate=config.learning_rate,
        logging_steps=5,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=device == "cpu",
        seed=config.seed,
        remove_unused_columns=False,
    )
    trainer = TaskTrainer(
        model=model,
        args=arguments,
        train_dataset=made.train,
        data_collator=partial(made.task.collate, made.tokenizer),
        callbacks=list(callbacks),
    )
    trainer.task = made.task
    printing: Any = require("transformers.trainer_callback", extra="peft", purpose="training")
    trainer.remove_callback(printing.PrinterCallback)
    return trainer


def fit(trainer: TaskTrainer, light: LightPeftCallback | None, start: Path | None = None) -> None:
    """Runs it with a live line, from the checkpoint in `start` on."""
    with Progress("peft") as line:
        trainer.add_callback(Live(line, light))
        trainer.train(resume_from_checkpoint=None if start is None else str(start))
