"""What tuning can be for: classes, language models, and retrieval; each one row of a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import ConfigError
from .data import Rows, read_classes, read_pairs, read_plain

Batch: TypeAlias = dict[str, Any]
_AT_ONCE = 32  # samples of a batch without training
_TEMPERATURE = 0.05  # of the similarities' softmax, as SimCSE (2104.08821)


@dataclass(frozen=True, slots=True)
class Task:
    """One kind of tuning.

    auto: the transformers class that builds the model; kind: peft's name for it; read: a file's
    samples; collate: a batch of them, which the model takes; loss: of a batch, None for the model's
    own; measure, score: name and value of the figure for samples held out.
    """

    auto: str
    kind: str
    read: Callable[..., Rows]
    collate: Callable[[Any, Sequence[Batch]], Batch]
    loss: Callable[[Any, Batch], Tensor] | None
    measure: str
    score: Callable[[Any, Iterator[Batch]], float]

    def check(self, config: Any, folder: Path) -> None:
        """Raises ConfigError for models that cannot do this."""
        if self.loss is contrast and getattr(config, "is_encoder_decoder", False):
            raise ConfigError(f"{folder} is an encoder with a decoder: give one of the two alone")
        if self.loss is contrast and config.get_text_config() is not config:
            raise ConfigError(f"{folder} takes more than text: tune its encoder of text alone")


@torch.no_grad()
def score(task: Task, model: Any, tokenizer: Any, rows: Rows) -> float:
    """The task's figure for a model, in evaluation mode, on these samples."""
    model.eval()
    device = next(model.parameters()).device

    def batches() -> Iterator[Batch]:
        for i in range(0, len(rows), _AT_ONCE):
            made = task.collate(tokenizer, rows.items[i : i + _AT_ONCE])
            yield {k: v.to(device) for k, v in made.items()}

    return task.score(model, batches())


def _labelled(tokenizer: Any, rows: Sequence[Batch]) -> Batch:
    made = tokenizer.pad([{"input_ids": r["input_ids"]} for r in rows], return_tensors="pt")
    return {**made, "labels": torch.tensor([r["labels"] for r in rows])}


def _accuracy(model: Any, batches: Iterator[Batch]) -> float:
    right = total = 0
    for batch in batches:
        labels = batch.pop("labels")
        right += int((model(**batch).logits.argmax(-1) == labels).sum())
        total += len(labels)
    return right / total


def _blocks(tokenizer: Any, rows: Sequence[Batch]) -> Batch:
    ids = torch.tensor([r["input_ids"] for r in rows])
    return {"input_ids": ids, "labels": ids.clone()}


def _perplexity(model: Any, batches: Iterator[Batch]) -> float:
    total = count = 0.0
    for batch in batches:
        ids = batch.pop("labels")
        logits = model(**batch).logits[:, :-1].float()
        losses = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum"
        )
        total, count = total + float(losses), count + ids[:, 1:].numel()
    return math.exp(min(total / count, 700.0))


def _both(tokenizer: Any, rows: Sequence[Batch]) -> Batch:
    """Queries, then their passages, as one batch."""
    ids = [r["query"] for r in rows] + [r["passage"] for r in rows]
    return dict(tokenizer.pad([{"input_ids": i} for i in ids], return_tensors="pt"))


def embed(model: Any, batch: Batch) -> Float[Tensor, "b d"]:
    """Unit vectors: the mean of the last layer's states over tokens that are not padding."""
    states = model(**batch).last_hidden_state.float()
    valid = batch["attention_mask"].unsqueeze(-1).to(states.dtype)
    mean = (states * valid).sum(1) / valid.sum(1).clamp_min(1)
    return torch.nn.functional.normalize(mean, dim=-1)


def contrast(model: Any, batch: Batch) -> Tensor:
    """Cross-entropy of finding every query's passage among the batch's (InfoNCE, 1807.03748).

    Passages that are equal to a query's own are no wrong answers.
    """
    vectors = embed(model, batch)
    half = len(vectors) // 2
    similar = vectors[:half] @ vectors[half:].T / _TEMPERATURE
    passages = batch["input_ids"][half:]
    again = (passages[:, None] == passages[None]).all(-1)
    again = again & ~torch.eye(half, dtype=torch.bool, device=again.device)
    own = torch.arange(half, device=similar.device)
    return torch.nn.functional.cross_entropy(similar.masked_fill(again, -torch.inf), own)


def _found_first(model: Any, batches: Iterator[Batch]) -> float:
    halves = [embed(model, batch).chunk(2) for batch in batches]
    queries, passages = (torch.cat(side) for side in zip(*halves, strict=True))
    similar = queries @ passages.T
    # Two copies of one passage differ by what batches of other widths round.
    return float((similar.diagonal() >= similar.amax(1) - 1e-5).float().mean())


TASKS: Mapping[str, Task] = {
    "classification": Task(
        "AutoModelForSequenceClassification",
        "SEQ_CLS",
        read_classes,
        _labelled,
        None,
        "accuracy",
        _accuracy,
    ),
    "lm": Task(
        "AutoModelForCausalLM", "CAUSAL_LM", read_plain, _blocks, None, "perplexity", _perplexity
    ),
    "retrieval": Task(
        "AutoModel", "FEATURE_EXTRACTION", read_pairs, _both, contrast, "recall@1", _found_first
    ),
}
