"""What there is to know of a diffusers pipeline: its denoiser, how to open it, how to call it."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ..errors import ConfigError, FormatError, require

_DENOISERS = ("unet", "transformer")
NEUTRAL = "0"  # a prompt that every pipeline takes: a class number is also a text


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a denoiser as its pipeline made it."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def run(self, denoiser: nn.Module) -> Tensor:
        """The denoiser's output for the same arguments."""
        out = denoiser(*self.args, **{**self.kwargs, "return_dict": False})
        found: Tensor = out[0]
        return found


def denoiser_of(pipe: Any) -> tuple[str, nn.Module]:
    """Attribute and module of what a pipeline calls in every step: ("unet", pipe.unet).

    Raises ConfigError for a pipeline without one.
    """
    for attribute in _DENOISERS:
        module = getattr(pipe, attribute, None)
        if isinstance(module, nn.Module):
            return attribute, module
    raise ConfigError(
        f"{type(pipe).__name__} has no denoiser that is known ({' or '.join(_DENOISERS)}): "
        "compress3g.diffusion.pipelines.denoiser_of is where its attribute must be named"
    )


def open_pipeline(
    folder: Path | str, *, dtype: str = "float32", device: str | torch.device = "cpu"
) -> Any:
    """The pipeline in a folder, pruned or not, ready to be called.

    Raises ConfigError for what is no pipeline folder, FormatError when a pruned one was edited.
    """
    diffusers = require("diffusers", extra="diffusion", purpose="diffusion pipelines")
    folder = Path(folder)
    if not folder.exists():
        raise ConfigError(f"{folder} does not exist: give the folder of a diffusers pipeline")
    if not (folder / "model_index.json").is_file():
        raise ConfigError(f"{folder} is no diffusers pipeline: it has no model_index.json")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # newer versions call it dtype
            pipe = diffusers.DiffusionPipeline.from_pretrained(
                folder, torch_dtype=getattr(torch, dtype), local_files_only=True
            )
    except (ConfigError, FormatError):
        raise
    except (
        SafetensorError, OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError,
    ) as error:  # fmt: skip
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"{folder} cannot be loaded: {reason}") from None
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def generate(
    pipe: Any,
    prompts: Sequence[str],
    *,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    output: str = "pt",
) -> Any:
    """Images (n, c, h, w) in [0, 1] that the pipeline makes of the prompts, latents, or PIL images.

    Every image has a generator of its own, seed + its index, and does not depend on its neighbours.
    Pipelines conditioned on classes take their numbers as prompts. Raises ConfigError when a prompt
    cannot be used.
    """
    options = call_options(pipe, prompts, seed=seed, steps=steps, guidance=guidance, output=output)
    if output == "latent" and "class_labels" in options:
        return _undecoded(pipe, options)
    with torch.no_grad():
        made = pipe(**options).images
    if isinstance(made, np.ndarray):  # DiT's pipeline knows no tensors
        return torch.from_numpy(made).permute(0, 3, 1, 2)
    return made


def call_options(
    pipe: Any,
    prompts: Sequence[str],
    *,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    output: str = "pt",
) -> dict[str, Any]:
    """What `generate` calls the pipeline with. Raises ConfigError when a prompt cannot be used."""
    accepted = inspect.signature(pipe.__call__).parameters
    options: dict[str, Any] = {
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "generator": [torch.Generator().manual_seed(seed + i) for i in range(len(prompts))],
        "output_type": output,
    }
    if "prompt" in accepted:
        options["prompt"] = list(prompts)
    elif "class_labels" in accepted:
        options["class_labels"] = _classes(prompts)
    else:
        raise ConfigError(f"{type(pipe).__name__} takes neither prompts nor classes")
    # PixArt and Sana round sizes to those of their own models, and stop at any other model's.
    options["use_resolution_binning"] = False
    options = {k: v for k, v in options.items() if v is not None and k in accepted}
    return options


def _undecoded(pipe: Any, options: dict[str, Any]) -> Tensor:
    """Latents of a pipeline that always decodes them, DiT's: what its autoencoder is given."""
    decode, given = pipe.vae.decode, []

    def look(latents: Tensor, *args: Any, **kwargs: Any) -> Any:
        given.append(latents)
        return decode(latents, *args, **kwargs)

    pipe.vae.decode = look
    try:
        with torch.no_grad():
            pipe(**options)
    finally:
        del pipe.vae.decode
    return torch.cat(given) * float(pipe.vae.config.scaling_factor)


def _classes(prompts: Sequence[str]) -> list[int]:
    try:
        return [int(p) for p in prompts]
    except ValueError:
        wrong = next(p for p in prompts if not p.strip().isdigit())
        raise ConfigError(f"{wrong!r} is no class: this pipeline takes class numbers") from None


@contextmanager
def recording(pipe: Any) -> Iterator[list[Call]]:
    """Collects the calls of a pipeline's denoiser while the block lasts."""
    denoiser = denoiser_of(pipe)[1]
    own, forward = vars(denoiser).get("forward"), denoiser.forward
    calls: list[Call] = []

    def record(*args: Any, **kwargs: Any) -> Any:
        calls.append(Call(args, kwargs))
        return forward(*args, **kwargs)

    denoiser.forward = record
    try:
        yield calls
    finally:
        del denoiser.forward
        if own is not None:  # offloading puts one there
            denoiser.forward = own


def a_call(
    pipe: Any, prompts: Sequence[str], *, guidance: float | None = None
) -> Callable[[], object]:
    """A function that repeats the first call which the pipeline makes of its denoiser."""
    with recording(pipe) as calls:
        generate(pipe, prompts, steps=1, guidance=guidance, output="latent")
    denoiser, call = denoiser_of(pipe)[1], calls[0]

    def again() -> object:
        with torch.inference_mode():
            return call.run(denoiser)

    return again


def read_prompts(file: Path) -> list[str]:
    """The lines of a text file that are not empty. Raises ConfigError when there are none."""
    try:
        lines = [line.strip() for line in Path(file).read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file} is no text file in UTF-8") from None
    found = [line for line in lines if line]
    if not found:
        raise ConfigError(f"{file} has no prompt: write one per line")
    return found
