"""Pruned Hugging Face models as folders: one line loads them again, bit for bit."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..core import materialize
from ..core.surgery import digest
from ..engine.folder import atomic_folder
from ..engine.weights import distinct_tensors, fill
from ..errors import ConfigError, FormatError, require
from .units import units_of

_FORMAT = 1
_KEY = "compress3g"
_WEIGHTS = "model.safetensors"
# What a tokenizer, an image processor and generation are made of; never weights.
_BESIDE = (
    "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "*.model",
    "*.tiktoken", "chat_template*", "*processor_config.json", "generation_config.json", "LICENSE*",
)  # fmt: skip


def save_pretrained(
    folder: Path, model: Any, source: Path | None = None, about: Mapping[str, Any] | None = None
) -> None:
    """Writes a pruned model as a folder, whole or not at all.

    config.json is that of the dense model with one more key, "compress3g": how many units every
    group has left, and the digest of the dense model's. model.safetensors holds every tensor once,
    buffers that are no part of the state too. Tokenizer and processor files come from `source`.
    about: JSON values that travel along under the same key.
    Raises ConfigError when the folder exists.
    """
    tensors, ties = distinct_tensors(model)
    kept = {u.name: u.size for u in units_of(model)}
    fingerprint = digest(units_of(skeleton(model.config, type(model))))
    with atomic_folder(folder) as temporary:
        model.config.save_pretrained(temporary)
        config = json.loads((temporary / "config.json").read_text())
        config["architectures"] = [type(model).__name__]
        config[_KEY] = {**(about or {}), "format": _FORMAT, "digest": fingerprint, "kept": kept}
        (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        metadata = {"format": "pt", _KEY: json.dumps({"ties": ties})}
        save_file(tensors, temporary / _WEIGHTS, metadata)
        if getattr(model, "generation_config", None) is not None:
            model.generation_config.save_pretrained(temporary)
        if source is not None:
            _copy_beside(Path(source), temporary)


def _copy_beside(source: Path, folder: Path) -> None:
    for pattern in _BESIDE:
        for file in sorted(source.glob(pattern)):
            if file.is_file() and not (folder / file.name).exists():
                shutil.copyfile(file, folder / file.name)
    if next(source.glob("*.gguf"), None) is not None:  # the tokenizer is inside
        load_tokenizer(source).save_pretrained(folder)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder. Raises ConfigError when there is none."""
    transformers = require("transformers", extra="peft", purpose="Hugging Face models")
    gguf = None if (folder / "config.json").is_file() else next(folder.glob("*.gguf"), None)
    options = {} if gguf is None else {"gguf_file": gguf.name}
    try:
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, **options)
    except (ValueError, OSError, TypeError, KeyError, AttributeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"{folder} has no tokenizer that loads: {reason}") from None


def skeleton(config: Any, kind: type[Any]) -> Any:
    """The dense model of a configuration, without weights."""
    with torch.device("meta"):
        return kind(config)


def model_class(config: Any, folder: Path) -> type[Any]:
    """The class a folder's configuration names. Raises ConfigError when transformers has none."""
    transformers = require("transformers", extra="peft", purpose="Hugging Face models")
    names = getattr(config, "architectures", None) or [""]
    kind = getattr(transformers, names[0], None) if names[0] else None
    if kind is None:
        raise ConfigError(
            f"{folder}: config.json names the architecture {names[0]!r}, which transformers "
            f"{transformers.__version__} does not have"
        )
    found: type[Any] = kind
    return found


def read_config(folder: Path) -> Any:
    """A folder's configuration. Raises ConfigError when it is no Hugging Face model folder."""
    transformers = require("transformers", extra="peft", purpose="Hugging Face models")
    if not folder.exists():
        raise ConfigError(f"{folder} does not exist: give the folder of a Hugging Face model")
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{folder} is no Hugging Face model folder: it has no config.json")
    try:
        return transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    except (ValueError, KeyError, TypeError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"{folder / 'config.json'} cannot be used: {reason}") from None


def is_pruned(config: Any) -> bool:
    """Whether `save_pretrained` wrote the folder of this configuration."""
    return isinstance(getattr(config, _KEY, None), dict)


def from_pretrained(folder: str | Path, *, device: str | torch.device = "cpu") -> Any:
    """The model in a folder that `compress3g prune` wrote, in evaluation mode.

    Its dense weights are never allocated. Raises ConfigError for what is no model folder,
    FormatError when it was not pruned here, is damaged, or transformers builds another model.
    """
    folder = Path(folder)
    config = read_config(folder)
    if not is_pruned(config):
        raise FormatError(f"{folder} was not pruned by compress3g: load it with transformers")
    about = getattr(config, _KEY)
    if about.get("format") != _FORMAT:
        raise FormatError(
            f"{folder} has format {about.get('format')}, this version reads {_FORMAT}"
        )
    model = skeleton(config, model_class(config, folder))
    units = units_of(model)
    if about["digest"] != digest(units) or about["kept"].keys() != {u.name for u in units}:
        pairs = itertools.zip_longest(about["kept"], [u.name for u in units])
        there, here = next((p for p in pairs if p[0] != p[1]), ("other sizes", "these"))
        raise FormatError(
            f"{folder} was pruned from another model: it has {there}, this one {here}"
        )
    # Which units stay is decided; the shapes alone depend on how many.
    materialize(model, units, {u.name: torch.arange(about["kept"][u.name]) for u in units})
    tensors, ties = _read(folder / _WEIGHTS, device)
    fill(model, tensors, ties, folder / _WEIGHTS)
    if model.can_generate() and (folder / "generation_config.json").is_file():
        model.generation_config = type(model.generation_config).from_pretrained(folder)
    return model.eval()


def _read(path: Path, device: str | torch.device) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(str(path), "pt", device=str(device)) as file:
            ties: dict[str, str] = json.loads((file.metadata() or {})[_KEY])["ties"]
            return {name: file.get_tensor(name) for name in file.keys()}, ties  # noqa: SIM118
    except FileNotFoundError:
        raise FormatError(f"{path} does not exist") from None
    except KeyError:
        raise FormatError(
            f"{path} was not written by compress3g: its metadata is missing"
        ) from None
    except (SafetensorError, OSError, ValueError) as error:
        raise FormatError(f"{path} is damaged ({error}): prune again") from None
