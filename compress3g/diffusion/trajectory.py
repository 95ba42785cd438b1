"""The gradient of the last latent, in memory that does not grow with the number of steps.

Time-step checkpointing (EcoDiff 2412.02852, section 3.3): the first pass keeps the latents and
what the scheduler remembers, the backward pass runs one step at a time again, the last one first.
Here it is exact for schedulers that remember tensors between steps, too: the gradient goes through
what they remember as it goes through the latent.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.autograd.function import once_differentiable

from ..errors import ConfigError
from ..profile import measure_memory

Step: TypeAlias = Callable[[Tensor, int], Tensor]
Latent: TypeAlias = Float[Tensor, "..."]
Path: TypeAlias = tuple[Any, ...]  # object, attribute, then keys and positions in containers

_CONTAINERS = (list, tuple, dict, collections.deque)
_AUTO_SHARE = 0.8  # of the free memory that keep_last="auto" plans with


def rollout(
    step: Step,
    z: Latent,
    *,
    steps: int,
    inputs: Sequence[Tensor] = (),
    state: Sequence[object] = (),
    generators: Sequence[Generator] = (),
    keep_last: int | Literal["auto"] = 0,
    offload_latents: bool = False,
) -> Latent:
    """The latent after step(z, 0) to step(z, steps - 1), differentiable in z and `inputs`.

    The backward pass needs the memory of one step, whatever their number, and equals plain
    backpropagation bit for bit where the arithmetic is deterministic. It costs 2F + B (F a forward,
    B a backward pass of all steps) instead of F + B. Everything `step` depends on (gates, train
    mode, adapters) must be then what it was now; gradients of gradients do not exist.

    inputs: every other tensor that gradients are wanted for, parameters or not; those that `step`
    uses and that are not named here get none.
    state: objects that `step` reads and changes, a scheduler above all: their attributes are put
    back before a step is run again, and as they were after the backward pass.
    generators: those that `step` draws from; the global ones of the CPU and z's device are known.
    keep_last: so many of the last steps keep their graph from the first pass, which saves their
    second one and costs the memory of each; "auto" takes what fits in the free memory.
    offload_latents: what is stored between steps waits in the CPU's (pinned) memory.
    Raises ConfigError for less than one step, or a negative `keep_last`.

    >>> w = torch.tensor(0.5, requires_grad=True)
    >>> rollout(lambda z, i: w * z, torch.ones(1), steps=3, inputs=[w]).backward()
    >>> w.grad  # of w^3
    tensor(0.7500)
    """
    if steps < 1:
        raise ConfigError(f"a trajectory has at least one step, got {steps}")
    if keep_last != "auto" and keep_last < 0:
        raise ConfigError(f"keep_last {keep_last} is negative: give a number of steps, or 'auto'")
    wanted = [x for x in inputs if x.requires_grad]
    recording = Recording(step, state=state, generators=generators, offload=offload_latents)
    if not torch.is_grad_enabled() or not (z.requires_grad or wanted):
        return _plain(step, z, range(steps))
    if keep_last == "auto":
        keep_last = _affordable(recording, z)
    first = max(0, steps - keep_last)
    if first:
        z, *remembered = _Rollout.apply(recording, first, keep_last > 0, z, *wanted)  # type: ignore[no-untyped-call]
        recording.place(remembered)
    z = _plain(step, z, range(first, steps))
    if first < steps:
        # What the scheduler remembers would hold the graph of the steps that kept it.
        recording.detach()
    return z


def _plain(step: Step, z: Tensor, indices: range) -> Tensor:
    for i in indices:
        z = step(z, i)
    return z


@dataclass(slots=True)
class _Stored:
    """A copy of a tensor; the same object in all snapshots between two changes of it."""

    copy: Tensor
    device: torch.device

    def load(self) -> Tensor:
        return self.copy.to(self.device, non_blocking=True)


@dataclass(slots=True)
class _Snapshot:
    """Before one step: the latent, the attributes of all state objects, random states."""

    latent: _Stored
    attributes: list[dict[str, Any]]  # tensors in it are _Stored
    random: list[Tensor]


class Recording:
    """A trajectory run without a graph, any step of which can be run again.

    latents: those before every step, from `run`.
    """

    def __init__(
        self,
        step: Step,
        *,
        state: Sequence[object] = (),
        generators: Sequence[Generator] = (),
        offload: bool = False,
    ) -> None:
        self.step, self.state, self.generators = step, tuple(state), tuple(generators)
        self._offload = offload
        self._snapshots: list[_Snapshot] = []
        # Live tensors of the state by identity: (tensor, version, copy). They are held, so that no
        # other tensor can take their identity.
        self._known: dict[int, tuple[Tensor, int, _Stored]] = {}
        self._changing: set[Path] = set()

    def __len__(self) -> int:
        return len(self._snapshots)

    @torch.no_grad()
    def run(self, z: Latent, steps: int) -> Latent:
        """The latent after `steps` steps."""
        self._autocast = _autocast(z.device.type)
        self._device = z.device
        with self._autocast():
            for i in range(steps):
                self._snapshots.append(self._take(z))
                z = self.step(z, i)
        self._find_changes()
        return z

    def latent(self, i: int) -> Latent:
        """The latent before step i."""
        return self._snapshots[i].latent.load()

    def again(self, i: int) -> Latent:
        """The latent before step i, with state and random numbers as they were then."""
        snapshot = self._snapshots[i]
        self._restore(snapshot, {})
        return snapshot.latent.load()

    def remembered(self) -> dict[Path, Tensor]:
        """Floating-point tensors in the state that steps change, as they are now."""
        found: dict[Path, Tensor] = {}
        for k, owner in enumerate(self.state):
            for path, value in _walk(vars(owner), (k,)):
                if isinstance(value, Tensor) and value.is_floating_point():
                    found[path] = value
        return {path: t for path, t in found.items() if path in self._changing}

    def place(self, tensors: Sequence[Tensor]) -> None:
        """Puts tensors where `remembered` found theirs."""
        if tensors:
            new = dict(zip(self.remembered(), tensors, strict=True))
            self._map(lambda path, value: new.get(path, value))

    def detach(self) -> None:
        """Cuts the state's tensors from any graph."""
        self._map(lambda path, v: v.detach() if isinstance(v, Tensor) and v.grad_fn else v)

    def gradients(
        self, g: Tensor, remembered: dict[Path, Tensor], inputs: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor | None]]:
        """Of the first latent and of `inputs`, from those of the last latent and of the state.

        Steps are let go as they are done: this works once.
        """
        now = self._take(g)  # of which the latent is no use
        totals: list[Tensor | None] = [None] * len(inputs)
        while self._snapshots:
            snapshot = self._snapshots.pop()
            leaves = {
                p: t.load().detach().requires_grad_() for p, t in self._leaves(snapshot).items()
            }
            z = snapshot.latent.load().detach().requires_grad_()
            with torch.enable_grad(), self._autocast():
                self._restore(snapshot, leaves)
                out = self.step(z, len(self._snapshots))
            ends = self.remembered()
            pairs = [(out, g), *((ends[p], s) for p, s in remembered.items() if p in ends)]
            pairs = [(end, grad) for end, grad in pairs if end.requires_grad]
            found: Sequence[Tensor | None] = [None] * (1 + len(inputs) + len(leaves))
            if pairs:
                found = torch.autograd.grad(
                    [end for end, _ in pairs],
                    [z, *inputs, *leaves.values()],
                    [grad for _, grad in pairs],
                    allow_unused=True,
                )
            g = torch.zeros_like(z) if found[0] is None else found[0]
            totals = [_plus(a, b) for a, b in zip(totals, found[1:], strict=False)]
            state = zip(leaves, found[1 + len(inputs) :], strict=True)
            remembered = {path: s for path, s in state if s is not None}
        self._restore(now, {})
        grads = zip(inputs, totals, strict=True)
        return g, [None if total is None else total.to(x.dtype) for x, total in grads]

    def _take(self, z: Tensor) -> _Snapshot:
        known, self._known = self._known, {}
        attributes = []
        for owner in self.state:
            attributes.append(_mapped(vars(owner), (), lambda _, v: self._stored(v, known)))
        return _Snapshot(self._store(z.detach()), attributes, self._random(z.device))

    def _stored(self, value: Any, known: dict[int, tuple[Tensor, int, _Stored]]) -> Any:
        if isinstance(value, np.ndarray):
            return value.copy()
        if not isinstance(value, Tensor):
            return value
        held, version, stored = known.get(id(value), (None, -1, None))
        if held is None or version != value._version or stored is None:
            # A copy: some schedulers add to what they remember in place.
            stored = self._store(value.detach().clone())
        self._known[id(value)] = (value, value._version, stored)
        return stored

    def _store(self, value: Tensor) -> _Stored:
        if self._offload and value.device.type != "cpu":
            host = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
            return _Stored(host.copy_(value, non_blocking=value.is_cuda), value.device)
        return _Stored(value, value.device)

    def _random(self, device: torch.device) -> list[Tensor]:
        states = [torch.get_rng_state(), *(g.get_state() for g in self.generators)]
        if device.type != "cpu":
            states.append(torch.get_device_module(device).get_rng_state(device))
        return states

    def _restore(self, snapshot: _Snapshot, leaves: dict[Path, Tensor]) -> None:
        for k, (owner, saved) in enumerate(zip(self.state, snapshot.attributes, strict=True)):
            live = dict(_walk(vars(owner), (k,)))

            def loaded(path: Path, value: Any, live: dict[Path, Any] = live) -> Any:
                if not isinstance(value, _Stored):
                    return value
                if path in leaves:
                    return leaves[path].clone()  # in-place arithmetic is forbidden on leaves
                held = self._known.get(id(live.get(path)))
                return held[0] if held is not None and held[2] is value else value.load().clone()

            attributes = _mapped(saved, (k,), loaded)
            vars(owner).clear()
            vars(owner).update(attributes)
        cpu, *others = snapshot.random
        torch.set_rng_state(cpu)
        for generator, state in zip(self.generators, others, strict=False):
            generator.set_state(state)
        if len(others) > len(self.generators):
            torch.get_device_module(self._device).set_rng_state(others[-1], self._device)

    def _find_changes(self) -> None:
        """Paths of tensors that are not the same before all steps and now."""
        every = [self._paths(s.attributes) for s in self._snapshots]
        now = self._take(torch.empty(0))
        every.append(self._paths(now.attributes))
        for before, after in itertools.pairwise(every):
            self._changing |= {
                p for p in before.keys() | after.keys() if before.get(p) is not after.get(p)
            }

    def _paths(self, attributes: Sequence[dict[str, Any]]) -> dict[Path, _Stored]:
        pairs = ((p, v) for k, saved in enumerate(attributes) for p, v in _walk(saved, (k,)))
        return {path: value for path, value in pairs if isinstance(value, _Stored)}

    def _leaves(self, snapshot: _Snapshot) -> dict[Path, _Stored]:
        stored = self._paths(snapshot.attributes)
        return {
            p: t for p, t in stored.items() if p in self._changing and t.copy.is_floating_point()
        }

    def _map(self, change: Callable[[Path, Any], Any]) -> None:
        for k, owner in enumerate(self.state):
            vars(owner).update(_mapped(vars(owner), (k,), change))


class _Rollout(torch.autograd.Function):
    """Steps without a graph; with `more` also what the state remembers after them."""

    @staticmethod
    def forward(
        ctx: Any, recording: Recording, steps: int, more: bool, z: Tensor, *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        out = recording.run(z, steps)
        remembered = recording.remembered() if more else {}
        # Not ctx.save_for_backward: gradients are wanted for the very tensors that `step` uses.
        ctx.recording, ctx.inputs, ctx.paths = recording, inputs, list(remembered)
        return out.clone(), *(t.clone() for t in remembered.values())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor, *state: Tensor) -> tuple[Tensor | None, ...]:
        if not len(ctx.recording):
            raise ConfigError("backward a second time: a rollout lets its steps go; run it again")
        remembered = dict(zip(ctx.paths, state, strict=True))
        first, grads = ctx.recording.gradients(g, remembered, ctx.inputs)
        return None, None, None, first, *grads


def _plus(total: Tensor | None, more: Tensor | None) -> Tensor | None:
    """Sums of half-precision gradients are kept in float32."""
    if more is None:
        return total
    if more.dtype in (torch.float16, torch.bfloat16):
        more = more.float()
    return more if total is None else total + more


def _walk(value: Any, path: Path) -> list[tuple[Path, Any]]:
    """Everything in nested containers that is not one, with its path."""
    if isinstance(value, dict) and type(value) is dict:
        return [pair for k, v in value.items() for pair in _walk(v, (*path, k))]
    if type(value) in _CONTAINERS:
        return [pair for k, v in enumerate(value) for pair in _walk(v, (*path, k))]
    return [(path, value)]


def _mapped(value: Any, path: Path, change: Callable[[Path, Any], Any]) -> Any:
    """A copy of nested containers with every other value changed."""
    if type(value) is dict:
        return {k: _mapped(v, (*path, k), change) for k, v in value.items()}
    if type(value) is collections.deque:
        parts = (_mapped(v, (*path, k), change) for k, v in enumerate(value))
        return collections.deque(parts, value.maxlen)
    if type(value) in (list, tuple):
        return type(value)(_mapped(v, (*path, k), change) for k, v in enumerate(value))
    return change(path, value)


def _autocast(kind: str) -> Callable[[], AbstractContextManager[Any]]:
    """Makes contexts like the present one, without its cache.

    Casts of weights that were cached without a graph would have no gradient later.
    """
    enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    return lambda: torch.autocast(kind, dtype, enabled=enabled, cache_enabled=False)


def _affordable(recording: Recording, z: Tensor) -> int:
    """Steps whose graphs fit in the free memory beside the one that every backward pass needs."""
    before = recording._take(z)
    recording._device = z.device
    with torch.enable_grad():
        each = measure_memory(lambda: recording.step(z.detach().requires_grad_(), 0)).saved
    recording._restore(before, {})
    return max(0, int(_AUTO_SHARE * _free(z.device) / max(1, each or 0)) - 1)


def _free(device: torch.device) -> int:
    """Bytes that can be had on a device."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":") for line in file)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return 0
