"""A whole fine-tune from files: model, texts, cut, accuracy, folder."""

from __future__ import annotations

import logging
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from ..engine.fields import option
from ..engine.progress import Progress
from ..errors import ConfigError, require
from ..transformer.pretrained import is_pruned, load_tokenizer, read_config
from .config import LightPeftConfig
from .data import Encoded, Texts, collate, read_texts
from .light import Light, get_light_peft_model
from .trainer import LightPeftCallback

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneConfig(LightPeftConfig):
    """A fine-tune of a classifier with LoRA, and its cut."""

    steps: int = option(300, "Optimiser steps in all, estimation included.")
    batch: int = option(16, "Texts per step.")
    learning_rate: float = option(1e-3, "Of adapters and head, decaying linearly to zero.")
    lora_r: int = option(8, "Rank of every adapter before the cut.")
    lora_alpha: int = option(16, "Scale of the adapters, over their rank.")
    lora_dropout: float = option(0.05, "Before every adapter.")
    length: int = option(128, "Tokens per text.")
    held_out: float = option(0.1, "Share of the rows kept for the accuracy, without --test.")

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
class Tuned:
    """The tuned model, its accuracy on the rows held out, and what the cut did."""

    model: Any
    accuracy: float
    light: Light


class _Live(TrainerCallback):
    """One line about the run; the cut, and how the step time fell, stay on the screen."""

    def __init__(self, line: Progress, callback: LightPeftCallback) -> None:
        self._line, self._callback, self._loss = line, callback, ""

    def on_log(self, args: Any, state: Any, control: Any, **about: Any) -> None:
        """Notes the loss."""
        loss = (about.get("logs") or {}).get("loss")
        self._loss = self._loss if loss is None else f"{float(loss):.3f}"

    def on_step_end(self, args: Any, state: Any, control: Any, **about: Any) -> None:
        """Rewrites the line."""
        light = self._callback.light
        fields: dict[str, str] = {"loss": self._loss}
        if light is not None:
            fields["stage"] = light.stage
            if (report := light.report) is not None and report.step_ms is not None:
                before, after = report.step_ms
                fields["step"] = f"{before:.0f} -> {after:.0f} ms"
        self._line.update(fields, state.global_step / max(1, state.max_steps))


def prepare(model: Path, data: Path, config: TuneConfig, test: Path | None) -> tuple[Any, ...]:
    """An adapted classifier, its tokenizer, and rows to train and to test with."""
    texts = read_texts(data)
    train, held = texts.split(config.held_out, config.seed)
    if test is not None:
        train, held = texts, read_texts(test, texts.labels)
    read_config(model)  # says what is wrong with a folder before a tokenizer is looked for
    tokenizer = load_tokenizer(model)
    return classifier(model, texts.labels, config), tokenizer, train, held


def classifier(folder: Path, labels: tuple[str, ...], config: TuneConfig) -> Any:
    """A PeftModel for these classes on the dense model in a folder."""
    transformers = require("transformers", extra="peft", purpose="Light-PEFT")
    peft = require("peft", extra="peft", purpose="Light-PEFT")
    about = read_config(folder)
    if is_pruned(about):
        raise ConfigError(f"{folder} is pruned already: tune the dense model it came from")
    if getattr(about, "quantization_config", None) is not None:
        raise ConfigError(f"{folder} is quantised: cut in bfloat16, quantise after")
    torch.manual_seed(config.seed)
    try:
        base = transformers.AutoModelForSequenceClassification.from_pretrained(
            folder,
            num_labels=len(labels),
            id2label=dict(enumerate(labels)),
            label2id={name: i for i, name in enumerate(labels)},
            local_files_only=True,
            ignore_mismatched_sizes=True,  # a head for other classes; nothing else can differ
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"{folder} cannot be loaded as a classifier: {reason}") from None
    lora = peft.LoraConfig(
        task_type="SEQ_CLS",
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
    )
    return get_light_peft_model(base, lora, config)


def tune(
    model: Path, data: Path, config: TuneConfig, *, test: Path | None = None, device: str = "cpu"
) -> Tuned:
    """Trains, cuts on the way, and says how many of the rows held out come out right."""
    adapted, tokenizer, train, held = prepare(model, data, config, test)
    callback = LightPeftCallback(config)
    fit(adapted, tokenizer, train, config, device=device, callbacks=[callback])
    assert callback.light is not None
    return Tuned(adapted, accuracy(adapted, tokenizer, held, config), callback.light)


def fit(
    model: Any,
    tokenizer: Any,
    texts: Texts,
    config: TuneConfig,
    *,
    device: str,
    callbacks: list[Any],
) -> None:
    """Runs the library's Trainer over the texts, with a live line."""
    light = next((c for c in callbacks if isinstance(c, LightPeftCallback)), None)
    with tempfile.TemporaryDirectory() as folder, Progress("peft") as line:
        arguments = TrainingArguments(
            folder,
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
        live = [] if light is None else [_Live(line, light)]
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=Encoded(texts, tokenizer, config.length),
            data_collator=partial(collate, tokenizer),
            callbacks=[*callbacks, *live],
        )
        printing: Any = require("transformers.trainer_callback", extra="peft", purpose="training")
        trainer.remove_callback(printing.PrinterCallback)
        trainer.train()


@torch.no_grad()
def accuracy(model: Any, tokenizer: Any, texts: Texts, config: TuneConfig) -> float:
    """The share of rows whose most probable class is theirs."""
    model.eval()
    rows, make = Encoded(texts, tokenizer, config.length), partial(collate, tokenizer)
    device, right = next(model.parameters()).device, 0
    for i in range(0, len(rows), 32):
        batch = make([rows[j] for j in range(i, min(i + 32, len(rows)))])
        labels = batch.pop("labels")
        logits = model(**{k: v.to(device) for k, v in batch.items()}).logits
        right += int((logits.argmax(-1).cpu() == labels).sum())
    return right / len(rows)
