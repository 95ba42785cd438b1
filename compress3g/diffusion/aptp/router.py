"""From a prompt's embedding to one of N architecture codes, and how to stay in budget."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ...core import Keep
from ...core.surgery import digest
from ...engine.checkpoint import load_tensors, save_tensors
from ...errors import BudgetError, ConfigError, FormatError
from .codes import SoftCode, Space, as_gates
from .config import AptpConfig

_FORMAT = 1
_CLOSE = 0.002  # a budget counts as met within this share of it


@dataclass(frozen=True, slots=True)
class Router:
    """What `train_router` returns; frozen, `rebalance` returns another one.

    weight, intercept: of the predictor, e = W z + b for a standardised embedding z;
    mean, scale: that standardise embeddings; vectors: n(a) of the codes; keep: what each expert
    keeps; shares: multiply-adds of each expert over the dense denoiser's, measured;
    prices: added to similarities, from the transport; tilt: how strongly cheap experts are
    preferred, from the budget; usage: share of the training prompts per expert.
    """

    config: AptpConfig
    space: Space
    encoder: str
    weight: Float[Tensor, "U d"]
    intercept: Float[Tensor, "U"]
    mean: Float[Tensor, "d"]
    scale: float
    logits: Float[Tensor, "N U"]
    keep: tuple[Keep, ...]
    shares: Float[Tensor, "N"]
    prices: Float[Tensor, "N"]
    usage: Float[Tensor, "N"]
    tilt: float = 0.0
    history: tuple[dict[str, float], ...] = ()
    vectors: Float[Tensor, "N U"] = field(init=False, repr=False)
    _offsets: Float[Tensor, "N"] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Finds what no prompt changes."""
        object.__setattr__(self, "vectors", self.code.vector(self.logits))
        object.__setattr__(self, "_offsets", self.prices - self.tilt * self.shares)

    @property
    def code(self) -> SoftCode:
        """How logits become gates."""
        return SoftCode.of(self.space, self.config)

    def standard(self, embeddings: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        """z: as the predictor wants embeddings. Raises ConfigError for another encoder's."""
        if embeddings.shape[-1] != len(self.mean):
            raise ConfigError(
                f"embeddings of {embeddings.shape[-1]} numbers for a router of {len(self.mean)}: "
                "it was trained with another encoder"
            )
        return (embeddings.float().cpu() - self.mean) / self.scale

    def similarities(self, embeddings: Float[Tensor, "b d"]) -> Float[Tensor, "b N"]:
        """Cosines n(GS(e)) . n(a), without noise."""
        e = F.linear(self.standard(embeddings), self.weight, self.intercept)
        return self.code.vector(e) @ self.vectors.T

    def route(self, embeddings: Float[Tensor, "b d"]) -> Int[Tensor, "b"]:
        """The expert of each row: the most similar code, at the codes' prices."""
        return self.choice(self.similarities(embeddings))

    def choice(
        self, similarities: Float[Tensor, "b N"], tilt: float | None = None
    ) -> Int[Tensor, "b"]:
        """The expert of each row by similarities, prices, and how much cheap ones are preferred."""
        offsets = self._offsets if tilt is None else self.prices - tilt * self.shares
        return (similarities + offsets).argmax(1)

    def expected(self, embeddings: Float[Tensor, "b d"]) -> float:
        """Mean share of the dense denoiser's multiply-adds that these prompts cost."""
        return float(self.shares[self.route(embeddings)].mean())

    def rebalance(self, embeddings: Float[Tensor, "b d"], target: float | None = None) -> Router:
        """A router that keeps these prompts within a budget (ours).

        argmax_i  similarity_i + price_i - tilt * share_i, with the smallest tilt whose mean share
        is `target` (default: the one it was trained for) or less. Raises BudgetError when even the
        cheapest expert costs more.
        """
        target = self.config.target if target is None else target
        similarities = self.similarities(embeddings)

        def cost(tilt: float) -> float:
            return float(self.shares[self.choice(similarities, tilt)].mean())

        least = float(self.shares.min())
        if target < least * (1 - _CLOSE):
            raise BudgetError(
                f"a budget of {target:g} cannot be met: the smallest expert costs {least:.3f} of "
                "the dense denoiser"
            )
        low, high = -1.0, 1.0  # the cost falls as the tilt grows
        while cost(low) < target and low > -1e4 and cost(low) < float(self.shares.max()):
            low *= 4
        while cost(high) > target and high < 1e4:
            high *= 4
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if cost(middle) > target else (low, middle)
        return replace(self, tilt=self._off_the_edge(similarities, high))

    def _off_the_edge(self, similarities: Float[Tensor, "b N"], tilt: float) -> float:
        """A tilt with the same choices, away from where one of them changes.

        At the edge the last bit of an embedding would decide, which the size of a batch can change.
        """
        chosen, step = self.choice(similarities, tilt), 1e-6
        while step < 1 and torch.equal(self.choice(similarities, tilt + 2 * step), chosen):
            step *= 2
        return tilt + step

    def entropy(self, chosen: Int[Tensor, "b"]) -> float:
        """Entropy of the experts' use, over ln N: 1 when all are used alike."""
        if len(self.keep) == 1:
            return 1.0
        p = torch.bincount(chosen, minlength=len(self.keep)).double() / len(chosen)
        return float(-(p * p.clamp(min=1e-12).log()).sum() / math.log(len(self.keep)))

    def likeness(self) -> float:
        """Largest cosine of two codes: near 1 they have collapsed. 0 for a single code."""
        if len(self.keep) == 1:
            return 0.0
        kept = self.code.similarity_vector(_stacked([as_gates(k, self.space) for k in self.keep]))
        cosines = kept @ kept.T
        return float((cosines - 2 * torch.eye(len(cosines))).max())

    def save(self, path: Path) -> None:
        """Writes one safetensors file, whole or not at all."""
        tensors = {name: getattr(self, name) for name in _TENSORS}
        for i, keep in enumerate(self.keep):
            tensors |= {f"keep/{i}/{name}": index.to(torch.int32) for name, index in keep.items()}
        about = {
            "format": _FORMAT,
            "config": dataclasses.asdict(self.config),
            "encoder": self.encoder,
            "scale": self.scale,
            "tilt": self.tilt,
            "history": list(self.history),
            "digest": digest(self.space.units),
            "costs": [u.cost for u in self.space.units],
            "total": self.space.total,
        }
        save_tensors(path, tensors, about)

    @classmethod
    def load(cls, path: Path, units: Sequence[Any], order: tuple[int, ...]) -> Router:
        """What `save` wrote. units, order: of the dense denoiser's space.

        Raises FormatError, one line, for anything else and for the router of another model.
        """
        tensors, about = load_tensors(path)
        if about.get("format") != _FORMAT or "costs" not in about:
            raise FormatError(f"{path} holds no router of format {_FORMAT}")
        if about["digest"] != digest(units):
            raise FormatError(f"{path} is the router of another model: train one for this one")
        priced = [replace(u, cost=c) for u, c in zip(units, about["costs"], strict=True)]
        config = AptpConfig(**about["config"])
        keep = [
            {u.name: tensors[f"keep/{i}/{u.name}"].long() for u in priced}
            for i in range(len(tensors["logits"]))
        ]
        return cls(
            config=config,
            space=Space(tuple(priced), order, about["total"]),
            encoder=about["encoder"],
            scale=about["scale"],
            tilt=about["tilt"],
            keep=tuple(keep),
            history=tuple(about["history"]),
            **{name: tensors[name] for name in _TENSORS},
        )


_TENSORS = ("weight", "intercept", "mean", "logits", "shares", "prices", "usage")


def _stacked(gates: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([g[name] for g in gates]) for name in gates[0]}


class Predictor(nn.Module):
    """e = W z + b, W orthogonal by groups at the start (APTP 2406.12042, section 3.2)."""

    def __init__(self, dimension: int, space: Space, generator: torch.Generator) -> None:
        super().__init__()
        self.linear = nn.Linear(dimension, space.width)
        nn.init.zeros_(self.linear.bias)
        sizes = [len(space.order)] if space.order else []
        sizes += [u.size for u in space.units if u.bypass is None]
        for rows in self.linear.weight.split(sizes):
            nn.init.orthogonal_(rows, generator=generator)

    def forward(self, z: Float[Tensor, "b d"]) -> Float[Tensor, "b U"]:
        """The logits of an architecture for each prompt."""
        e: Tensor = self.linear(z)
        return e
