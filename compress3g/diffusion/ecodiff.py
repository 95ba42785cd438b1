"""EcoDiff: masks learnt through the whole denoising trajectory (2412.02852)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core import (
    AugmentedLagrangianBudget,
    HardConcrete,
    Masks,
    Schedule,
    Units,
    gated,
    open_ratio,
    price,
)
from ..core.surgery import digest
from ..engine.checkpoint import load_tensors, save_tensors
from ..engine.progress import Progress
from ..errors import BudgetError, ConfigError, FormatError, ScoreError
from ..profile import count_flops
from .config import EcoDiffConfig
from .criterion_scores import criterion_scores
from .learned import Learned
from .learning import difference, frozen, short_of_memory
from .ordered_start import ordered_logits
from .pipelines import denoiser_of
from .processes import generator, processes, seed_of, summed
from .sampling import Prompt, Replay
from .teacher import Teacher, fingerprint
from .units import units_of

_log = logging.getLogger(__name__)
_BETA = 0.83  # of the hard concrete gate, as EcoDiff's code has it
_SAVE_EVERY = 10  # updates
_COOLING = 0.25  # share of the updates over which the learning rate falls to 0
_GAUGING = 0.1  # share of the updates whose losses say on what scale the penalty is to be
_REMEDIES = (
    "--inner-checkpoint, --halves, --offload-latents, --keep-last 0, --batch 1, or a smaller "
    "picture"
)
_LOOKED_AT = 64  # prompts of the score that logits start by
_TINY = 1e-15  # Adam's epsilon: one neuron's share of the cost is below the usual 1e-8


def learn_masks(
    pipe: Any,
    prompts: Sequence[Prompt],
    config: EcoDiffConfig | None = None,
    *,
    units: Sequence[Units] | None = None,
    checkpoint: Path | None = None,
    cache: Path | None = None,
    call: Mapping[str, Any] | None = None,
    start: Mapping[str, Tensor] | None = None,
    after_update: Callable[[int, Mapping[str, float]], object] | None = None,
) -> Learned:
    """Masks under which the last latent of a diffusers pipeline changes least.

        min over logits  E[ || F(z_T, y) - F(z_T, y, M) ||^2 / || F(z_T, y) ||^2 ]  +  budget

    with F the whole sampler, weights frozen, one mask for all steps, drawn once per trajectory and
    sample. The budget is an augmented Lagrangian on the exact expected cost; reg="l1" is the
    paper's beta |logits| instead.

    prompts: texts, or class labels; units: what may go (default: all of `units_of`); checkpoint: a
    file to go on from, written every few updates; cache: a folder of dense last latents; call:
    further options of the pipeline's call (height, ...); start: scores whose order the logits start
    in, instead of those of config.start; after_update: told the number of updates
    that are done and their last record; False from it ends learning.
    Several processes (accelerate, torchrun) share the trajectories of each update.
    Raises BudgetError for a target that cannot be reached, ScoreError when the very first loss is
    not finite, ConfigError for a pipeline without adapter and for too little memory. A later loss
    that is not finite ends learning: `stopped` says so, the logits are those before it.
    """
    config = config or EcoDiffConfig()
    learning = _Learning(pipe, prompts, config, units, cache, call or {}, start)
    if checkpoint is not None and checkpoint.exists():
        learning.restore(checkpoint)
    with frozen(learning.denoiser, config.inner_checkpoint), Progress("learn") as progress:
        while not learning.stopped and learning.done < config.updates:
            learning.update()
            record = learning.history[-1] if learning.history else {}
            shown = {n: f"{v:.3g}" for n, v in record.items() if n in ("loss", "open")}
            progress.update(shown, learning.done / config.updates)
            ends = after_update is not None and after_update(learning.done, record) is False
            if checkpoint is not None and learning.rank == 0 and not learning.done % _SAVE_EVERY:
                learning.save(checkpoint)
            if ends:
                break
        if checkpoint is not None and learning.rank == 0:
            learning.save(checkpoint)
    return learning.result()


class _Learning:
    """A run: logits, optimiser, multiplier, and how many updates are done."""

    def __init__(
        self,
        pipe: Any,
        prompts: Sequence[Prompt],
        config: EcoDiffConfig,
        units: Sequence[Units] | None,
        cache: Path | None,
        call: Mapping[str, Any],
        start: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.pipe, self.prompts, self.config = pipe, list(prompts), config
        self.call = dict(call)
        if config.guidance is not None:
            self.call["guidance_scale"] = config.guidance
        self.denoiser = denoiser_of(pipe)[1]
        self.device = next(self.denoiser.parameters()).device
        self.rank, self._world = processes(config.accumulate, "--accumulate")
        self.units, total = self._priced(units)
        self._keep = _share_to_keep(self.units, total, config)
        gate = HardConcrete(beta=_BETA, eps=config.noise_floor)
        self.masks = Masks(self.units, gate, init=config.init).to(self.device)
        if start is not None or config.start != "open":
            self._order(start or self._scores())
        self.adam = torch.optim.Adam(self.masks.parameters(), lr=config.learning_rate, eps=_TINY)
        first = float(self._open().detach())
        finish = max(1, round(config.anneal * config.updates))
        self._target = Schedule(max(first, self._keep), self._keep, 0, finish, "linear")
        self._budget = AugmentedLagrangianBudget(
            self._keep,
            rho=config.rho,
            dual_rate=config.dual_rate / config.updates,
            reset_below=True,
        )
        self._teacher = Teacher(self.denoiser, cache)
        self.done = 0
        self.history: list[dict[str, float]] = []
        self.stopped = ""

    def _priced(self, units: Sequence[Units] | None) -> tuple[list[Units], float]:
        """The units with their cost, and the cost of the whole denoiser."""
        found = list(units) if units is not None else units_of(self.denoiser)
        if self.config.cost == "params":
            total = sum(p.numel() for p in self.denoiser.parameters())
            return price(self.denoiser, found), float(total)
        replay = self._replay(0, 0)
        t = replay.scheduler.timesteps[0]
        with torch.no_grad():
            whole = count_flops(lambda: replay.predict(replay.start(), t)).total
            priced = price(self.denoiser, found, lambda _: replay.predict(replay.start(), t))
        return priced, float(whole)

    def _scores(self) -> Mapping[str, Tensor]:
        """By config.start, of the first prompts; the same in all processes."""
        if self.call.keys() - {"guidance_scale"}:
            raise ConfigError(
                f"start={self.config.start!r} looks at images by the pipeline's own options, not "
                "those of `call`: give learn_masks the scores as `start`"
            )
        found = criterion_scores(
            self.pipe,
            [str(p) for p in self.prompts[:_LOOKED_AT]],
            self.config.start,
            units=self.units,
            steps=self.config.steps,
            guidance=self.config.guidance,
            seed=self.config.seed,
        )
        summed(self._world, list(found.values()))  # devices round differently
        return found

    def _order(self, scores: Mapping[str, Tensor]) -> None:
        ordered = ordered_logits(
            scores,
            self.units,
            cost=self.config.cost,
            slope=self.config.slope,
            share=1 - self.config.start_closed * (1 - self._keep),
            opened=self.masks.gate.open,
        )
        for name, z in self._logits().items():
            z.data.copy_(ordered[name])

    def _open(self) -> Tensor:
        return open_ratio(self.masks.open(), self.units, self.config.cost)

    def update(self) -> None:
        """One step of the optimiser; without effect, and the last, when a loss is not finite."""
        config = self.config
        self._budget.target = self._target.at(self.done + 1)
        left = (config.updates - self.done) / config.updates
        self.adam.param_groups[0]["lr"] = config.learning_rate * min(1.0, left / _COOLING)
        self.adam.zero_grad()
        numbers = torch.zeros(2, device=self.device)  # loss and clipped gates
        try:
            for m in range(self.rank, config.accumulate, self._world):
                replay, gates = self._replay(self.done, m), self._draw(m)
                run = self._last if config.loss == "last" else self._each_step
                loss_now = run(replay, gates)
                drawn = torch.cat([g.detach().flatten() for g in gates.values()])
                clipped = ((drawn == 0) | (drawn == 1)).float().mean()
                numbers += torch.stack([loss_now, clipped]) / config.accumulate
        except (torch.OutOfMemoryError, RuntimeError) as error:
            raise short_of_memory(error, "learning masks", _REMEDIES) from error
        loss, share = self._reduce(numbers)
        if not math.isfinite(loss) or not self._finite():
            self._stop(loss)
            return
        self._penalty(self._open(), self._scale(loss)).backward()
        self.adam.step()
        if self._budget.update(float(self._open().detach())) and config.reg == "l0":
            # Momentum would close units far below the budget, where no loss reaches them again.
            for z in self.masks.parameters():
                self.adam.state[z]["exp_avg"].zero_()
        self.done += 1
        self.history.append(
            {
                "loss": loss,
                "open": float(self._open().detach()),
                "target": self._budget.target,
                "gamma": self._budget.gamma,
                "clipped": share,
            }
        )

    def _replay(self, update: int, m: int) -> Replay:
        """The m-th trajectory of an update: prompts in an order of their own in every epoch."""
        first = (update * self.config.accumulate + m) * self.config.batch
        count = len(self.prompts)
        seeds, chosen = [], []
        for sample in range(first, first + self.config.batch):
            epoch, place = divmod(sample, max(1, count))
            order = torch.randperm(count, generator=generator(self.config.seed, 0, epoch))
            chosen.append(self.prompts[int(order[place])] if count else "")
            # A first noise of its own for every sample: with one for all, masks fit that noise.
            seeds.append(seed_of(self.config.seed, 1, sample) % 2**31)
        return Replay.of(
            self.pipe,
            chosen if count else [],
            steps=self.config.steps,
            seed=seeds,
            halves=self.config.halves,
            call=self.call,
        )

    def _draw(self, m: int) -> dict[str, Tensor]:
        """Gates (batch, n) of a trajectory, one mask per sample; the same whoever draws them."""
        batch, device = self.config.batch, self.device
        draw = generator(self.config.seed, 2, self.done, m, device=device)
        gate = self.masks.gate
        return {
            name: gate.sample(z.expand(batch, -1), generator=draw)
            for name, z in self._logits().items()
        }

    def _logits(self) -> dict[str, Tensor]:
        return {u.name: self.masks.logits[u.name.replace(".", "/")] for u in self.units}

    def _last(self, replay: Replay, gates: Mapping[str, Tensor]) -> Tensor:
        """Relative squared error of the last latent; its gradient goes to the logits."""
        last = self._teacher.last(replay)
        # The gates stay on during the backward pass, which runs every step again.
        with gated(self.denoiser, self.units, gates):
            masked = replay.run(
                list(gates.values()),
                keep_last=self.config.keep_last,
                offload_latents=self.config.offload_latents,
            )
            loss = _error(masked, last, last)
            (loss / self.config.accumulate).backward()
        return loss.detach()

    def _each_step(self, replay: Replay, gates: Mapping[str, Tensor]) -> Tensor:
        """Mean over steps of the error one masked step adds to the dense latents (the baseline)."""
        last, recording = replay.record()
        inputs, total = list(gates.values()), torch.zeros((), device=last.device)
        grads = [torch.zeros_like(g) for g in inputs]
        with gated(self.denoiser, self.units, gates), replay.seeded():
            for i in range(replay.steps):
                out = replay.step(recording.again(i), i)
                after = recording.latent(i + 1) if i + 1 < replay.steps else last
                loss = _error(out, after, last) / replay.steps
                found = torch.autograd.grad(loss, inputs)
                grads = [g + more for g, more in zip(grads, found, strict=True)]
                total += loss.detach()
        torch.autograd.backward(inputs, [g / self.config.accumulate for g in grads])
        return total

    def _scale(self, loss: float) -> float:
        """Mean loss of the first updates, where nearly all is open, up to this one.

        Losses of models and samplers are orders of magnitude apart. A penalty that is too strong
        for one closes units before the loss has told them apart.
        """
        first = [r["loss"] for r in self.history] + [loss]
        first = first[: math.ceil(_GAUGING * self.config.updates)]
        return sum(first) / len(first)

    def _penalty(self, opened: Tensor, scale: float) -> Tensor:
        if self.config.reg == "l0":
            return scale * self._budget.penalty(opened)
        # Per group, then per kind, then summed, as EcoDiff's code does.
        kinds: dict[str, list[Tensor]] = {}
        for name, z in self._logits().items():
            kinds.setdefault(name.rpartition(".")[2], []).append(z.abs().mean())
        return self.config.beta * torch.stack([torch.stack(k).mean() for k in kinds.values()]).sum()

    def _reduce(self, numbers: Tensor) -> list[float]:
        """Sums over processes, of the logits' gradients too."""
        for z in self.masks.parameters():
            z.grad = torch.zeros_like(z) if z.grad is None else z.grad
        gradients = [z.grad for z in self.masks.parameters() if z.grad is not None]
        summed(self._world, [numbers, *gradients])
        return [float(x) for x in numbers]

    def _finite(self) -> bool:
        return all(z.grad is None or bool(z.grad.isfinite().all()) for z in self.masks.parameters())

    def _stop(self, loss: float) -> None:
        self.stopped = (
            f"the loss or its gradient is not finite at update {self.done + 1} (loss {loss:g}): "
            "use bfloat16 or float32, or a smaller learning rate"
        )
        if not self.done:
            raise ScoreError(self.stopped)
        _log.warning("%s; the masks are those of update %d", self.stopped, self.done)

    def save(self, path: Path) -> None:
        """Writes all that the next update depends on."""
        tensors = {f"logits/{name}": z for name, z in self._logits().items()}
        for name, z in self._logits().items():
            for key, value in self.adam.state[z].items():
                tensors[f"{key}/{name}"] = value
        state = {"done": self.done, "history": self.history, "gamma": self._budget.gamma}
        save_tensors(path, tensors, {**self._about(), **state})

    def restore(self, path: Path) -> None:
        """Raises FormatError for the checkpoint of another run."""
        tensors, about = load_tensors(path)
        for name, now in self._about().items():
            then = about.get(name)
            if then != now:
                was = difference(then, now) if name == "config" else "other prompts, model or call"
                raise FormatError(f"{path} is a checkpoint of another run ({was}): remove it")
        for name, z in self._logits().items():
            z.data.copy_(tensors[f"logits/{name}"])
            self.adam.state[z] = {
                key: tensors[f"{key}/{name}"].to("cpu" if key == "step" else z.device)
                for key in ("step", "exp_avg", "exp_avg_sq")
            }
        self.done, self.history = about["done"], about["history"]
        self._budget.load_state_dict({"gamma": about["gamma"]})

    def _about(self) -> dict[str, Any]:
        text = json.dumps([self.prompts, sorted(self.call.items())], default=repr)
        return {
            "config": dataclasses.asdict(self.config),
            "digest": digest(self.units),
            "dense": fingerprint(self.denoiser),
            "asked": hashlib.sha256(text.encode()).hexdigest(),
        }

    def result(self) -> Learned:
        """The logits as they stand."""
        logits = {name: z.detach().cpu().clone() for name, z in self._logits().items()}
        found = Learned(logits, self.config, tuple(self.history), digest(self.units))
        return replace(found, stopped=self.stopped)


def _error(ours: Tensor, theirs: Tensor, scale: Tensor) -> Tensor:
    """Mean over samples of ||ours - theirs||^2 / ||scale||^2.

    One weight of the budget serves every kind of latent, and a batch is as good as accumulating.
    """
    far = (ours.float() - theirs.float()).square().flatten(1).sum(1)
    return (far / scale.float().square().flatten(1).sum(1)).mean()


def _share_to_keep(units: Sequence[Units], total: float, config: EcoDiffConfig) -> float:
    """Share of the prunable cost that stays when `target` of the whole goes."""
    prunable = sum(u.cost[config.cost] * u.size for u in units)
    floor = sum(u.cost[config.cost] for u in units)
    keep = 1 - config.target * total / prunable
    if keep * prunable < floor:
        most = math.floor(1000 * (prunable - floor) / total) / 1000
        raise BudgetError(
            f"a target of {config.target:g} cannot be reached: {prunable / total:.1%} of the "
            f"denoiser's {config.cost} can go, less one unit per group; give at most {most:g}"
        )
    return keep
