"""Trains a router: codes for networks, and a predictor that says which prompt needs which."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...core import gated
from ...core.surgery import digest
from ...engine.checkpoint import load_tensors, save_tensors
from ...engine.progress import Progress
from ...engine.ranks import of_all_ranks
from ...errors import ConfigError, FormatError, ScoreError
from ..blocks import blocks_of
from ..learning import difference, frozen, short_of_memory
from ..processes import generator as seeded_generator
from ..processes import processes, summed
from ..teacher import fingerprint
from . import losses
from .codes import SoftCode, Space, as_gates, space_of
from .config import AptpConfig
from .corpus import Corpus, Sample
from .encoder import PIPELINE
from .harden import hardened
from .need import by_need, errors_of, fitted, leading
from .recut import recut
from .router import Predictor, Router
from .start import by_magnitude, graded
from .transport import Recent, transport

_log = logging.getLogger(__name__)
_SAVE_EVERY = 50  # steps
_REMEDIES = "a smaller --batch, or a smaller picture"
_LR_WARMUP = 100  # steps
_SAMPLES, _CLOSE = 1024, 0.05  # numbers of the latents by which a checkpoint knows them
_CLUSTERING = 20  # rounds of finding the first codes


def train_router(
    corpus: Corpus,
    config: AptpConfig | None = None,
    *,
    embeddings: Tensor | None = None,
    encoder: str = PIPELINE,
    checkpoint: Path | None = None,
    after_step: Callable[[int, Mapping[str, float]], object] | None = None,
) -> Router:
    """A router for the corpus' denoiser, whose weights stay as they are.

    First every prompt has the network that the predictor says for it, GS(W z + b). Then there are N
    codes; each prompt gets one by optimal transport over similarities, and the code's gates learn
    from the losses, the predictor from the contrastive one alone (2406.12042, section 3).

    embeddings: of the corpus' prompts by another `encoder`; checkpoint: a file to go on from;
    after_step: told the number of steps done and their last record; False from it ends training.
    Several processes share the batch. Raises ConfigError for fewer different prompts than experts,
    BudgetError for a target no code can meet, ScoreError when a loss is not finite.
    """
    config = config or AptpConfig()
    training = _Training(corpus, config, embeddings, encoder)
    if checkpoint is not None and checkpoint.exists():
        training.restore(checkpoint)
    with frozen(corpus.denoiser, False), Progress("route") as progress:
        while training.done < config.steps:
            record = training.step()
            shown = {n: f"{record[n]:.3g}" for n in ("loss", "share", "deviation")}
            progress.update(shown, training.done / config.steps)
            ends = after_step is not None and after_step(training.done, record) is False
            last = ends or training.done == config.steps
            due = last or not training.done % _SAVE_EVERY
            if checkpoint is not None and training.rank == 0 and due:
                training.save(checkpoint)
            if ends:
                break
    return training.result()


def check_captions(captions: Sequence[str], config: AptpConfig) -> None:
    """Raises ConfigError where there are more codes than captions to tell apart."""
    different = len(set(captions))
    if config.experts > different:
        raise ConfigError(
            f"--experts {config.experts} for {different} different captions: give more captions or "
            "fewer experts"
        )


class _Training:
    """A run: predictor, codes, their optimiser, and how many steps are done."""

    def __init__(
        self, corpus: Corpus, config: AptpConfig, embeddings: Tensor | None, encoder: str
    ) -> None:
        check_captions(corpus.prompts, config)
        self.corpus, self.config, self.encoder = corpus, config, encoder
        self.denoiser = corpus.denoiser
        self._latents = _some_of(corpus.latents)
        self.device = next(self.denoiser.parameters()).device
        self.rank, self._world = processes(config.batch, "--batch")
        self.space = _priced_space(corpus, config)
        self.p = self.space.prunable_share(config.target)
        self.code = SoftCode.of(self.space, config)
        found = corpus.embeddings if embeddings is None else embeddings
        self.mean, self.scale = found.mean(0), _scale_of(found)
        self.z = (found - self.mean) / self.scale
        generator = seeded_generator(config.seed, 0)
        self.predictor = Predictor(self.z.shape[1], self.space, generator).to(self.device)
        if config.start == "magnitude":
            first = by_magnitude(self.denoiser, self.space, config.target)
            with torch.no_grad():
                self.predictor.linear.bias.copy_(self.code.inverse(first))
        codes = torch.empty(config.experts, self.space.width)
        nn.init.orthogonal_(codes, generator=generator)
        self.codes = nn.Parameter(codes.to(self.device))
        # Adam moves all numbers alike, and a logit W z is the sum of as many as z has.
        self._rates = (config.learning_rate / self.z.shape[1], config.learning_rate)
        learnt = ([self.predictor.linear.weight], [self.predictor.linear.bias, self.codes])
        groups = [{"params": p, "lr": r} for p, r in zip(learnt, self._rates, strict=True)]
        self.adam = torch.optim.AdamW(groups, weight_decay=0.0)
        self._recent = Recent(4 * config.experts)
        self._chosen: Tensor | None = None  # each prompt's code, where need decides
        self._blocks = [str(b.bypass) for b in blocks_of(self.denoiser)]
        self.done = 0
        self.history: list[dict[str, float]] = []

    @property
    def warming(self) -> bool:
        """Whether every prompt still has a network of its own."""
        return self.config.start != "graded" and self.done < self.config.warmup * self.config.steps

    def step(self) -> dict[str, float]:
        """One step of the optimiser. Raises ScoreError when its loss is not finite."""
        config, generator = self.config, seeded_generator(self.config.seed, 1, self.done)
        if config.start == "graded":
            if self._chosen is None:
                self._start_sizes()
        elif self.done == math.ceil(config.warmup * config.steps) > 0:
            self._start_codes()
        rows = torch.randint(len(self.corpus), (config.batch,), generator=generator)
        rows = rows.chunk(self._world)[self.rank]
        mine = seeded_generator(config.seed, 2, self.done, self.rank)
        sample = self.corpus.draw(rows, mine, drop=config.drop)
        try:
            terms = self._terms(rows, sample, mine)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            raise short_of_memory(error, "training a router", _REMEDIES) from error
        weights = {name: getattr(config, name) for name in terms}
        loss = torch.stack([weights[n] * t for n, t in terms.items() if weights[n]]).sum()
        self.adam.zero_grad()
        loss.backward()
        if not math.isfinite(float(loss.detach())):
            raise ScoreError(
                f"the loss is not finite at step {self.done + 1}: use bfloat16 or float32, or a "
                "smaller --learning-rate"
            )
        self._share_gradients()
        for group, rate in zip(self.adam.param_groups, self._rates, strict=True):
            group["lr"] = rate * min(1.0, (self.done + 1) / _LR_WARMUP)
        self.adam.step()
        self.done += 1
        record = {name: float(t.detach()) for name, t in terms.items()}
        record |= {"loss": float(loss.detach()), **self._about_shares}
        self.history.append(record)
        return record

    def _terms(self, rows: Tensor, sample: Sample, generator: torch.Generator) -> dict[str, Tensor]:
        """The losses by name, not yet weighted."""
        z = self.z[rows].to(self.device)
        soft = self.code.gates(self.predictor(z), generator)
        vectors = self.code.similarity_vector(soft)
        gates = soft
        if not self.warming:
            by_code = self.code.gates(self.codes, generator)
            likeness = self.code.similarity_vector(by_code).detach()
            chosen = (
                self._assign(vectors.detach(), likeness)
                if self._chosen is None
                else self._chosen[rows].to(self.device)
            )
            gates = {name: g[chosen] for name, g in by_code.items()}
        shares = self._shares(gates)
        with torch.no_grad(), _outputs(self.denoiser, self._blocks) as dense_blocks:
            dense = self._run(sample)
        gates_on = gated(self.denoiser, self.space.units, gates)
        with gates_on, _outputs(self.denoiser, self._blocks) as our_blocks:
            ours = self._run(sample)
        snr = losses.min_snr_weight(self.corpus.scheduler, sample.times, self.config.min_snr)
        return {
            "denoise": losses.denoising_loss(ours, sample.target, snr),
            "distill": losses.distillation_loss(ours, dense),
            "blocks": losses.block_loss(our_blocks, dense_blocks) if our_blocks else ours.sum() * 0,
            "resource": losses.resource_loss(shares, self.p),
            "contrast": losses.contrastive_loss(z, vectors, self.config.temperature),
            "spread": losses.spread_loss(shares),
            "peak": losses.peak_loss(shares),
        }

    def _shares(self, gates: Mapping[str, Tensor]) -> Tensor:
        whole = self.space.share(gates)
        share = 1 - (1 - whole) * self.space.total / self.space.prunable  # of the prunable cost
        self._about_shares = {
            "share": float(whole.detach().mean()),
            "deviation": float(whole.detach().std(correction=0)),
        }
        return share

    def _run(self, sample: Sample) -> Tensor:
        out: Tensor = self.denoiser(**sample.arguments, return_dict=False)[0]
        return out

    def _assign(self, ours: Tensor, codes: Tensor) -> Tensor:
        """The code of every prompt of this process' part of the batch."""
        every = torch.cat([v.to(ours.device) for v in of_all_ranks(ours)])
        if not self.config.transport:
            return (ours @ codes.T).argmax(1)
        similarity = self._recent.with_new(every) @ codes.T
        plan, _ = transport(
            similarity, epsilon=self.config.sinkhorn, iterations=self.config.sinkhorn_iterations
        )
        return plan[: len(every)].chunk(self._world)[self.rank].argmax(1)

    def _start_codes(self) -> None:
        """Codes start as means of the predictor's logits, shared out evenly (ours).

        Orthogonal codes, as released, start all open and have the budget still to learn.
        """
        with torch.no_grad():
            logits = self.predictor(self.z.to(self.device))
            vectors = self.code.vector(logits)
            generator = seeded_generator(self.config.seed, 3)
            first = torch.randperm(len(logits), generator=generator)[: self.config.experts]
            codes = logits[first]
            for _ in range(_CLUSTERING):
                theirs = self.code.vector(codes)
                plan, _ = transport(vectors @ theirs.T, epsilon=self.config.sinkhorn, iterations=50)
                share = plan / plan.sum(0, keepdim=True)
                codes = share.T @ logits
            self.codes.copy_(codes)
        self.adam.state.pop(self.codes, None)

    def _start_sizes(self) -> None:
        """Codes of graded sizes; each prompt gets the one it needs, for good (ours)."""
        config, space = self.config, self.space
        first = graded(self.denoiser, space, config.target, config.experts, config.grade)
        with torch.no_grad():
            self.codes.copy_(torch.stack([self.code.inverse(x) for x in first]))
        if config.experts == 1:
            self._chosen = torch.zeros(len(self.corpus), dtype=torch.long)
            return
        asked = first
        if config.need is not None:
            asked = graded(self.denoiser, space, config.need, config.experts, config.grade)
        hard = [as_gates(self.code.hard(self.code.inverse(x)), space) for x in asked]
        gates = {n: torch.stack([g[n] for g in hard]).to(self.device) for n in hard[0]}
        errors = errors_of(self.corpus, space, gates, seeded_generator(config.seed, 5))
        told = leading(self.z, config.directions)
        self._chosen = by_need(errors, told, evenly=config.transport)

    def _share_gradients(self) -> None:
        """The mean over processes."""
        gradients = [p.grad for p in self._learnt().values() if p.grad is not None]
        summed(self._world, gradients)
        for gradient in gradients:
            gradient /= self._world

    def save(self, path: Path) -> None:
        """Writes all that the next step depends on."""
        tensors = {f"learnt/{n}": p for n, p in self._learnt().items()}
        tensors["latents"] = self._latents
        for name, p in self._learnt().items():
            tensors |= {f"{key}/{name}": v for key, v in self.adam.state.get(p, {}).items()}
        if self._recent.rows is not None:
            tensors["recent"] = self._recent.rows
        if self._chosen is not None:
            tensors["chosen"] = self._chosen
        save_tensors(path, tensors, {**self._about(), "done": self.done, "history": self.history})

    def restore(self, path: Path) -> None:
        """Raises FormatError for the checkpoint of another run."""
        tensors, about = load_tensors(path)
        for name, now in self._about().items():
            then = about.get(name)
            if then != now:
                was = difference(then, now) if name == "config" else "other prompts or model"
                raise FormatError(f"{path} is a checkpoint of another run ({was}): remove it")
        if not _alike(tensors["latents"], self._latents):
            raise FormatError(f"{path} is a checkpoint of another run (other latents): remove it")
        for name, p in self._learnt().items():
            p.data.copy_(tensors[f"learnt/{name}"])
            if f"step/{name}" in tensors:
                self.adam.state[p] = {
                    key: tensors[f"{key}/{name}"].to("cpu" if key == "step" else p.device)
                    for key in ("step", "exp_avg", "exp_avg_sq")
                }
        if "recent" in tensors:
            self._recent.rows = tensors["recent"].to(self.device)
        self._chosen = tensors.get("chosen")
        self.done, self.history = about["done"], about["history"]

    def _learnt(self) -> dict[str, Tensor]:
        return {
            "weight": self.predictor.linear.weight,
            "intercept": self.predictor.linear.bias,
            "codes": self.codes,
        }

    def _about(self) -> dict[str, Any]:
        text = json.dumps([self.corpus.prompts, self.encoder])
        return {
            "config": dataclasses.asdict(self.config),
            "digest": digest(self.space.units),
            "dense": fingerprint(self.denoiser),
            "asked": hashlib.sha256(text.encode()).hexdigest(),
        }

    def result(self) -> Router:
        """The router as it stands, its codes made hard."""
        if self._chosen is not None:
            weight, intercept = fitted(self.z, self.codes.detach().cpu()[self._chosen])
            with torch.no_grad():
                self.predictor.linear.weight.copy_(weight)
                self.predictor.linear.bias.copy_(intercept)
        router = Router(
            config=self.config,
            space=self.space,
            encoder=self.encoder,
            weight=self.predictor.linear.weight.detach().cpu().clone(),
            intercept=self.predictor.linear.bias.detach().cpu().clone(),
            mean=self.mean,
            scale=self.scale,
            logits=self.codes.detach().cpu().clone(),
            keep=(),
            shares=torch.ones(self.config.experts),
            prices=torch.zeros(self.config.experts),
            usage=torch.ones(self.config.experts) / self.config.experts,
            history=tuple(self.history),
        )
        embeddings = self.z * self.scale + self.mean
        router = hardened(router, embeddings)
        if self.config.recut is None:
            return router
        return recut(router, self.corpus, embeddings, seeded_generator(self.config.seed, 6))


def _scale_of(embeddings: Tensor) -> float:
    """Standard deviation over rows, of all columns together; never 0, also of a single row."""
    deviation = embeddings.std(0, correction=min(1, len(embeddings) - 1))
    return max(float(deviation.square().mean().sqrt()), 1e-12)


def _some_of(latents: Tensor) -> Tensor:
    flat = latents.flatten()
    return flat[:: max(1, len(flat) // _SAMPLES)].float()


def _alike(then: Tensor, now: Tensor) -> bool:
    """Up to rounding: latents that were made again by other threads or another device will do."""
    close = _CLOSE * float(now.square().mean().sqrt())
    return then.shape == now.shape and float((then - now).abs().max()) <= close


def _priced_space(corpus: Corpus, config: AptpConfig) -> Space:
    sample = corpus.draw(torch.zeros(1, dtype=torch.long), seeded_generator(config.seed, 4))

    def example(model: nn.Module) -> object:
        with torch.no_grad():
            return model(**sample.arguments, return_dict=False)

    return space_of(corpus.denoiser, example, depth=config.depth, bundle=config.bundle)


@contextmanager
def _outputs(model: nn.Module, names: Sequence[str]) -> Iterator[list[Tensor]]:
    """Collects what blocks return, of several tensors the last."""
    found: list[Tensor] = []

    def look(module: nn.Module, args: Any, out: Any) -> None:
        found.append(out if isinstance(out, Tensor) else out[-1])

    handles = [model.get_submodule(name).register_forward_hook(look) for name in names]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
