"""A training step on a GPU as one recorded graph: small models spend their time launching kernels.

Forward, backward and clipping of one batch shape are recorded once and replayed; the optimiser's
own step stays outside. Batches are padded to a multiple of `MULTIPLE` tokens, so that a few graphs
serve all of them; the models mask padding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Batch = dict[str, Tensor]
MULTIPLE = 16
_BLANK = {"labels": -100}  # what padding is; 0 for ids and mask
_WARM = 3  # runs before a recording, which set up what libraries allocate once


class CannotReplay(Exception):
    """A recorded step that does not do what the step does."""


def padded(batch: Batch, least: int = 0) -> Batch:
    """The batch with its tokens padded to a multiple, and to at least so many."""
    width = batch["input_ids"].shape[1]
    more = max(least - width, 0)
    more += -(width + more) % MULTIPLE
    return {
        name: F.pad(t, (0, more), value=_BLANK.get(name, 0)) if t.dim() == 2 else t
        for name, t in batch.items()
    }


class Replayed:
    """Leaves the clipped gradients of a batch in a model's parameters, by a recorded graph.

    One per model and phase: a cut or a hook needs a new one. The current stream must not be the
    default one.
    """

    def __init__(self, model: nn.Module, clip: float) -> None:
        self._model, self._clip = model, clip
        self._trained = [p for p in model.parameters() if p.requires_grad]
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: dict[Any, tuple[Batch, torch.cuda.CUDAGraph]] = {}
        for p in self._trained:
            p.grad = torch.zeros_like(p)

    def __call__(self, batch: Batch) -> None:
        """Adds to the gradients, which are zeros: `optimizer.zero_grad(set_to_none=False)`."""
        batch = padded(batch)
        shape = tuple(batch["input_ids"].shape)
        if shape not in self._graphs:
            self._graphs[shape] = self._record(batch)
        held, graph = self._graphs[shape]
        for name, t in batch.items():
            held[name].copy_(t, non_blocking=True)
        graph.replay()

    def _step(self, batch: Batch) -> None:
        self._model(**batch).loss.backward()
        nn.utils.clip_grad_norm_(self._trained, self._clip)

    def _record(self, batch: Batch) -> tuple[Batch, torch.cuda.CUDAGraph]:
        held = {name: t.to(self._trained[0].device) for name, t in batch.items()}
        for _ in range(_WARM):
            self._step(held)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=torch.cuda.current_stream()):
            self._step(held)
        self._blank()
        return held, graph

    def _blank(self) -> None:
        for p in self._trained:
            assert p.grad is not None
            p.grad.zero_()


def check_replay(model: nn.Module, batches: list[Batch], clip: float) -> None:
    """Raises CannotReplay when recorded gradients are not those of the step, without dropout.

    batches: two, the first to record, the second to compare.
    """
    was = model.training
    model.eval()
    width = max(b["input_ids"].shape[1] for b in batches)
    batches = [padded(b, width) for b in batches]
    replayed = Replayed(model, clip)
    replayed(batches[0])
    replayed._blank()
    replayed(batches[1])
    trained = replayed._trained
    found = [p.grad.clone() for p in trained if p.grad is not None]
    replayed._blank()
    device = trained[0].device
    replayed._step({n: t.to(device) for n, t in batches[1].items()})
    wanted = [p.grad for p in trained if p.grad is not None]
    apart = [a - b for a, b in zip(found, wanted, strict=True)]
    off, size = (float(nn.utils.get_total_norm(each)) for each in (apart, wanted))
    if not off <= 0.05 * size:  # factors have ten bits; another batch's would be off by all of it
        raise CannotReplay(f"a recorded step's gradient is off by {off:.3g} of {size:.3g}")
    for p in trained:
        p.grad = None
    model.train(was)
