"""One step of training, on a GPU as one captured graph: thousands of kernels for one launch."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

_log = logging.getLogger(__name__)

_EAGER = 3  # steps before a graph is captured: optimiser and kernels must be there


def distilled(
    logits: Float[Tensor, "b c"],
    labels: Int[Tensor, "b"],
    taught: Float[Tensor, "b c"] | None,
    *,
    weight: float,
    smoothing: float,
) -> Float[Tensor, ""]:
    """(1 - w) cross-entropy + w KL(teacher || student) at temperature 1."""
    plain = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    if taught is None:
        return plain
    student, teacher = logits.log_softmax(-1), taught.log_softmax(-1)
    kl = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
    return (1 - weight) * plain + weight * kl


class Stepper:
    """Takes AdamW steps of a model; batches must all have one size."""

    def __init__(
        self,
        model: nn.Module,
        groups: list[dict[str, Any]],
        teacher: nn.Module | None,
        *,
        distill: float,
        smoothing: float,
    ) -> None:
        self._model, self._teacher = model, teacher if distill else None
        self._distill, self._smoothing = distill, smoothing
        self._trained = [p for group in groups for p in group["params"]]  # gates of holes too
        device = next(model.parameters()).device
        self._cuda = device.type == "cuda"
        settings: dict[str, Any] = {"lr": 0.0}
        if self._cuda:
            rate = torch.zeros((), device=device)
            settings = {"lr": rate, "capturable": True, "fused": True}
        self._optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), **settings)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._given: tuple[Tensor, Tensor] | None = None
        self._loss = torch.zeros((), device=device)
        self._taken = 0
        self._capture = self._cuda

    def __call__(
        self, images: Float[Tensor, "b c h w"], labels: Int[Tensor, "b"], rate: float
    ) -> Float[Tensor, ""]:
        """The loss before the step; its value is overwritten by the next step."""
        self._set(rate)
        self._taken += 1
        if self._graph is None and self._capture and self._taken > _EAGER:
            self._try_capture(images, labels)
        if self._graph is not None and self._given is not None:
            for static, new in zip(self._given, (images, labels), strict=True):
                static.copy_(new)
            self._graph.replay()
            return self._loss
        if not self._capture:
            return self._whole(images, labels)
        side = torch.cuda.Stream()  # where a graph will be captured, nothing may be tied to another
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            loss = self._whole(images, labels)
        torch.cuda.current_stream().wait_stream(side)
        return loss

    def _set(self, rate: float) -> None:
        for group in self._optimizer.param_groups:
            if self._cuda:
                group["lr"].fill_(rate)  # a graph reads it from its memory
            else:
                group["lr"] = rate

    def _whole(self, images: Tensor, labels: Tensor) -> Tensor:
        self._optimizer.zero_grad(set_to_none=True)
        with warnings.catch_warnings():
            # That it could be captured, and is not.
            warnings.filterwarnings("ignore", message=".*capturable=True.*")
            return self._forward_backward(images, labels)

    def _forward_backward(self, images: Tensor, labels: Tensor) -> Tensor:
        taught = None
        if self._teacher is not None:
            with torch.no_grad():
                taught = self._teacher(images)
        loss = distilled(
            self._model(images), labels, taught, weight=self._distill, smoothing=self._smoothing
        )
        loss.backward()
        nn.utils.clip_grad_norm_(self._trained, 1.0)
        self._optimizer.step()
        return loss.detach()

    def _try_capture(self, images: Tensor, labels: Tensor) -> None:
        """A graph of the step; where something in it cannot be captured, steps stay as they are."""
        self._given = (images.clone(), labels.clone())
        self._optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._loss = self._forward_backward(*self._given)
        except RuntimeError as error:
            _log.warning("a step is not captured (%s): it stays eager", str(error).splitlines()[0])
            self._capture, self._given = False, None
            torch.cuda.synchronize()
            return
        self._graph = graph
