"""Tiny random denoisers with guidance, and every scheduler of diffusers that can drive them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from ..core.architectures import dense

_KARRAS: dict[str, Any] = {"use_karras_sigmas": True}
_FLOW: dict[str, Any] = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "DDIM": ("DDIMScheduler", {}),
    "DDIM, noise": ("DDIMScheduler", {}),  # with eta, see `scheduler_step`
    "DDPM": ("DDPMScheduler", {}),
    "Euler": ("EulerDiscreteScheduler", {}),
    "Euler, Karras": ("EulerDiscreteScheduler", _KARRAS),
    "Euler ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "Heun": ("HeunDiscreteScheduler", {}),
    "LMS": ("LMSDiscreteScheduler", {}),
    "PNDM": ("PNDMScheduler", {"skip_prk_steps": True}),
    "PNDM, Runge-Kutta": ("PNDMScheduler", {}),
    "IPNDM": ("IPNDMScheduler", {}),
    "DEIS": ("DEISMultistepScheduler", {}),
    "DPM-Solver++ 2M": ("DPMSolverMultistepScheduler", {}),
    "DPM-Solver++ 3M, Karras": ("DPMSolverMultistepScheduler", {"solver_order": 3, **_KARRAS}),
    "SDE-DPM-Solver++": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "DPM-Solver singlestep": ("DPMSolverSinglestepScheduler", {}),
    "KDPM2": ("KDPM2DiscreteScheduler", {}),
    "KDPM2 ancestral": ("KDPM2AncestralDiscreteScheduler", {}),
    "UniPC": ("UniPCMultistepScheduler", {}),
    "UniPC, flow": ("UniPCMultistepScheduler", _FLOW),
    "SA-Solver": ("SASolverScheduler", {}),
    "LCM": ("LCMScheduler", {}),
    "TCD": ("TCDScheduler", {}),
    "EDM Euler": ("EDMEulerScheduler", {}),
    "EDM DPM-Solver++": ("EDMDPMSolverMultistepScheduler", {}),
    "flow Euler": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    "flow Heun": ("FlowMatchHeunDiscreteScheduler", {}),
}
DENOISERS = {
    "UNet": "UNet2DConditionModel SDXL",
    "SD3": "SD3Transformer2DModel",
    "Flux": "FluxTransformer2DModel",
}
Predict = Callable[[nn.Module, Tensor, Tensor], Tensor]


def scheduler(name: str, steps: int) -> Any:
    """A fresh scheduler at its first step."""
    made = copy.deepcopy(_scheduler(name))
    made.set_timesteps(steps)
    return made


@lru_cache
def _scheduler(name: str) -> Any:
    kind, options = SCHEDULERS[name]
    return getattr(diffusers, kind)(**options)  # seconds for some


@lru_cache
def denoiser(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A frozen model of its own: `dense` is shared with tests that want float32."""
    return copy.deepcopy(dense(DENOISERS[name])).to(dtype).requires_grad_(False)


def noise(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def first_latent(name: str, dtype: torch.dtype = torch.float64) -> Tensor:
    return noise(1, *((6, 4) if name == "Flux" else (4, 8, 8)), seed=2, dtype=dtype)


def predict(name: str, model: nn.Module, z: Tensor, t: Tensor) -> Tensor:
    """What the denoiser says about two rows, without a prompt and with one."""
    dtype = z.dtype
    context, pooled = noise(2, 5, 16, dtype=dtype), noise(2, 16, seed=3, dtype=dtype)
    if name == "UNet":
        added = {"text_embeds": pooled, "time_ids": noise(2, 6, seed=4, dtype=dtype)}
        return model(z, t, context, added_cond_kwargs=added).sample
    common = {
        "hidden_states": z,
        "encoder_hidden_states": context,
        "pooled_projections": pooled,
        "timestep": t.reshape(1).expand(2).to(dtype) / (1000 if name == "Flux" else 1),
    }
    if name == "Flux":
        common |= {"img_ids": torch.zeros(6, 3), "txt_ids": torch.zeros(5, 3)}
    return model(**common).sample


def guided_step(name: str, model: nn.Module, schedule: Any, kind: str) -> Callable[..., Tensor]:
    """step(z, i) as pipelines do it, guidance 3."""

    def step(z: Tensor, i: int) -> Tensor:
        t = schedule.timesteps[i]
        both = torch.cat([z, z])
        if hasattr(schedule, "scale_model_input"):
            both = schedule.scale_model_input(both, t)
        free, told = predict(name, model, both, t).chunk(2)
        more = {"eta": 0.7} if kind == "DDIM, noise" else {}
        return schedule.step(free + 3.0 * (told - free), t, z, **more).prev_sample

    return step
