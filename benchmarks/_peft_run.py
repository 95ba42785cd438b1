"""One fine-tune of Light-PEFT's accuracy benchmark: its batches, its steps, its figures."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import Any

import torch
from _peft_graph import Replayed, check_replay
from _peft_peers import CUT_FIRST
from _peft_tasks import Batch, Kind, Task, placed

from compress3g.peft import Estimator

BATCH, RANK, CLIP = 16, 8, 1.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run is made; replay: by recorded steps."""

    device: torch.device
    replay: bool = False


class Run:
    """One model being trained on a task, from a seed."""

    def __init__(
        self,
        kind: Kind,
        task: Task,
        seed: int,
        place: Place,
        parts: str = "all",
        first: str | None = None,
    ) -> None:
        import peft
        import transformers

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        torch.manual_seed(seed)
        self.kind, self.task, self.place = kind, task, place
        base = kind.load(task).to(place.device)
        self.batches = self.drawn(seed)
        if first is not None:
            looked = [placed(self.encoded(b), base) for b in self.batches[: task.look]]
            CUT_FIRST[first](base, looked, 1 / 3)
        lora = peft.LoraConfig(
            task_type=kind.task_type,
            r=RANK,
            lora_alpha=16,
            lora_dropout=0.05,
            target_modules=kind.projections if parts == "all" else kind.queries_and_values,
        )
        self.model: Any = peft.get_peft_model(base, lora)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        fused = place.device.type == "cuda"
        self.optimizer = torch.optim.AdamW(trained, lr=kind.rate, fused=fused)
        self.done, self.seconds, self.faster = 0, 0.0, 1.0

    def drawn(self, seed: int) -> list[list[int]]:
        """Rows of every step's batch."""
        draw, (rows, steps) = random.Random(seed), (len(self.task.train), self.task.steps)
        passes = range(1 + steps * BATCH // rows)
        order = [i for _ in passes for i in draw.sample(range(rows), rows)]
        return [order[i * BATCH : (i + 1) * BATCH] for i in range(steps)]

    def encoded(self, batch: list[int]) -> Batch:
        return self.kind.encoded(self.task, [self.task.train[i] for i in batch])

    def train(self, until: int, estimator: Estimator | None = None) -> None:
        self.model.train()
        replayed = self.recorded() if self.place.replay and estimator is None else None
        started = self.clock()
        for step in range(self.done, until):
            rate = self.kind.rate * (1 - step / self.task.steps) * self.faster
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            batch = self.encoded(self.batches[step])
            if replayed is None:
                self.model(**placed(batch, self.model)).loss.backward()
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
            else:
                replayed(batch)
            if estimator is not None:
                estimator(rate)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=replayed is None)
        self.optimizer.zero_grad()
        self.done, self.seconds = until, self.seconds + self.clock() - started

    def recorded(self) -> Replayed:
        """Its steps as graphs. Raises CannotReplay where they do something else."""
        check_replay(self.model, [self.encoded(batch) for batch in self.batches[:2]], CLIP)
        return Replayed(self.model, CLIP)

    def clock(self) -> float:
        """Seconds of the processor, or on a GPU of the clock on the wall."""
        if self.place.device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    @torch.no_grad()
    def accuracy(self) -> float:
        self.model.eval()
        rows, right = sorted(self.task.test, key=lambda row: len(row[0])), 0
        for i in range(0, len(rows), 50):
            right += self.kind.right(self.model, self.task, rows[i : i + 50])
        return 100 * right / len(rows)

    def adapters(self) -> int:
        named = self.model.named_parameters()
        return sum(p.numel() for name, p in named if "lora_" in name)

    def figures(self) -> dict[str, float]:
        spent = "cpu_s" if self.place.device.type == "cpu" else "wall_s"
        found = {"accuracy": self.accuracy(), "adapters": self.adapters()}
        return {**found, spent: self.seconds}
