"""Architecture codes: from logits to the gates of a denoiser (APTP 2406.12042, section 3.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn

from ...core import Gates, Keep, Units, open_ratio, price, split
from ...errors import BudgetError
from ...profile import count_flops
from ..blocks import blocks_of, units_in_blocks
from ..units import kind_of, units_of
from .config import AptpConfig

_OPEN = 0.5  # what a gate must exceed for its unit to stay


@dataclass(frozen=True, slots=True)
class Places:
    """Where a code's numbers belong, as indices, so that no step of routing goes group by group.

    order, back: the blocks as they stay, and from there to where they stand; members: of each
    group that may not vanish, short ones padded with their first; belongs: whether a number is a
    member, as numbers, for a product; block: that of each number's group, itself where there is
    none, with inside telling which; weight: 1 / sqrt(group's size).
    """

    order: Int[Tensor, "J"]
    back: Int[Tensor, "J"]
    members: Int[Tensor, "G S"]
    belongs: Float[Tensor, "U G"]
    block: Int[Tensor, "U"]
    inside: Bool[Tensor, "U"]
    weight: Float[Tensor, "U"]

    @classmethod
    def of(cls, units: Sequence[Units], order: Sequence[int]) -> Places:
        """Those of a space."""
        starts = dict(zip((u.name for u in units), _starts(units), strict=True))
        longest = max(u.size for u in units)
        each = [starts[u.name] + torch.arange(longest) % u.size for u in units if u.bypass is None]
        members = torch.stack(each) if each else torch.zeros(0, 1, dtype=torch.long)
        of_unit = [starts[u.inside if u.inside is not None else u.name] for u in units]
        sizes = torch.tensor([u.size for u in units])
        nested = torch.tensor([u.inside is not None for u in units])
        stays = torch.tensor(order, dtype=torch.long)
        return cls(
            order=stays,
            back=stays.argsort(),
            members=members,
            belongs=torch.zeros(sum(u.size for u in units), len(members)).scatter_(0, members.T, 1),
            block=torch.tensor(of_unit).repeat_interleave(sizes),
            inside=nested.repeat_interleave(sizes),
            weight=sizes.float().rsqrt().repeat_interleave(sizes),
        )

    def to(self, device: torch.device) -> Places:
        """The same on a device."""
        if self.weight.device == device:
            return self
        return Places(*(getattr(self, f.name).to(device) for f in fields(self)))


def _starts(units: Sequence[Units]) -> list[int]:
    return list(accumulate((u.size for u in units[:-1]), initial=0))


@dataclass(frozen=True, slots=True)
class Space:
    """What a code decides of one denoiser.

    units: blocks first, then the groups inside and outside of them, with their cost in FLOPs;
    order: the blocks' positions among themselves, the one that stays longest first;
    total: FLOPs of a call of the whole denoiser, for as many rows as the costs are for.
    """

    units: tuple[Units, ...]
    order: tuple[int, ...]
    total: float
    places: Places = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Finds `places`."""
        object.__setattr__(self, "places", Places.of(self.units, self.order))

    @property
    def width(self) -> int:
        """Numbers in a code."""
        return sum(u.size for u in self.units)

    @property
    def prunable(self) -> float:
        """FLOPs of all that a code can remove."""
        return sum(u.cost["flops"] * u.size for u in self.units)

    @property
    def least(self) -> float:
        """Share of FLOPs that is left with one unit of each group and one block."""
        return float(self.share(self._least()))

    def share(self, gates: Gates) -> Float[Tensor, "..."]:
        """FLOPs that stay, of all of the denoiser's: 1 - prunable / total (1 - r)."""
        return 1 - self.prunable / self.total * (1 - open_ratio(gates, self.units, "flops"))

    def prunable_share(self, target: float) -> float:
        """p, the share of the prunable cost that stays where `target` of the whole stays.

            p = 1 - (1 - target) total / prunable

        Raises BudgetError naming the least that can stay.
        """
        p = 1 - (1 - target) * self.total / self.prunable
        least = self.least
        if target < least:
            raise BudgetError(
                f"a target of {target:g} cannot be met: with one unit of each group "
                f"{least:.3f} of the multiply-adds are left"
            )
        return p

    def _least(self) -> Gates:
        return {
            u.name: torch.zeros(u.size).index_fill(
                0, torch.tensor([0]), float(u.bypass is None or i == self.order[0])
            )
            for i, u in enumerate(self.units)
        }


def space_of(
    denoiser: nn.Module,
    example: Callable[[nn.Module], Any],
    *,
    depth: bool = True,
    bundle: int = 32,
) -> Space:
    """What a code can decide of a denoiser, priced by one call of it, `example`.

    Neurons go in bundles, at most `bundle` of a group; blocks only with `depth`.
    """
    found = [bundled(u, bundle) if kind_of(u) == "neurons" else u for u in units_of(denoiser)]
    units = units_in_blocks(denoiser, found) if depth else found
    priced = _with_scores_of_heads(denoiser, price(denoiser, units, example), example)
    flops = count_flops(lambda: example(denoiser)).total
    order = _outermost_first(denoiser) if depth else ()
    return Space(tuple(priced), order, float(flops))


def bundled(u: Units, most: int) -> Units:
    """The same units, neighbours tied together, so that there are at most `most`.

    >>> bundled(Units("ff.neurons", 96), 32).size
    32
    """
    size = max(d for d in range(1, min(most, u.size) + 1) if u.size % d == 0)
    times = u.size // size

    return replace(
        u,
        size=size,
        writes=tuple(replace(c, chunk=c.chunk * times) for c in u.writes),
        reads=tuple(replace(c, chunk=c.chunk * times) for c in u.reads),
        attrs=tuple((path, n * times) for path, n in u.attrs),
    )


def unbundled(keep: Keep, space: Space, units: Sequence[Units]) -> Keep:
    """The decision of a space in terms of the denoiser's own units; without those of blocks."""
    sizes = {u.name: u.size for u in space.units}
    found = {}
    for u in units:
        times = u.size // sizes[u.name]
        kept = keep[u.name]
        found[u.name] = (kept[:, None] * times + torch.arange(times)).reshape(-1)
    return found


def _with_scores_of_heads(
    model: nn.Module, units: Sequence[Units], example: Callable[[nn.Module], Any]
) -> list[Units]:
    """Heads pay for their attention scores too, which no projection is charged with.

    They belong to the attention module itself; a block that holds it has been charged with them.
    """
    from torch.utils.flop_counter import FlopCounterMode

    from ...profile.formulas import missing_formulas

    with FlopCounterMode(display=False, custom_mapping=missing_formulas()) as counter:
        example(model)
    root = f"{type(model).__name__}."
    by_name = {
        name.removeprefix(root): float(sum(ops.values()))
        for name, ops in counter.get_flop_counts().items()
    }
    extra: dict[str, float] = {}
    for u in units:
        if kind_of(u) == "heads":
            home = u.name.removesuffix(".heads")
            children = [n for n, _ in model.get_submodule(home).named_children()]
            below = sum(_below(by_name, f"{home}.{child}") for child in children)
            extra[u.name] = max(0.0, by_name.get(home, 0.0) - below)
    inner: dict[str, float] = {}
    for u in units:
        if u.inside is not None:
            inner[u.inside] = inner.get(u.inside, 0.0) + extra.get(u.name, 0.0)

    def more(u: Units) -> float:
        return extra.get(u.name, 0.0) / u.size - inner.get(u.name, 0.0)

    return [replace(u, cost={**u.cost, "flops": u.cost["flops"] + more(u)}) for u in units]


def _below(by_name: dict[str, float], name: str) -> float:
    """FLOPs of a module, or of those in it when it is a list and never called."""
    if name in by_name:
        return by_name[name]
    start = f"{name}."
    direct = [n for n in by_name if n.startswith(start) and "." not in n[len(start) :]]
    return sum(by_name[n] for n in direct)


def _outermost_first(denoiser: nn.Module) -> tuple[int, ...]:
    """Positions of the blocks, from both ends of the network inwards, the last one first.

    So the middle goes first: what is outside sees the latents themselves.
    """
    stages = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}
    names = [str(u.bypass) for u in blocks_of(denoiser)]
    run = sorted(range(len(names)), key=lambda i: (stages.get(names[i].split(".")[0], 0), i))
    order: list[int] = []
    while run:
        order.append(run.pop())
        order += [run.pop(0)] if run else []
    return tuple(order)


@dataclass(frozen=True, slots=True)
class SoftCode:
    """From a code's logits to gates in [0, 1].

    Width: GS(x) = sigmoid((x + g + b) / tau).
    Depth: p = softmax(d), c_j = p_j + ... + p_J for the blocks in the order in which they stay,
    GS(logit(c)): how many blocks stay is learnt, which ones is fixed.
    """

    space: Space
    tau: float = 0.4
    bias: float = 3.0
    noise: str = "logistic"

    @classmethod
    def of(cls, space: Space, config: AptpConfig) -> SoftCode:
        """As configured."""
        return cls(space, config.tau, config.bias, config.noise)

    def gates(
        self, logits: Float[Tensor, "... U"], generator: Generator | None = None
    ) -> dict[str, Tensor]:
        """Soft gates by name; with a generator noisy, as in training."""
        return dict(split(self._soft(logits, generator), self.space.units))

    def vector(self, logits: Float[Tensor, "... U"]) -> Float[Tensor, "... U"]:
        """n(GS(logits)), without noise: what `similarity_vector` makes of `gates`, in one go."""
        return self._similar(self._soft(logits, None))

    def _soft(self, logits: Tensor, generator: Generator | None) -> Tensor:
        x = self._ordered(logits.float())
        if generator is not None:
            x = x + self._drawn(x, generator)
        return self._never_empty(((x + self.bias) / self.tau).sigmoid())

    def _never_empty(self, gates: Tensor) -> Tensor:
        """Where all gates of a group are below 1/2, the largest has 1/2 more: none may vanish."""
        places = self.space.places.to(gates.device)
        # Nearly always none is: a product finds that sooner than the largest of each group.
        if (gates.detach() >= _OPEN).to(gates.dtype).matmul(places.belongs).all():
            return gates
        members = places.members
        groups = gates.detach()[..., members]
        largest, best = groups.max(-1)
        empty = largest < _OPEN
        position = members.expand(groups.shape).gather(-1, best[..., None])[..., 0]
        return gates.scatter_add(-1, position, _OPEN * empty.to(gates.dtype))

    def hard(self, logits: Float[Tensor, "U"], shift: float = 0.0) -> Keep:
        """Indices that stay: gates above 1/2 without noise, with `shift` added to all logits."""
        x = self._ordered(logits.detach().float()) + self.bias + shift
        keep = {}
        for u, part in zip(
            self.space.units, x.split([u.size for u in self.space.units]), strict=True
        ):
            index = (part > 0).nonzero()[:, 0].cpu()
            if u.bypass is None and not len(index):
                index = part.argmax().reshape(1).cpu()
            keep[u.name] = index
        if self.space.order:
            first = self.space.units[self.space.order[0]]
            keep[first.name] = torch.arange(1)
        return keep

    def inverse(self, wanted: Float[Tensor, "U"]) -> Float[Tensor, "U"]:
        """Logits whose gates, without noise, are sigmoid(wanted / tau); of blocks nearly so.

        As many blocks stay, at least one, as are wanted above 0. The last of them in their order
        and the first that goes are as firm as wanted, all others firmer: tail sums are evenly
        spread on both sides, as blocks with the same one would learn, and go, together.
        """
        count = len(self.space.order)
        x = wanted.double() - self.bias
        if not count:
            return x.float()
        tails = x[:count].sigmoid().sort(descending=True).values.tolist()
        stay = max(1, int((wanted[:count] > 0).sum()))
        stays = torch.linspace(1, tails[stay - 1], stay, dtype=x.dtype)
        goes = torch.linspace(0, [*tails, 0.0][stay], count - stay + 1, dtype=x.dtype).flip(0)
        p = -torch.cat([stays, goes]).diff()
        return torch.cat([p.log()[self.space.places.back], x[count:]]).float()

    def _ordered(self, x: Tensor) -> Tensor:
        count = len(self.space.order)
        if not count:
            return x
        places = self.space.places.to(x.device)
        p = x[..., :count].index_select(-1, places.order).softmax(-1)
        stays = p.flip(-1).cumsum(-1).flip(-1).clamp(1e-6, 1 - 1e-6)
        logit = stays.log() - (-stays).log1p()
        return torch.cat([logit.index_select(-1, places.back), x[..., count:]], -1)

    def _drawn(self, x: Tensor, generator: Generator) -> Tensor:
        u = torch.rand(x.shape, generator=generator).to(x.device).clamp(1e-6, 1 - 1e-6)
        if self.noise == "gumbel":
            return -(-u.log()).log()
        return u.log() - (-u).log1p()

    def similarity_vector(self, gates: Gates) -> Float[Tensor, "... U"]:
        """n(a): gates times their block's, over the root of the group's size; unit norm."""
        return self._similar(torch.cat([gates[u.name] for u in self.space.units], -1))

    def _similar(self, gates: Tensor) -> Tensor:
        places = self.space.places.to(gates.device)
        weighted = gates * places.weight
        if self.space.order:
            blocks = torch.where(places.inside, gates.index_select(-1, places.block), 1.0)
            weighted = weighted * blocks
        return F.normalize(weighted, dim=-1)


def as_gates(keep: Keep, space: Space) -> dict[str, Tensor]:
    """Gates of 0 and 1 that do what a decision does."""
    return {u.name: torch.zeros(u.size).index_fill(0, keep[u.name], 1.0) for u in space.units}


def skeleton_space(
    denoiser: nn.Module, config: dict[str, Any]
) -> tuple[list[Units], tuple[int, ...]]:
    """Units, not priced, and order of a space as `space_of` would find them; needs no weights."""
    found = [
        bundled(u, config["bundle"]) if kind_of(u) == "neurons" else u for u in units_of(denoiser)
    ]
    if not config["depth"]:
        return found, ()
    return units_in_blocks(denoiser, found), _outermost_first(denoiser)
