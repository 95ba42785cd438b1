"""A cut model for machines without this package: its folder brings the few lines that load it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..engine.checkpoint import atomic_write, write_json
from ..errors import ConfigError
from ..transformer.pretrained import skeleton

_MODULE = "modeling_compress3g"
_CODE = '''"""{name} whose layers have lost units; written by compress3g, for transformers alone."""

from torch import nn
from transformers import {name}


class Cut{name}({name}):
    def __init__(self, config, *args, **kwargs):
        super().__init__(config, *args, **kwargs)
        for path, shape in config.compress3g["shapes"].items():
            owner, _, leaf = path.rpartition(".")
            module = self.get_submodule(owner)
            old = getattr(module, leaf)
            setattr(module, leaf, nn.Parameter(old.new_empty(shape), old.requires_grad))
        for path, value in config.compress3g["sizes"].items():
            owner, _, leaf = path.rpartition(".")
            setattr(self.get_submodule(owner), leaf, value)
'''
# What AutoModel classes call the architectures that end so.
_AUTO = {
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForTokenClassification": "AutoModelForTokenClassification",
    "ForMaskedLM": "AutoModelForMaskedLM",
    "ForCausalLM": "AutoModelForCausalLM",
    "LMHeadModel": "AutoModelForCausalLM",
    "Model": "AutoModel",
}


def add_remote_code(folder: Path, model: Any) -> None:
    """Puts modeling_compress3g.py beside a merged model, and its name into config.json.

    AutoModel...from_pretrained(folder, trust_remote_code=True) then needs no compress3g. Raises
    ConfigError for tasks without an AutoModel class here, and for layers that count their heads by
    a configuration of their own.
    """
    name = type(model).__name__
    auto = next((a for end, a in _AUTO.items() if name.endswith(end)), None)
    if auto is None:
        raise ConfigError(f"no AutoModel class is known for {name}: load it with compress3g")
    dense = skeleton(model.config, type(model))
    before = {n: list(p.shape) for n, p in dense.named_parameters()}
    after = {n: list(p.shape) for n, p in model.named_parameters()}
    sizes: dict[str, int] = {}
    for path, module in model.named_modules():
        whole = dense.get_submodule(path)
        own = getattr(module, "config", None)
        if own is not None and own.to_dict() != getattr(whole, "config", own).to_dict():
            raise ConfigError(f"{path} has a configuration of its own: load it with compress3g")
        for key, value in vars(module).items():
            if type(value) is int and vars(whole).get(key) != value:
                sizes[f"{path}.{key}"] = value
    config = json.loads((folder / "config.json").read_text())
    config["compress3g"] |= {
        "shapes": {n: shape for n, shape in after.items() if before[n] != shape},
        "sizes": sizes,
    }
    config["auto_map"] = {auto: f"{_MODULE}.Cut{name}"}
    code = _CODE.replace("{name}", name).encode()
    atomic_write(folder / f"{_MODULE}.py", lambda file: file.write(code))
    write_json(folder / "config.json", config)
