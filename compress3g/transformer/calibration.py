"""Calibration data for any transformer, and the loss that tells what its units are worth."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from PIL import Image, UnidentifiedImageError
from torch import Generator, Tensor, nn

from ..errors import ConfigError
from .pretrained import load_tokenizer

Batch: TypeAlias = dict[str, Tensor]
Loss: TypeAlias = Callable[[nn.Module, Batch], Tensor]
Task: TypeAlias = Literal["causal", "masked", "classes", "features"]
_IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_MASKED = 0.15  # share of tokens, BERT 1810.04805
_UNLABELLED = -100


@dataclass(frozen=True, slots=True)
class Calibration:
    """Batches for one model, how to run them, and the mean over samples of a loss.

    task decides the loss: "causal" the next token, "masked" hidden tokens, per token of a sample;
    "classes" a label drawn from the model's own prediction, whose squared gradients make the true
    Fisher matrix; "features" (no head) a random projection of the last hidden states. There the
    squared error against the dense model is what matters, but it is flat at the dense model; the
    expected squared gradient of a random projection is the diagonal of its Gauss-Newton matrix.
    signed: whether the loss has a direction, so that signed gradients mean anything.
    """

    batches: Sequence[Batch]
    task: Task
    padded: bool
    generator: Generator

    @property
    def signed(self) -> bool:
        """False where labels or projections are drawn: their mean gradient is zero."""
        return self.task in ("causal", "masked")

    def run(self, model: nn.Module, batch: Batch) -> Any:
        """The model's outputs."""
        return model(**inputs_of(batch))

    def valid(self, batch: Batch) -> Bool[Tensor, "b t"]:
        """False for padding."""
        return batch["attention_mask"].bool()

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """The mean over samples."""
        out = self.run(model, batch)
        if self.task == "causal":
            labels = batch["input_ids"].masked_fill(~self.valid(batch), _UNLABELLED)
            return _per_sample(out.logits[:, :-1], labels[:, 1:]).mean()
        if self.task == "masked":
            return _per_sample(out.logits, batch["labels"]).mean()
        if self.task == "classes":
            logits = out.logits.float()
            chances = logits.detach().softmax(-1).cpu()
            drawn = torch.multinomial(chances, 1, generator=self.generator)[:, 0]
            return F.cross_entropy(logits, drawn.to(logits.device))
        return self._projection(out.last_hidden_state.float(), batch)

    def _projection(self, states: Tensor, batch: Batch) -> Tensor:
        signs = torch.randint(0, 2, states.shape, generator=self.generator).to(states) * 2 - 1
        if self.padded:
            signs = signs * self.valid(batch)[..., None]
        size = signs.square().sum((1, 2))
        return ((states * signs).sum((1, 2)) / size.sqrt()).mean()

    @torch.no_grad()
    def lesson(self, model: nn.Module) -> tuple[list[Batch], Loss]:
        """Batches and a loss to train gates with; least, as far as is known, at the dense model.

        Language models have theirs; the others imitate the dense model: its distribution over
        classes (cross-entropy), or its last hidden states (squared error over their energy).
        """
        if self.signed:
            return list(self.batches), self.loss
        taught = []
        for batch in self.batches:
            out = self.run(model, batch)
            soft = out.logits.float().softmax(-1) if self.task == "classes" else None
            target = out.last_hidden_state.float() if soft is None else soft
            taught.append({**batch, "target": target})
        return taught, self._imitation

    def _imitation(self, model: nn.Module, batch: Batch) -> Tensor:
        out, target = self.run(model, batch), batch["target"]
        if self.task == "classes":
            return F.cross_entropy(out.logits.float(), target)
        gap, energy = (out.last_hidden_state.float() - target).square(), target.square()
        if self.padded:
            gap, energy = gap[self.valid(batch)], energy[self.valid(batch)]
        error: Tensor = gap.sum() / energy.sum()
        return error


def inputs_of(batch: Batch) -> Batch:
    """What the model is given: everything but labels and targets."""
    return {name: t for name, t in batch.items() if name not in ("labels", "target")}


def _per_sample(logits: Tensor, labels: Tensor) -> Float[Tensor, "b"]:
    """Every sample's mean negative log likelihood over its labelled tokens."""
    each = F.cross_entropy(
        logits.float().transpose(1, 2), labels, reduction="none", ignore_index=_UNLABELLED
    )
    return each.sum(1) / (labels != _UNLABELLED).sum(1).clamp_min(1)


def task_of(model: Any) -> Task:
    """The loss a model is calibrated with. Raises ConfigError when none of them fits."""
    kind = type(model).__name__
    if getattr(model.config, "is_encoder_decoder", False):
        raise ConfigError(
            f"{kind} is an encoder-decoder, calibrated with pairs of texts: take its encoder"
        )
    if kind.endswith(("ForCausalLM", "LMHeadModel")):
        return "causal"
    if kind.endswith("ForMaskedLM"):
        return "masked"
    if kind.endswith("Classification"):
        return "classes"
    return "features"


def calibrate(
    model: Any,
    folder: Path,
    data: Path,
    *,
    samples: int,
    length: int,
    batch: int,
    generator: Generator,
) -> Calibration:
    """Batches of `data` for a model whose tokenizer or image processor is in `folder`.

    data: a text file, one text per line, for language models (a causal one gets blocks of `length`
    tokens of the whole file); a folder of images for vision models. `samples` of them are drawn.
    Raises ConfigError, naming the file, when there is nothing to read.
    """
    if not data.exists():
        raise ConfigError(f"{data} does not exist: give --calibrate a text file or image folder")
    device, task = next(model.parameters()).device, task_of(model)
    if model.main_input_name == "pixel_values":
        pixels = _images(model, folder, data, samples, generator)
        parts = [{"pixel_values": p.to(device, model.dtype)} for p in pixels.split(batch)]
        return Calibration(parts, task, False, generator)
    if model.main_input_name != "input_ids":
        raise ConfigError(
            f"{type(model).__name__} takes {model.main_input_name}: only text and images are known"
        )
    texts, tokenizer = _texts(data), load_tokenizer(folder)
    if task == "causal":
        whole = _blocks(tokenizer, texts, samples, length, generator)
    else:
        whole = _lines(tokenizer, texts, samples, length, generator)
    if task == "masked":
        whole = _hide(tokenizer, whole, data, generator)
    parts = [
        {name: t[i : i + batch].to(device) for name, t in whole.items()}
        for i in range(0, len(whole["input_ids"]), batch)
    ]
    return Calibration(parts, task, True, generator)


def _texts(file: Path) -> list[str]:
    if file.is_dir():
        raise ConfigError(f"{file} is a folder: this model is calibrated with a text file")
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError:
        raise ConfigError(f"{file} is not UTF-8 text: give one text per line") from None
    texts = [line for line in lines if line]
    if not texts:
        raise ConfigError(f"{file} holds no text: give one text per line")
    return texts


def _drawn(count: int, samples: int, generator: Generator) -> list[int]:
    drawn: list[int] = torch.randperm(count, generator=generator)[:samples].tolist()
    return drawn


def _blocks(
    tokenizer: Any, texts: Sequence[str], samples: int, length: int, generator: Generator
) -> Batch:
    ids = torch.tensor(tokenizer("\n".join(texts), verbose=False)["input_ids"])
    if len(ids) < 2:
        raise ConfigError("the calibration text is less than two tokens: give more of it")
    blocks = (
        ids[: len(ids) // length * length].view(-1, length) if len(ids) >= length else ids[None]
    )
    chosen = blocks[_drawn(len(blocks), samples, generator)]
    return {"input_ids": chosen, "attention_mask": torch.ones_like(chosen)}


def _lines(
    tokenizer: Any, texts: Sequence[str], samples: int, length: int, generator: Generator
) -> Batch:
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    chosen = [texts[i] for i in _drawn(len(texts), samples, generator)]
    made = tokenizer(chosen, truncation=True, max_length=length, padding=True, return_tensors="pt")
    return {"input_ids": made["input_ids"], "attention_mask": made["attention_mask"]}


def _hide(tokenizer: Any, whole: Batch, data: Path, generator: Generator) -> Batch:
    """Hides tokens behind the mask token, at least one of every sample; labels keep them."""
    if tokenizer.mask_token_id is None:
        raise ConfigError("the tokenizer has no mask token, which a masked language model needs")
    ids, real = whole["input_ids"], whole["attention_mask"].bool()
    special = torch.zeros_like(real)
    for token in tokenizer.all_special_ids:
        special |= ids == token
    chance = torch.rand(ids.shape, generator=generator).masked_fill(special | ~real, 2.0)
    hidden = (chance < _MASKED) | (chance == chance.amin(1, keepdim=True))
    hidden &= chance <= 1
    if not bool(hidden.any()):
        raise ConfigError(f"{data} holds only special tokens: give more text")
    return {
        **whole,
        "input_ids": ids.masked_fill(hidden, tokenizer.mask_token_id),
        "labels": ids.masked_fill(~hidden, _UNLABELLED),
    }


def _images(
    model: Any, folder: Path, data: Path, samples: int, generator: Generator
) -> Float[Tensor, "b c h w"]:
    """Pictures at the model's size, normalised as its preprocessor_config.json says."""
    if not data.is_dir():
        raise ConfigError(f"{data} is no folder: this model is calibrated with a folder of images")
    files = sorted(f for f in data.rglob("*") if f.suffix.lower() in _IMAGES)
    if not files:
        raise ConfigError(f"{data} holds no images ({', '.join(_IMAGES)})")
    about = folder / "preprocessor_config.json"
    settings = json.loads(about.read_text()) if about.is_file() else {}
    size, channels = model.config.image_size, getattr(model.config, "num_channels", 3)
    height, width = (size, size) if isinstance(size, int) else size
    mean, std = (
        torch.tensor(settings.get(key) or [0.5] * channels)[:, None, None]
        for key in ("image_mean", "image_std")
    )
    pictures = []
    for i in _drawn(len(files), samples, generator):
        try:
            with Image.open(files[i]) as image:
                small = image.convert("RGB" if channels == 3 else "L").resize((width, height))
        except (UnidentifiedImageError, OSError) as error:
            raise ConfigError(f"{files[i]} is no image: {error}") from None
        pixels = torch.from_numpy(np.array(small)).view(height, width, channels).movedim(2, 0)
        pictures.append((pixels / 255 - mean) / std)
    return torch.stack(pictures)


def trial(model: Any, calibration: Calibration) -> Callable[[nn.Module], Any]:
    """Runs the first sample, for counting FLOPs.

    Raises ConfigError when the model cannot be run on this kind of input alone.
    """
    first = {name: t[:1] for name, t in calibration.batches[0].items()}

    def example(module: nn.Module) -> Any:
        return calibration.run(module, first)

    try:
        with torch.no_grad():
            out = example(model)
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"{type(model).__name__} does not run on {' and '.join(first)}: {reason}"
        ) from None
    wanted = "last_hidden_state" if calibration.task == "features" else "logits"
    if getattr(out, wanted, None) is None:
        raise ConfigError(f"{type(model).__name__} returns no {wanted}: nothing to calibrate by")
    return example
