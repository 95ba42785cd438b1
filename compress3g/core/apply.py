"""Runs a model with gates at its sites: the one place in the package that hooks a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from operator import attrgetter
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization, remove_parametrizations
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..errors import SiteError
from ._layout import CONVOLUTIONS, layout_of
from .masks import Gates
from .units import Cut, Units

Reads = list[tuple[Units, Cut]]


class _Session:
    """The gates of the current forward, and which sites have used them."""

    def __init__(self, units: Sequence[Units], gates: Gates | Callable[[], Gates]) -> None:
        self._sizes = {u.name: u.size for u in units}
        self._draw = gates if callable(gates) else None
        self._gates: Gates | None = None if callable(gates) else self._checked(gates)
        self.fired: set[str] = set()
        self.ran = False

    def begin(self, *_: Any) -> None:
        """A forward of the whole model starts: fresh noise, the same at every site."""
        self.ran = True
        if self._draw is not None:
            self._gates = self._checked(self._draw())

    def gate(self, name: str) -> Tensor:
        if self._gates is None:  # a part of the model runs by itself
            assert self._draw is not None
            self._gates = self._checked(self._draw())
        return self._gates[name]

    def _checked(self, gates: Gates) -> Gates:
        for name, size in self._sizes.items():
            if name not in gates:
                raise SiteError(f"units {name!r} have no gate: give one multiplier for each")
            shape = tuple(gates[name].shape)
            if len(shape) not in (1, 2) or shape[-1] != size:
                raise SiteError(
                    f"gate of {name!r} has shape {shape}, need ({size},) or (batch, {size})"
                )
        return gates

    def multiplier_at(self, name: str, reads: Reads) -> Callable[[Tensor, int], Tensor]:
        """What a reader's input is multiplied by, laid along its features."""

        def multiplier(x: Tensor, dim: int) -> Tensor:
            self.fired.add(name)
            m = self.multiplier(reads, x.shape[dim]).to(x.dtype)
            shape = [1] * x.dim()
            if m.dim() == 2:
                m, shape[0] = _rows(m, x, name), x.shape[0]
            shape[dim] = x.shape[dim]
            return m.view(shape)

        return multiplier

    def multiplier(self, reads: Reads, features: int) -> Tensor:
        """One number per input feature of a reader: (features,) or (batch, features)."""
        gates = [(cut, self.gate(u.name).float()) for u, cut in reads]
        rows = max((len(g) for _, g in gates if g.dim() == 2), default=0)
        parts, at = [], 0
        for cut, g in gates:
            g = g.expand(rows, -1) if rows and g.dim() == 1 else g
            wide = g.repeat_interleave(cut.chunk, -1) if cut.chunk > 1 else g
            parts.append(F.pad(wide, (cut.offset - at, 0), value=1.0) if cut.offset > at else wide)
            at = cut.offset + wide.shape[-1]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
        return F.pad(whole, (0, features - at), value=1.0) if at < features else whole


def _feature_dim(module: nn.Module, x: Tensor) -> int:
    """Dimension of a reader's input along which its weight's columns run."""
    spatial = len(module.kernel_size) if isinstance(module, CONVOLUTIONS) else 0
    return x.dim() - 1 - spatial


def _rows(g: Tensor, x: Tensor, site: str) -> Tensor:
    """Gates per sample, repeated when x holds their batch r times."""
    if x.shape[0] % len(g):
        raise SiteError(
            f"{site}: gates for a batch of {len(g)} meet an input of shape {tuple(x.shape)}: the "
            "batch must be a multiple"
        )
    return g.repeat(x.shape[0] // len(g), *[1] * (g.dim() - 1))


def _site_hook(name: str, multiplier: Callable[[Tensor, int], Tensor | None]) -> Callable[..., Any]:
    """A forward pre-hook that multiplies a reader's input."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        key: Any = 0
        if not (args and isinstance(args[0], Tensor)):
            key = next((k for k, v in kwargs.items() if isinstance(v, Tensor)), None)
            if key is None:
                raise SiteError(f"{name} was called without a tensor: nothing to gate")
        x = args[0] if key == 0 else kwargs[key]
        m = multiplier(x, _feature_dim(module, x))
        if m is None:
            return None
        return ((x * m, *args[1:]), kwargs) if key == 0 else (args, {**kwargs, key: x * m})

    return hook


def readers(units: Sequence[Units]) -> dict[str, Reads]:
    """Reads by module, in the order of their columns."""
    table: dict[str, Reads] = {}
    for u in units:
        for cut in u.reads:
            table.setdefault(cut.module, []).append((u, cut))
    return {name: sorted(reads, key=lambda r: r[1].offset) for name, reads in table.items()}


def skipped(u: Units, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What the bypassed module returns when it is absent. Raises SiteError when none is known."""
    if u.skip is not None:
        return u.skip(args, kwargs)
    if args and isinstance(args[0], Tensor):
        return args[0]
    raise SiteError(f"{u.bypass} gets no positional tensor: give units {u.name!r} a `skip`")


def _bypass_hook(session: _Session, u: Units) -> Callable[..., Any]:
    """out = skip + g (out - skip), leaf by leaf."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
        session.fired.add(str(u.bypass))
        leaves, spec = tree_flatten(out)
        around, shape = tree_flatten(skipped(u, args, kwargs))
        if len(leaves) != len(around):
            raise SiteError(
                f"{u.bypass} returns {spec} but its skip {shape}: give units {u.name!r} a `skip` "
                "that returns the same"
            )
        mixed = []
        for o, s in zip(leaves, around, strict=True):
            g = session.gate(u.name).squeeze(-1).to(o.dtype)
            if g.dim():
                g = _rows(g, o, u.bypass or "").view(-1, *[1] * (o.dim() - 1))
            mixed.append(s + g * (o - s))
        return tree_unflatten(mixed, spec)

    return hook


class _Columns(nn.Module):
    """A parametrisation that multiplies the columns of a reader's weight."""

    def __init__(self, session: _Session, reads: Reads, dim: int) -> None:
        super().__init__()
        self.session, self.reads, self.dim = session, reads, dim

    def forward(self, weight: Tensor) -> Tensor:
        m = self.session.multiplier(self.reads, weight.shape[self.dim])
        if m.dim() == 2:
            raise SiteError(
                f"{self.reads[0][1].module}: one weight cannot hold gates per sample; use "
                'via="input"'
            )
        return weight * m.to(weight.dtype).view(
            [-1 if d == self.dim else 1 for d in range(weight.dim())]
        )


def _in_order(owner: nn.Module, names: Sequence[str]) -> None:
    """Parameters as they stood: optimisers tell them apart by their order."""
    for name in names:
        owner._parameters[name] = owner._parameters.pop(name)


@contextmanager
def gated(
    model: nn.Module,
    units: Sequence[Units],
    gates: Gates | Callable[[], Gates],
    *,
    via: Literal["input", "weight"] = "input",
    called: nn.Module | None = None,
) -> Iterator[None]:
    """Runs `model` with gates at the sites while the block lasts.

    gates: (n,) shared by the batch, or (b, n), one row per sample; a batch r times as large (as
    classifier-free guidance makes) repeats the rows. A callable is asked once per forward of the
    model: fresh noise per step, the same at every site and in recomputed regions.
    via="input" multiplies what readers are given; via="weight" multiplies their weight's columns,
    for fused kernels that read `.weight` and never call the reader. Bypassed modules return
    skip + g (out - skip) either way.
    called: what is called instead where the model is wrapped: a wrapper's forward may go straight
    to the model's own `forward`, past its hooks (peft's does before 0.21).
    Raises SiteError for gates of the wrong shape, and at exit when the model ran but a site never
    fired: a silent mask is the worst failure of all.
    """
    session = _Session(units, gates)
    with ExitStack() as stack:
        handle = (called or model).register_forward_pre_hook(session.begin)
        stack.callback(handle.remove)
        for u in units:
            if u.bypass is not None:
                module = model.get_submodule(u.bypass)
                hook = module.register_forward_hook(_bypass_hook(session, u), with_kwargs=True)
                stack.callback(hook.remove)
        if via == "input":
            stack.enter_context(watched(model, units, session.multiplier_at))
        for name, reads in readers(units).items() if via == "weight" else ():
            owner = layout_of(model, name).owner
            ((tensor, dim),) = layout_of(model, name).tensors["in"]
            # unsafe skips a trial run, which has no gates yet; shape and type stay as they are.
            stack.callback(_in_order, owner, tuple(owner._parameters))
            columns = _Columns(session, reads, dim)
            register_parametrization(owner, tensor, columns, unsafe=True)
            stack.callback(remove_parametrizations, owner, tensor, leave_parametrized=False)
        yield
    sites = [u.bypass for u in units if u.bypass is not None]
    sites += list(readers(units)) if via == "input" else []
    silent = [site for site in sites if site not in session.fired]
    if session.ran and silent:
        raise SiteError(
            f"{silent[0]} was never called, so its gates did nothing ({len(silent)} such sites): "
            'a fused kernel reads its weight; use via="weight"'
        )


@contextmanager
def watched(
    model: nn.Module,
    units: Sequence[Units],
    multiplier_at: Callable[[str, Reads], Callable[[Tensor, int], Tensor | None]],
) -> Iterator[None]:
    """Shows every reader's input while the block lasts, and multiplies it by what that returns.

    multiplier_at: (reader, its cuts) -> (input, features' dimension) -> multiplier, or None for 1.
    """
    with ExitStack() as stack:
        for name, reads in readers(units).items():
            hook = _site_hook(name, multiplier_at(name, reads))
            module = attrgetter(name)(model)
            if not isinstance(module, nn.Module):
                raise SiteError(f'{name} is a bare parameter and has no input: use via="weight"')
            stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield
