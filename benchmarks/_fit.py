"""Training for so many seconds, on a GPU as one CUDA graph a step."""

from __future__ import annotations

import argparse
import signal
import time
from collections.abc import Callable

import torch
from _text_to_image import Average, learning_rate
from torch import Tensor, nn


def fit(
    modules: list[nn.Module],
    step: Callable[[], Tensor],
    check: Callable[[], str],
    options: argparse.Namespace,
    *,
    most: float,
    seconds: float,
) -> dict[str, float]:
    """Trains for `seconds` or until a SIGTERM, then takes the average weights.

    `step` returns a loss; `check` says how it goes, and is asked now and then. `options` says what
    is trained (`part`), on which `device`, and whether to do without a graph (`eager`).
    """
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    cuda = options.device == "cuda"
    learned = [p for m in modules for p in m.train().parameters()]
    rate = torch.tensor(1e-8, device=options.device)
    optimizer = torch.optim.AdamW(
        learned, rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True, capturable=cuda
    )
    average = Average(modules, most=0.99)

    def once() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(options.device, torch.bfloat16, enabled=cuda, cache_enabled=False):
            loss = step()
        loss.backward()
        nn.utils.clip_grad_norm_(learned, 1.0, foreach=True)
        optimizer.step()
        return loss.detach()

    run = _graphed(once) if cuda and not options.eager else once
    began = said = time.monotonic()
    count, loss = 0, torch.zeros(())
    while (spent := (time.monotonic() - began) / seconds) < 1 and not stopped:
        rate.fill_(learning_rate(most, count, spent))
        loss = run()
        count += 1
        if count % 10 == 0:
            average.update(count // 10)
            if cuda:
                torch.cuda.synchronize()  # or launches would go on long after the time is over
        if time.monotonic() - said > (20 if cuda else 120):
            said = time.monotonic()
            print(
                f"{options.part:12} {said - began:5.0f} s  step {count:6}  loss {float(loss):.4f}"
                f"  {check()}",
                flush=True,
            )
    average.take()
    taken = time.monotonic() - began
    print(f"{options.part} ends at step {count}: {check()}", flush=True)
    return {"steps": count, "seconds": taken, "loss": float(loss)}


def _graphed(once: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The same step as one CUDA graph; a model this small would else wait for its launches."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            once()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = once()

    def run() -> Tensor:
        graph.replay()
        return loss

    return run
