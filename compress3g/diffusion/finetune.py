"""Recovery: a pruned denoiser learns to answer as the dense one does."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..engine.checkpoint import StopSignal, load_tensors, save_tensors
from ..engine.fields import check_ranges, option
from ..engine.progress import Progress
from ..errors import ConfigError, FormatError, ScoreError, require
from .distillation import Lessons
from .learning import difference, short_of_memory
from .pipelines import denoiser_of
from .processes import generator, processes, summed
from .pruned_models import KEY, base_of
from .sampling import Prompt
from .teacher import fingerprint
from .units import units_of

_log = logging.getLogger(__name__)
_REMEDIES = (
    "--method lora, --inner-checkpoint, a smaller --batch (and a larger --accumulate), --rank, or "
    "a smaller picture"
)
_ADAPTER = "recovery"
_SAVE_EVERY = 600.0  # seconds: a checkpoint of all weights is three times their size
_OTHER = {"dense": "another dense model", "asked": "other prompts or another call"}
# Both ends included.
_RANGES: dict[str, tuple[float, float]] = {
    "rank": (1, 4096),
    "updates": (1, 10**7),
    "batch": (1, 10**4),
    "accumulate": (1, 10**5),
    "learning_rate": (1e-10, 1),
    "denoise": (0, 1e3),
    "clip": (1e-6, 1e6),
    "steps": (1, 10**4),
    "guidance": (0, 1e3),
    "seed": (0, 2**40),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneConfig:
    """Everything that decides what is learnt, besides both pipelines and the prompts."""

    method: Literal["lora", "full"] = option(
        "lora", "Train low-rank additions to what lost units, merged at the end, or all weights."
    )
    rank: int = option(16, "Of the low-rank additions.")
    updates: int = option(1000, "Optimiser steps; paper 10000.")
    batch: int = option(8, "Prompts at a time; paper 32.")
    accumulate: int = option(1, "Batches of an optimiser step, shared out among processes.")
    learning_rate: float | None = option(
        None, "Of AdamW at its peak; unset: 1e-3 for lora, 1e-4 for full; paper 1e-6, 1e-7."
    )
    denoise: float = option(
        0.0, "Weight of the loss the dense model was trained with; paper 1. Its answers weigh 1."
    )
    clip: float = option(1.0, "Largest norm of the gradient.")
    steps: int = option(20, "Inference steps of the dense images; noise levels are theirs.")
    guidance: float | None = option(None, "Guidance scale of these; unset: the pipeline's own.")
    autocast: bool = option(False, "Multiply in bfloat16; weights stay in the type they have.")
    inner_checkpoint: bool = option(False, "Checkpoint the denoiser's blocks: less memory, slower.")
    seed: int = option(0, "Of everything random.")

    def __post_init__(self) -> None:
        """Raise ConfigError naming the option for every value nothing can be learnt with."""
        check_ranges(self, _RANGES)

    @property
    def peak(self) -> float:
        """The learning rate at its peak."""
        return self.learning_rate or (1e-3 if self.method == "lora" else 1e-4)


@dataclass(frozen=True, slots=True)
class Finetuned:
    """How recovery went.

    history: per update: `loss` (what was minimised), `distance` (mean squared distance of the
    answers to the dense ones, over their mean square). stopped: why it ended early, or "".
    """

    history: tuple[dict[str, float], ...]
    stopped: str = ""


def finetune(
    pipe: Any,
    teacher: Any,
    prompts: Sequence[Prompt],
    config: FinetuneConfig | None = None,
    *,
    checkpoint: Path | None = None,
    cache: Path | None = None,
    call: Mapping[str, Any] | None = None,
    after_update: Callable[[int, Mapping[str, float]], object] | None = None,
) -> Finetuned:
    """Changes the weights of a pruned pipeline's denoiser so that it answers as the dense one.

        min E_{y, z_0 = F(y), noise, t}  ||f(z_t, t, y) - f_dense(z_t, t, y)||^2 / ||f_dense||^2
                                         + denoise ||f(z_t, t, y) - target||^2 / ||f_dense||^2

    over images z_0 that the dense pipeline makes of the prompts, as EcoDiff recovers (2412.02852),
    with the target (noise, velocity, ...) of the pipeline's own scheduler. Rows without the prompt,
    which guidance needs, count like those with it. Low-rank additions are merged: the denoiser's
    sizes and class stay as they are.

    prompts: texts, or class labels; checkpoint: a file to go on from, written every ten minutes and
    at the end, also when the run is told to stop; cache: a folder of dense images; call: further
    options of the pipeline's call (height, ...); after_update: told the number of updates that are
    done and their last record; False from it ends the run.
    Several processes (accelerate, torchrun) share the batches of each update.
    Raises ConfigError when `teacher` is not what `pipe` was pruned from, when the scheduler cannot
    add noise, for half-precision weights of method "full", and for too little memory; ScoreError
    when the very first loss is not finite. A later loss that is not finite ends the run: `stopped`
    says so, the weights are those before it.
    """
    config = config or FinetuneConfig()
    student = denoiser_of(pipe)[1]
    _check(student, denoiser_of(teacher)[1])
    with _trained(student, config) as weights, StopSignal() as signal:
        run = _Run(student, weights, teacher, prompts, config, cache, call or {})
        if checkpoint is not None and checkpoint.exists():
            run.restore(checkpoint)
        saved = time.monotonic()
        with Progress("finetune") as progress:
            while not run.stopped and run.done < config.updates:
                run.update()
                record = run.history[-1] if run.history else {}
                shown = {n: f"{v:.3g}" for n, v in record.items()}
                progress.update(shown, run.done / config.updates)
                ends = after_update is not None and after_update(run.done, record) is False
                over = bool(run.stopped) or run.done == config.updates
                due = over or ends or signal.requested or time.monotonic() - saved > _SAVE_EVERY
                if checkpoint is not None and run.rank == 0 and due:
                    run.save(checkpoint)
                    saved = time.monotonic()
                if ends or signal.requested:
                    break
        if signal.requested:
            raise KeyboardInterrupt
    return Finetuned(tuple(run.history), run.stopped)


class _Run:
    """Weights that are trained, their optimiser, and how many updates are done."""

    def __init__(
        self,
        student: nn.Module,
        weights: Mapping[str, nn.Parameter],
        teacher: Any,
        prompts: Sequence[Prompt],
        config: FinetuneConfig,
        cache: Path | None,
        call: Mapping[str, Any],
    ) -> None:
        self.student, self.weights, self.config = student, dict(weights), config
        self.device = next(student.parameters()).device
        self.rank, self._world = processes(config.accumulate, "--accumulate")
        if not prompts:
            raise ConfigError("there is no prompt to learn from: give at least one")
        call = dict(call)
        if config.guidance is not None:
            call["guidance_scale"] = config.guidance
        self.lessons = Lessons(
            teacher, prompts, batch=config.batch, steps=config.steps, seed=config.seed, call=call,
            wanted=config.denoise > 0, cache=cache,
        )  # fmt: skip
        asked = json.dumps([list(prompts), sorted(call.items())], default=repr)
        self._about: dict[str, Any] = {
            "config": dataclasses.asdict(config),
            "dense": fingerprint(denoiser_of(teacher)[1]),
            "asked": hashlib.sha256(asked.encode()).hexdigest(),
        }
        self.adam = torch.optim.AdamW(self.weights.values(), lr=config.peak, weight_decay=0.0)
        self.done = 0
        self.history: list[dict[str, float]] = []
        self.stopped = ""

    def update(self) -> None:
        """One step of the optimiser; without effect, and the last, when a loss is not finite."""
        config = self.config
        self.adam.zero_grad()
        numbers = torch.zeros(2, device=self.device)  # loss, distance
        try:
            for m in range(self.rank, config.accumulate, self._world):
                numbers += self._learn(m) / config.accumulate
        except (torch.OutOfMemoryError, RuntimeError) as error:
            raise short_of_memory(error, "finetuning", _REMEDIES) from error
        summed(self._world, [numbers, *self._gradients()])
        loss, distance = (float(x) for x in numbers)
        norm = float(nn.utils.clip_grad_norm_(self.weights.values(), config.clip))
        if not math.isfinite(loss) or not math.isfinite(norm):
            self._stop(loss)
            return
        for group in self.adam.param_groups:
            group["lr"] = config.peak * _schedule(self.done, config.updates)
        self.adam.step()
        self.done += 1
        self.history.append({"loss": loss, "distance": distance})

    def _learn(self, m: int) -> Tensor:
        """Loss and distance of the m-th batch of an update; its gradient goes to the weights."""
        config, place = self.config, self.done * self.config.accumulate + m
        epoch, i = divmod(place, len(self.lessons))
        order = torch.randperm(len(self.lessons), generator=generator(config.seed, 0, epoch))
        draw = generator(config.seed, 1, place)
        # Levels of an update's batches are spread evenly.
        level = (m + float(torch.rand((), generator=draw))) / config.accumulate
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config.autocast):
            lesson = self.lessons.at(int(order[i]), level, draw)
            distance, denoised = lesson.losses(self.student)
        loss = distance + config.denoise * denoised
        (loss / config.accumulate).backward()
        return torch.stack([loss.detach(), distance.detach()])

    def _gradients(self) -> list[Tensor]:
        for p in self.weights.values():
            if p.grad is None:  # on this process, or for good
                p.grad = torch.zeros_like(p)
        return [p.grad for p in self.weights.values() if p.grad is not None]

    def _stop(self, loss: float) -> None:
        self.stopped = (
            f"the loss or its gradient is not finite at update {self.done + 1} (loss {loss:g}): "
            "use bfloat16 or float32, or a smaller learning rate"
        )
        if not self.done:
            raise ScoreError(self.stopped)
        _log.warning("%s; the weights are those of update %d", self.stopped, self.done)

    def save(self, path: Path) -> None:
        """Writes all that the next update depends on."""
        tensors = {f"weight/{name}": p for name, p in self.weights.items()}
        for name, p in self.weights.items():
            for key, value in self.adam.state[p].items():
                tensors[f"{key}/{name}"] = value
        save_tensors(path, tensors, {**self._about, "done": self.done, "history": self.history})

    def restore(self, path: Path) -> None:
        """Raises FormatError for the checkpoint of another run."""
        tensors, about = load_tensors(path)
        for name, now in self._about.items():
            then = about.get(name)
            if then != now:
                what = difference(then, now) if name == "config" else _OTHER[name]
                raise FormatError(f"{path} is a checkpoint of another run ({what}): remove it")
        try:
            for name, p in self.weights.items():
                p.data.copy_(tensors[f"weight/{name}"])
                self.adam.state[p] = {
                    key: tensors[f"{key}/{name}"].to("cpu" if key == "step" else p.device)
                    for key in ("step", "exp_avg", "exp_avg_sq")
                }
        except (KeyError, RuntimeError):
            raise FormatError(
                f"{path} is a checkpoint of another pruned model: remove it"
            ) from None
        self.done, self.history = about["done"], about["history"]


def _schedule(done: int, updates: int) -> float:
    """Share of the peak: up over the first twentieth, then down along half a cosine."""
    warm = max(1, updates // 20)
    if done < warm:
        return (done + 1) / (warm + 1)
    return 0.5 * (1 + math.cos(math.pi * (done - warm) / max(1, updates - warm)))


def _check(student: Any, teacher: Any) -> None:
    """Raises ConfigError naming what tells the teacher from the model that was pruned."""
    kinds = [base_of(m).__name__ for m in (student, teacher)]
    ours, theirs = (
        {k: v for k, v in m.config.items() if k != KEY and not k.startswith("_")}
        for m in (student, teacher)
    )
    other = [f"{k} is {theirs.get(k)}, not {v}" for k, v in ours.items() if theirs.get(k) != v]
    if kinds[0] != kinds[1]:
        other.insert(0, f"it is a {kinds[1]}, not a {kinds[0]}")
    if other:
        raise ConfigError(f"the dense pipeline is not what was pruned: {other[0]}")


@contextmanager
def _trained(student: Any, config: FinetuneConfig) -> Iterator[Mapping[str, nn.Parameter]]:
    """The weights that are trained; afterwards part of the denoiser, which is as before otherwise.

    Dropout stays off: the dense answers have none.
    """
    wanted = {p for p in student.parameters() if p.requires_grad}
    student.requires_grad_(False)
    if config.method == "lora":
        _add_lora(student, config)
    else:
        _check_precision(student)
        student.requires_grad_(True)
    enable = config.inner_checkpoint and not getattr(student, "is_gradient_checkpointing", False)
    # Blocks are only checkpointed in training mode.
    modes: dict[nn.Module, bool] = {m: m.training for m in student.modules()}
    try:
        if enable:
            _checkpoint_blocks(student)
        yield {n: p for n, p in student.named_parameters() if p.requires_grad}
    finally:
        if enable and getattr(student, "is_gradient_checkpointing", False):
            student.disable_gradient_checkpointing()
        for module, mode in modes.items():
            module.training = mode
        if config.method == "lora":
            _merge_lora(student)
        for p in student.parameters():
            p.requires_grad_(p in wanted)
            p.grad = None


def _check_precision(student: nn.Module) -> None:
    half = next((p.dtype for p in student.parameters() if p.itemsize < 4), None)
    if half is not None:
        raise ConfigError(
            f"method full on {half} weights loses updates to rounding: give --dtype float32 (and "
            "--autocast), or --method lora"
        )


def _checkpoint_blocks(student: Any) -> None:
    try:
        student.enable_gradient_checkpointing()
    except (AttributeError, ValueError) as error:
        raise ConfigError(f"no --inner-checkpoint for this denoiser: {error}") from None
    student.train()
    for module in student.modules():
        if isinstance(module, nn.Dropout):
            module.eval()


def _add_lora(student: Any, config: FinetuneConfig) -> None:
    """On every layer that units were, or could be, cut out of: those nearest to what is missing."""
    peft = require("peft", extra="diffusion", purpose="--method lora")
    if getattr(student, "peft_config", None):
        raise ConfigError("the denoiser has adapters: fuse and unload them first")
    names = {cut.module for u in units_of(student) for cut in (*u.writes, *u.reads)}
    layers = [n for n in sorted(names) if _takes_lora(student.get_submodule(n))]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        of = peft.LoraConfig(r=config.rank, lora_alpha=config.rank, target_modules=layers)
        peft.inject_adapter_in_model(of, student, adapter_name=_ADAPTER)
    for p in student.parameters():
        if p.requires_grad and p.itemsize < 4:  # half precision swallows small updates
            p.data = p.data.float()


def _merge_lora(student: Any) -> None:
    layer = require("peft.tuners.tuners_utils", extra="diffusion", purpose="--method lora")
    for name, module in list(student.named_modules()):
        if isinstance(module, layer.BaseTunerLayer):
            module.merge()
            student.set_submodule(name, module.get_base_layer())
    del student.peft_config


def _takes_lora(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
