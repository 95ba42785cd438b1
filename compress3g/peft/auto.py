"""AutoModel classes load cut folders too, once compress3g.peft has been imported."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import torch

from ..errors import ConfigError
from ..transformer import from_pretrained
from ..transformer.pretrained import is_pruned, read_config

_MARK = "_compress3g"
_QUIET = ("dtype", "torch_dtype", "local_files_only", "trust_remote_code", "config")


def register() -> None:
    """Teach transformers' AutoModel classes; nothing happens where transformers is missing.

    A folder without the key "compress3g" in its config.json is loaded as ever.
    """
    try:
        from transformers.models.auto import modeling_auto
        from transformers.models.auto.auto_factory import _BaseAutoModelClass
    except ImportError:
        return
    for kind in list(vars(modeling_auto).values()):
        if isinstance(kind, type) and issubclass(kind, _BaseAutoModelClass):
            own = vars(kind).get("from_pretrained")
            if isinstance(own, classmethod) and not hasattr(own.__func__, _MARK):
                type.__setattr__(kind, "from_pretrained", classmethod(_loader(own.__func__)))


def _loader(plain: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(plain)
    def load(cls: Any, path: Any, *args: Any, **options: Any) -> Any:
        folder = Path(str(path))
        if not (folder / "config.json").is_file() or not is_pruned(read_config(folder)):
            return plain(cls, path, *args, **options)
        return _load(cls, folder, options)

    setattr(load, _MARK, True)
    return load


def _load(cls: Any, folder: Path, options: dict[str, Any]) -> Any:
    for name in options:
        if name not in _QUIET:
            raise ConfigError(f"{folder} was cut by compress3g and loads without {name}=")
    model = from_pretrained(folder)
    wanted = cls._model_mapping.get(type(model.config), None)
    kinds = wanted if isinstance(wanted, (list, tuple)) else (wanted,)
    if type(model) not in kinds:
        raise ConfigError(
            f"{folder} holds a {type(model).__name__}, which {cls.__name__} does not make"
        )
    dtype = options.get("dtype", options.get("torch_dtype"))
    return model if dtype in (None, "auto") else model.to(getattr(torch, str(dtype), dtype))
