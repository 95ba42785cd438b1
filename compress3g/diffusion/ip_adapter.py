"""IP-Adapters that were trained for the dense model, on a pruned one."""

from __future__ import annotations

from typing import Any

from ..core import Cut, Keep, Units, materialize
from ..errors import ConfigError
from .pipelines import denoiser_of
from .pruned_models import KEY, dense_skeleton, is_pruned, kept_of
from .units import kind_of, units_of


def load_ip_adapter(pipe: Any, *args: Any, **options: Any) -> None:
    """`pipe.load_ip_adapter(...)` for an adapter of the dense model.

    An adapter adds keys and values of an image to those of the words, head by head; those of heads
    that were removed are removed from it. On a dense pipeline nothing is changed.
    Raises ConfigError for a pruned denoiser that is no U-Net: the adapters of transformers add
    their heads to the residual stream, where none may be missing.
    """
    denoiser: Any = denoiser_of(pipe)[1]
    heads: list[Units] = []
    keep: Keep = {}
    if is_pruned(denoiser):
        if not hasattr(denoiser, "attn_processors") or not hasattr(denoiser, "down_blocks"):
            raise ConfigError(
                f"an IP-Adapter cannot be loaded onto {type(denoiser).__name__}: "
                "only onto pruned U-Nets"
            )
        dense = units_of(dense_skeleton(denoiser))  # loading changes what the configuration says
        keep = kept_of(denoiser.config[KEY], dense)
        heads = [u for u in dense if kind_of(u) == "heads" and len(keep[u.name]) < u.size]
    pipe.load_ip_adapter(*args, **options)
    added = [_added(u, denoiser) for u in heads]
    cut = [u for u in added if u.writes]
    materialize(denoiser, cut, {u.name: keep[u.name] for u in cut})


def _added(heads: Units, denoiser: Any) -> Units:
    """The same heads in the adapter alone, which has those of the dense model."""
    name = heads.name.removesuffix(".heads")
    processor = denoiser.get_submodule(name).processor
    writes = tuple(
        Cut(f"{name}.processor.{part}.{i}", "out", heads.reads[0].chunk)
        for part in ("to_k_ip", "to_v_ip")
        for i in range(len(getattr(processor, part, ())))
    )
    return Units(heads.name, heads.size, writes=writes, reads=())
