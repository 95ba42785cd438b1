"""Routed pipelines on disk: an ordinary pipeline, a router, and experts as pruned models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from ...engine.checkpoint import read_json, write_json
from ...engine.folder import atomic_folder
from ...errors import ConfigError, FormatError
from ..pipelines import denoiser_of, open_pipeline
from ..pruned_models import dense_skeleton, is_pruned
from .codes import skeleton_space
from .pipeline import AptpPipeline, Mode
from .router import Router

ROUTER = "router.safetensors"
_ABOUT, _EXPERTS, _PIPELINE = "aptp.json", "experts", "pipeline"
_FORMAT = 1


def save(owner: AptpPipeline, folder: Path, mode: Mode) -> None:
    """See `AptpPipeline.save`."""
    attribute, denoiser = denoiser_of(owner.pipe)
    if mode == "shared" and is_pruned(denoiser):
        raise ConfigError("there is no dense denoiser to share: save with mode exported")
    with atomic_folder(folder) as temporary:
        about = {"format": _FORMAT, "mode": mode, "experts": len(owner.router.keep)}
        write_json(temporary / _ABOUT, {**about, "denoiser": attribute})
        owner.router.save(temporary / ROUTER)
        if mode == "shared":
            owner.pipe.save_pretrained(temporary / _PIPELINE)
            return
        for i in range(len(owner.router.keep)):
            expert: Any = owner.expert(i)
            expert.save_pretrained(temporary / _EXPERTS / str(i))
        # The parts around the denoiser; expert 0 stands where the dense one was.
        owner.pipe.register_modules(**{attribute: owner.expert(0)})
        try:
            owner.pipe.save_pretrained(temporary / _PIPELINE)
        finally:
            owner.pipe.register_modules(**{attribute: denoiser})
        _link_first(temporary, attribute)


def _link_first(folder: Path, attribute: str) -> None:
    """Expert 0 is stored once: in the pipeline, where diffusers looks for a denoiser."""
    for file in (folder / _EXPERTS / "0").iterdir():
        file.unlink()
    (folder / _EXPERTS / "0").rmdir()


def load(folder: Path, *, dtype: str, device: Any, limit: int | None) -> AptpPipeline:
    """See `AptpPipeline.from_pretrained`."""
    if not folder.exists():
        raise ConfigError(f"{folder} does not exist: give a folder that `route train` wrote")
    if not (folder / _ABOUT).is_file():
        raise ConfigError(f"{folder} is no routed pipeline: it has no {_ABOUT}")
    about = read_json(folder / _ABOUT)
    if not isinstance(about, dict) or about.get("format") != _FORMAT:
        raise FormatError(f"{folder / _ABOUT} is not of format {_FORMAT}")
    pipe = open_pipeline(folder / _PIPELINE, dtype=dtype, device=device)
    denoiser = denoiser_of(pipe)[1]
    dense = dense_skeleton(denoiser)
    units, order = skeleton_space(dense, json_config(folder / ROUTER))
    router = Router.load(folder / ROUTER, units, order)
    build = None if about["mode"] == "shared" else _reader(folder, pipe, len(router.keep))
    return AptpPipeline(pipe, router, mode=about["mode"], build=build, limit=limit)


def json_config(path: Path) -> dict[str, Any]:
    """The configuration in a router's file. Raises FormatError."""
    from ...engine.checkpoint import load_tensors

    about = load_tensors(path)[1]
    if not isinstance(about.get("config"), dict):
        raise FormatError(f"{path} holds no router")
    config: dict[str, Any] = about["config"]
    return config


def _reader(folder: Path, pipe: Any, count: int) -> Any:
    first = denoiser_of(pipe)[1]
    kind: Any = type(first)

    def read(index: int) -> nn.Module:
        if index == 0:
            return first
        where = folder / _EXPERTS / str(index)
        if not where.is_dir():
            raise FormatError(f"{where} is missing: the folder holds {count} experts")
        made: nn.Module = kind.from_pretrained(where, torch_dtype=first.dtype).eval()
        return made

    return read
