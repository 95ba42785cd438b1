"""Cut models as folders: with the adapter merged, beside its base, or as a difference to it."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..engine.checkpoint import load_tensors, read_json, save_tensors, write_json
from ..engine.folder import atomic_folder
from ..errors import ConfigError, CutError, FormatError, require
from ..transformer import from_pretrained as load_whole
from ..transformer import save_pretrained as save_whole
from ..transformer.pretrained import is_pruned, load_tokenizer, model_class, read_config
from .cut import apply_plan
from .light import Light
from .plan import Plan
from .units import adapter_of, base_of

Form: TypeAlias = Literal["merged", "adapter", "delta"]
ADAPTER, PLAN, AWAY = "adapter", "plan.json", "merged.safetensors"
REPORT = "report.json"


def save(folder: Path, model: Any, source: Path | None = None, *, form: Form = "merged") -> None:
    """Writes a cut PeftModel as a folder, whole or not at all, with report.json.

    merged: one small model of plain linear layers; adapter: the small base, and the adapter in
    peft's own format in adapter/; delta: the adapter, what it lost and which units stay, which cut
    the dense base again at load time. Tokenizer files come from `source`.
    Raises ConfigError when the folder exists or the model was not cut.
    """
    light = getattr(model, "light", None)
    if not isinstance(light, Light) or light.plan is None or light.report is None:
        raise ConfigError(f"this {type(model).__name__} was not cut: train it past its estimation")
    about = light.report.to_json()
    if form != "delta":
        write(folder, model, source, about, form=form)
        return
    write_delta(folder, model, source, about, plan=light.plan, away=light.away)


def write_delta(
    folder: Path,
    model: Any,
    source: Path | None,
    about: Mapping[str, Any],
    *,
    plan: Plan,
    away: Mapping[str, Tensor],
) -> None:
    """Writes the adapter of a PeftModel, and how its base is made of a dense one."""
    with atomic_folder(folder) as temporary:
        plan.save(temporary / PLAN)
        save_tensors(temporary / AWAY, dict(away), {"digest": plan.digest})
        _write_config(base_of(model), temporary)
        if source is not None:
            load_tokenizer(source).save_pretrained(temporary)
        _save_adapter(model, temporary / ADAPTER)
        write_json(temporary / REPORT, about)


def write(
    folder: Path,
    model: Any,
    source: Path | None,
    about: Mapping[str, Any],
    *,
    form: Literal["merged", "adapter"] = "merged",
) -> None:
    """Writes a PeftModel whose base is small, and what is known of it, as `save` does."""
    history = model.__dict__.pop("light", None)  # a copy of the model must not copy its history
    try:
        small = copy.deepcopy(model)
    finally:
        if history is not None:
            model.light = history
    small = (small.merge_and_unload() if form == "merged" else small.unload()).eval()
    with atomic_folder(folder) as temporary:
        # Its own folder first: a folder of a model is new or not written.
        save_whole(temporary / "model", small, source, {"method": "lightpeft", "report": about})
        for file in (temporary / "model").iterdir():
            file.rename(temporary / file.name)
        (temporary / "model").rmdir()
        if form == "adapter":
            _save_adapter(model, temporary / ADAPTER)
        write_json(temporary / REPORT, about)


def _write_config(base: Any, folder: Path) -> None:
    base.config.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = [type(base).__name__]
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _save_adapter(model: Any, folder: Path) -> None:
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # a template of peft's, not about this model
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = None
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")


def from_pretrained(
    folder: str | Path, base: str | Path | None = None, *, device: str | torch.device = "cpu"
) -> Any:
    """The model that `save` wrote, in evaluation mode; a PeftModel where an adapter is beside it.

    base: the dense model's folder, for a difference. Raises ConfigError and FormatError.
    """
    folder = Path(folder)
    if (folder / PLAN).is_file():
        return attach(_cut_again(folder, base, device), folder / ADAPTER)
    model = load_whole(folder, device=device)
    return attach(model, folder / ADAPTER) if (folder / ADAPTER).is_dir() else model


def _cut_again(folder: Path, base: str | Path | None, device: str | torch.device) -> Any:
    if base is None:
        raise ConfigError(f"{folder} is a difference to a dense model: give base=FOLDER of that")
    config = read_config(folder)
    if is_pruned(read_config(Path(base))):
        raise ConfigError(f"{base} is pruned: {folder} is a difference to a dense model")
    dense = _dense(folder, Path(base), config).to(device)
    away, _ = load_tensors(folder / AWAY)
    return apply_plan(dense, Plan.load(folder / PLAN), away=away).eval()


def _dense(folder: Path, base: Path, config: Any) -> Any:
    """The dense model that a difference belongs to; its head may be another, the adapter has one.

    Raises ConfigError naming the first other tensor that is missing or has another shape.
    """
    model, info = model_class(config, folder).from_pretrained(
        base,
        config=config,
        local_files_only=True,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    own = set(read_json(folder / ADAPTER / "adapter_config.json").get("modules_to_save") or ())
    odd = {key[0] if isinstance(key, tuple) else key for key in info["mismatched_keys"]}
    for name in sorted(odd | set(info["missing_keys"])):
        if not own & set(name.split(".")):
            raise ConfigError(f"{base} has no {name} of this shape: {folder} belongs to another")
    return model


def attach(base: Any, adapter: Path, *, train: bool = False) -> Any:
    """A PeftModel of a small base and its adapter, for evaluation or, with `train`, to train on.

    Raises CutError naming the first layer that does not fit: a dense base, or another cut's.
    """
    peft = require("peft", extra="peft", purpose="adapters")
    file = adapter / "adapter_model.safetensors"
    try:
        with safe_open(str(file), "pt") as held:
            shapes = {n: tuple(held.get_slice(n).get_shape()) for n in held.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise FormatError(f"{file} cannot be read: {error}") from None
    for name, shape in sorted(shapes.items()):
        part, _, kind = name.removeprefix("base_model.model.").rpartition(".lora_")
        if not part:
            continue
        axis = "in" if kind.startswith("A") else "out"
        try:
            weight = base.get_submodule(part).weight
        except AttributeError:
            raise CutError(f"{type(base).__name__} has no {part}, which {adapter} adapts") from None
        conv = type(base.get_submodule(part)).__name__ == "Conv1D"
        has = weight.shape[(axis == "in") != conv]
        given = shape[1 if axis == "in" else 0]
        if has != given:
            raise CutError(
                f"{part} has {has} {axis}puts, its adapter {given}: {adapter} belongs to a base "
                "that was cut otherwise"
            )
    return peft.PeftModel.from_pretrained(base, adapter, is_trainable=train).train(train)


def merge(source: Path, folder: Path, base: Path | None = None) -> Any:
    """Writes the model of an adapter or delta folder with its adapter merged; that model."""
    model = from_pretrained(source, base)
    if not hasattr(model, "peft_config"):
        raise ConfigError(f"{source} holds no adapter: it is merged already")
    adapter_of(model)
    small = model.merge_and_unload().eval()
    config = read_config(source)
    about = getattr(config, "compress3g", None) or {}
    save_whole(folder, small, source, {k: about[k] for k in ("method", "report") if k in about})
    return small
