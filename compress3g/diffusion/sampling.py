"""A pipeline's denoising loop as a function step(z, i), made by watching its first step."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import Generator, Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint

from ..errors import ConfigError
from .adapters import Adapter, adapter_of
from .pipelines import denoiser_of
from .trajectory import Latent, Recording, rollout

Prompt: TypeAlias = str | int  # an int is a class label


@dataclass(slots=True)
class Replay:
    """The denoising loop of one call of a pipeline, without the pipeline.

    denoiser: looked at anew in every step, so gates and adapters on it count; latent: the first
    one; steps: how often the denoiser is called. Its scheduler and generators are copies.
    """

    denoiser: Any
    adapter: Adapter
    latent: Latent
    steps: int
    halves: bool
    guidance: float | None
    options: Mapping[str, Any]
    arguments: dict[str, Any]  # of the denoiser
    rows: int
    _scheduler: Any
    _more: dict[str, Any]  # of scheduler.step
    _random: Tensor
    scheduler: Any = None
    generators: list[Generator] = field(default_factory=list)
    _step_arguments: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        pipe: Any,
        prompts: Sequence[Prompt],
        *,
        steps: int,
        seed: int | Sequence[int] = 0,
        halves: bool = False,
        call: Mapping[str, Any] | None = None,
    ) -> Replay:
        """The loop that pipe(prompts, num_inference_steps=steps, **call) runs.

        seed: of the prompts' first noise, one each, or that of the first and the next numbers.
        halves: rows with and without the prompt one after the other, and in the backward pass each
        a second time: half the memory of a step, for one more forward pass.
        Runs the pipeline up to its first scheduler step and checks that both come to the same
        numbers. Raises ConfigError for a pipeline or an option that has no adapter.
        """
        return _watch(pipe, prompts, steps=steps, seed=seed, halves=halves, call=call or {})

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> Latent:
        """The first latent; scheduler and generators are those of the first step again."""
        self.scheduler = copy.deepcopy(self._scheduler)
        self._step_arguments, self.generators = _own_generators(self._more)
        return self.latent

    def step(self, z: Latent, i: int) -> Latent:
        """The latent after step i: a denoiser call, guidance, and a step of the scheduler."""
        t = self.scheduler.timesteps[i]
        if self.adapter.doubled and self.guidance is not None:
            half = z[: len(z) // 2]
            z = torch.cat([half, half])
        out = self.predict(z, t)
        result: Tensor = self.scheduler.step(out, t, z, **self._step_arguments, return_dict=False)[
            0
        ]
        return result

    def predict(self, z: Latent, t: Tensor) -> Latent:
        """What the scheduler is given at timestep t: the denoiser's output after guidance."""
        arguments = self.inputs(z, t)
        call = functools.partial(_call, self.denoiser)
        if self.halves and self.guidance is not None:
            parts = [_half(arguments, self.rows, i) for i in (0, 1)]
            run = functools.partial(checkpoint, call, use_reentrant=False)
            out = torch.cat(
                [run(part) if torch.is_grad_enabled() else call(part) for part in parts]
            )
        else:
            out = call(arguments)
        return self.adapter.output(out, self.guidance, self.denoiser, self.options)

    def inputs(self, z: Latent, t: Tensor) -> dict[str, Any]:
        """Arguments of the denoiser."""
        adapter, x = self.adapter, z
        if self.guidance is not None and not adapter.doubled:
            x = torch.cat([z, z])
        if adapter.scaled and hasattr(self.scheduler, "scale_model_input"):
            x = self.scheduler.scale_model_input(x, t)
        x = x.to(self.denoiser.dtype) if adapter.cast else x
        timestep = adapter.timestep(t, len(x), self.denoiser, x)
        return {**self.arguments, adapter.latent: x, "timestep": timestep}

    def run(
        self,
        inputs: Sequence[Tensor] = (),
        *,
        keep_last: int | Literal["auto"] = 0,
        offload_latents: bool = False,
    ) -> Latent:
        """The last latent, differentiable in `inputs` as `rollout` says."""
        with self.seeded():
            return rollout(
                self.step,
                self.start(),
                steps=self.steps,
                inputs=inputs,
                state=[self.scheduler],
                generators=self.generators,
                keep_last=keep_last,
                offload_latents=offload_latents,
            )

    def record(self) -> tuple[Latent, Recording]:
        """The last latent, and the trajectory to it, any step of which can run again."""
        with self.seeded():
            z = self.start()
            recording = Recording(self.step, state=[self.scheduler], generators=self.generators)
            return recording.run(z, self.steps), recording

    @contextmanager
    def seeded(self) -> Iterator[None]:
        """Global random numbers are those of the pipeline's first step; afterwards as before."""
        device = self.latent.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            if device.type == "cpu":
                torch.set_rng_state(self._random)
            else:
                torch.get_device_module(device).set_rng_state(self._random, device)
            yield


def _random_state(device: torch.device) -> Tensor:
    if device.type == "cpu":
        return torch.get_rng_state()
    state: Tensor = torch.get_device_module(device).get_rng_state(device)
    return state


def _call(model: nn.Module, arguments: Mapping[str, Any]) -> Tensor:
    out: Tensor = model(**arguments, return_dict=False)[0]
    return out


def _half(arguments: Mapping[str, Any], rows: int, which: int) -> dict[str, Any]:
    def part(value: Any) -> Any:
        if isinstance(value, Tensor) and value.dim() and len(value) == rows:
            return value.chunk(2)[which]
        return value

    return {name: tree_map(part, value) for name, value in arguments.items()}


def _own_generators(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], list[Generator]]:
    """The same arguments with copies of their generators, and these."""
    made: list[Generator] = []

    def own(value: Any) -> Any:
        if isinstance(value, Generator):
            made.append(Generator(value.device))
            made[-1].set_state(value.get_state())
            return made[-1]
        return value

    return tree_map(own, dict(arguments)), made


class _Seen(Exception):
    """No error: ends the pipeline's call."""


def _watch(
    pipe: Any,
    prompts: Sequence[Prompt],
    *,
    steps: int,
    seed: int | Sequence[int],
    halves: bool,
    call: Mapping[str, Any],
) -> Replay:
    adapter = adapter_of(pipe)
    options = _options(pipe, prompts, steps, seed, call)
    if steps == 1 and not adapter.one_step:
        raise ConfigError(f"one inference step is another loop in {type(pipe).__name__}: give two")
    (_, model), calls = denoiser_of(pipe), []
    found: list[Replay] = []

    def denoised(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        bound = inspect.signature(module.forward).bind(*args, **kwargs)
        out = out[0] if isinstance(out, tuple) else out.sample
        calls.append((dict(bound.arguments), out))

    def stepped(given: Tensor, t: Tensor, z: Tensor, **more: Any) -> None:
        if len(calls) != 1:
            raise ConfigError(
                f"{type(pipe).__name__} calls its denoiser {len(calls)} times per step with these "
                "options: no adapter knows that"
            )
        found.append(_replay(pipe, adapter, calls[0], (given, t, z, more), options, halves))
        raise _Seen

    scheduler, bar = pipe.scheduler, getattr(pipe, "_progress_bar_config", {})
    handle = model.register_forward_hook(denoised, with_kwargs=True)
    # What pipelines look at is the signature: does it take `eta`, a `generator`?
    scheduler.step = functools.wraps(scheduler.step)(stepped)
    pipe.set_progress_bar_config(**{**bar, "disable": True})
    try:
        pipe(**options)
    except _Seen:
        pipe.maybe_free_model_hooks()
        return found[0]
    finally:
        handle.remove()
        del scheduler.step
        pipe.set_progress_bar_config(**bar)
    raise ConfigError(f"{type(pipe).__name__} made no step: nothing to replay")


def _options(
    pipe: Any,
    prompts: Sequence[Prompt],
    steps: int,
    seed: int | Sequence[int],
    call: Mapping[str, Any],
) -> dict[str, Any]:
    if not prompts:
        raise ConfigError("there is no prompt: give at least one")
    if call.get("skip_guidance_layers"):
        raise ConfigError("skip_guidance_layers changes the loop on the way: no adapter knows that")
    if steps < 1:
        raise ConfigError(f"{steps} inference steps: a trajectory has at least one")
    seeds = [seed + i for i in range(len(prompts))] if isinstance(seed, int) else list(seed)
    if len(seeds) != len(prompts):
        raise ConfigError(f"{len(seeds)} seeds for {len(prompts)} prompts: give one each")
    known = inspect.signature(pipe.__call__).parameters
    options = {"num_inference_steps": steps, **call}
    # One each, so that a prompt's noise does not depend on its neighbours.
    options["generator"] = [Generator().manual_seed(s) for s in seeds]
    if "class_labels" in known:
        options["class_labels"] = [p if isinstance(p, int) else pipe.labels[p] for p in prompts]
    else:
        options |= {"prompt": list(prompts), "output_type": "latent"}
    for name in options:
        if name not in known:
            raise ConfigError(f"{type(pipe).__name__} has no option {name!r}")
    return options


def _equal(a: Any, b: Any) -> bool:
    """Bit for bit; NaN equals NaN, since what broken weights say is not the loop's business."""
    a, b = torch.as_tensor(a), torch.as_tensor(b)
    return a.shape == b.shape and torch.allclose(a, b.to(a.dtype), 0.0, 0.0, equal_nan=True)


def _replay(
    pipe: Any,
    adapter: Adapter,
    call: tuple[dict[str, Any], Tensor],
    step: tuple[Tensor, Tensor, Tensor, dict[str, Any]],
    options: Mapping[str, Any],
    halves: bool,
) -> Replay:
    """The loop whose first step was seen; raises ConfigError where it would go another way."""
    (arguments, out), (given, t, z, more) = call, step
    bound = inspect.signature(pipe.__call__).bind(**options)
    bound.apply_defaults()
    rows = len(arguments[adapter.latent])
    scale = float(bound.arguments["guidance_scale"])
    twice = scale > 1 if adapter.doubled else rows == 2 * len(z)
    arguments.pop("return_dict", None)
    more.pop("return_dict", None)
    timesteps = pipe.scheduler.timesteps
    scheduler = copy.copy(pipe.scheduler)
    vars(scheduler).pop("step", None)  # ours, that watches
    replay = Replay(
        denoiser=denoiser_of(pipe)[1],
        adapter=adapter,
        latent=z.detach().clone(),
        steps=min(len(timesteps), getattr(pipe, "_num_timesteps", None) or len(timesteps)),
        halves=halves,
        guidance=scale if twice else None,
        options=bound.arguments,
        arguments=arguments,
        rows=rows,
        _scheduler=copy.deepcopy(scheduler),
        _more=_own_generators(more)[0],
        _random=_random_state(z.device),
    )
    inputs = replay.inputs(z, t)
    pairs = [(inputs[n], arguments[n]) for n in (adapter.latent, "timestep")]
    pairs.append((adapter.output(out, replay.guidance, replay.denoiser, replay.options), given))
    if not all(_equal(a, b) for a, b in pairs):
        raise ConfigError(
            f"{type(pipe).__name__} with these options does more in a step than its adapter: "
            "leave out what you passed in `call`"
        )
    return replay
