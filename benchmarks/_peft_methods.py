"""What the methods of Light-PEFT's accuracy benchmark are told, and what its cuts take."""

from __future__ import annotations

from typing import Any

from compress3g.peft import LightPeftConfig

NOTHING: dict[str, Any] = {"attn_ratio": 0, "ffn_ratio": 0, "module_ratio": 0, "rank_ratio": 0}
UNITS: dict[str, Any] = {"module_ratio": 0, "rank_ratio": 0}
ADAPTERS: dict[str, Any] = {"attn_ratio": 0, "ffn_ratio": 0}


def by_layer(**options: Any) -> LightPeftConfig:
    """As the defaults were when most of this was measured; without a refit but where asked for."""
    return LightPeftConfig(**{"attn_scope": "layer", **options})


# What a method that cuts is told; those of the same task and seed start from one estimation.
PUBLISHED: dict[str, Any] = {"criterion": "l1_mask", "rate_after_cut": 1.0}
CUT: dict[str, LightPeftConfig] = {
    "defaults": LightPeftConfig(refit=True),
    "defaults, random": LightPeftConfig(refit=True, attn_scope="global", criterion="random"),
    # Every adapter lives, with a quarter of its ranks.
    "defaults, ranks alone": LightPeftConfig(refit=True, module_ratio=0, rank_ratio=0.75),
    "defaults, random, ranks alone": LightPeftConfig(
        refit=True, criterion="random", attn_scope="global", module_ratio=0, rank_ratio=0.75
    ),
    "ours": by_layer(),
    "ours, refit": by_layer(refit=True),
    "random, refit": by_layer(refit=True, criterion="random"),
    "random": by_layer(criterion="random"),
    "APT": by_layer(),
    "published": by_layer(**PUBLISHED, merge_dropped=False),
    "published, merged": by_layer(**PUBLISHED),
    "ours, discarded": by_layer(merge_dropped=False),
    "ours, 0.4": by_layer(attn_ratio=0.4, ffn_ratio=0.4),
    "random, 0.4": by_layer(attn_ratio=0.4, ffn_ratio=0.4, criterion="random"),
    # Other orders of heads and neurons: `late` by the second half of the estimation.
    "late": by_layer(),
    "ours, taylor": by_layer(criterion="taylor"),
    "ours, l1_mask": by_layer(criterion="l1_mask"),
    # What the rate after the cut and the share of adapters do, for the choice of defaults.
    "ours, rate x 1": by_layer(rate_after_cut=1.0),
    "ours, rate x 4": by_layer(rate_after_cut=4.0),
    "units alone": by_layer(**UNITS),
    "random, units alone": by_layer(**UNITS, criterion="random"),
    "units alone, rate x 1": by_layer(**UNITS, rate_after_cut=1.0),
    "adapters alone, rate x 1": by_layer(**ADAPTERS, rate_after_cut=1.0),
    "ranks alone": by_layer(module_ratio=0, rank_ratio=0.75),
    "random, ranks alone": by_layer(module_ratio=0, rank_ratio=0.75, criterion="random"),
    "ranks alone, rate x 1": by_layer(module_ratio=0, rank_ratio=0.75, rate_after_cut=1.0),
}
# LoRA alone: the adapted layers, the learning rate over the usual, who cuts before the first step.
PLAIN: dict[str, tuple[str, float, str | None]] = {
    "LoRA-all": ("all", 1.0, None),
    "LoRA-qv": ("qv", 1.0, None),
    "LoRA-all, rate x 2": ("all", 2.0, None),
    "torch-pruning": ("all", 1.0, "torch-pruning"),
    "torch-pruning, rate x 2": ("all", 2.0, "torch-pruning"),
    "slimformers": ("all", 1.0, "slimformers"),
}


# What goes in one cut, for the accuracy right after it.
AT_CUT: dict[str, LightPeftConfig] = {
    "nothing": by_layer(**NOTHING),
    "adapters, discarded": by_layer(**ADAPTERS, merge_dropped=False),
    "adapters, merged": by_layer(**ADAPTERS),
    "units by l1_mask": by_layer(**UNITS, criterion="l1_mask"),
    "units by taylor": by_layer(**UNITS, criterion="taylor"),
    "units by fisher": by_layer(**UNITS),
    "all, discarded": by_layer(merge_dropped=False),
    "all, merged": by_layer(),
    "all, merged, refit": by_layer(refit=True),
    "all, merged, refit to 256": by_layer(refit=True, samples=256),
    "heads of all layers, refit": by_layer(attn_scope="global", refit=True),
    "random": by_layer(attn_scope="global", criterion="random"),
    "random, refit": by_layer(attn_scope="global", criterion="random", refit=True),
}
# The same of SmolLM2, whose heads are key-value groups, three in a layer; `neurons for heads`: as
# many parameters.
FEW_HEADS: dict[str, Any] = {"attn_ratio": 0, "ffn_ratio": 0.444}
AT_CUT_SMOLLM2: dict[str, LightPeftConfig] = {
    "nothing": by_layer(**NOTHING),
    "all, merged": by_layer(),
    "all, merged, refit": by_layer(refit=True),
    "all, merged, refit to 256": by_layer(refit=True, samples=256),
    "heads of all layers, refit": by_layer(attn_scope="global", refit=True),
    "neurons for heads, refit": by_layer(**FEW_HEADS, refit=True),
    "heads alone": by_layer(ffn_ratio=0),
    "neurons alone": by_layer(attn_ratio=0),
    "heads of all layers": by_layer(attn_scope="global"),
    "neurons for heads": by_layer(**FEW_HEADS),
}
