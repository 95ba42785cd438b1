"""Prunes any Hugging Face transformer whose sites are known: score, select, materialise."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError

from ..core import Budget, Gates, Keep, Units, materialize, price, select
from ..criteria import CRITERIA, Criterion, choose, gather, held, score
from ..engine.fields import option
from ..engine.run import seed as seeded
from ..errors import BudgetError, ConfigError, require
from .calibration import Calibration, calibrate, inputs_of, trial
from .depth import drop_layers, droppable, influence, layers_of
from .pretrained import from_pretrained, is_pruned, model_class, read_config
from .refit import add, fitted
from .units import units_of

# On 16 sentences a fit was worse than none, on 2,048 tokens it gained (docs/criteria.md).
_FEW_SAMPLES, _ENOUGH_TOKENS = 16, 2048
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneConfig:
    """Everything that decides what goes, besides the model and the data."""

    criterion: str = option("fisher", f"How units are scored: {', '.join(CRITERIA)}.")
    keep: float = option(0.7, "Share of the heads' and neurons' cost that stays, in (0, 1].")
    budget: Literal["params", "flops"] = option("params", "The cost that --keep is a share of.")
    scope: Literal["auto", "global", "layer", "pq"] = option(
        "auto",
        "Compare units of the whole model, share out evenly per layer, or by the PQ index "
        "(auto: as the criterion's paper does).",
    )
    drop_layers: int = option(0, "Whole layers to drop first, those of least block influence.")
    multiple_of: int = option(1, "Kept neurons of a layer are a multiple of this.")
    refit: bool | None = option(
        None,
        "What stays is fitted to put out what all heads and neurons of the layers left did; "
        "default: where there is data.",
    )
    steps: int = option(100, "Of training, for criteria that train gates (hesso, vib, pdp).")
    samples: int = option(128, "Texts, blocks of text or images to calibrate with.")
    length: int = option(128, "Tokens per sample.")
    batch: int = option(8, "Samples at a time.")
    seed: int = option(0, "Of everything random.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "Of weights and arithmetic; auto: the folder's."
    )

    def __post_init__(self) -> None:
        """Raise ConfigError naming the option for every value nothing can be pruned with."""
        if self.criterion not in CRITERIA:
            raise ConfigError(
                f"--criterion {self.criterion!r} is unknown; known are {', '.join(CRITERIA)}"
            )
        if not 0 < self.keep <= 1:
            raise ConfigError(f"--keep {self.keep} is not a share in (0, 1]")
        for name in ("steps", "samples", "length", "batch", "multiple_of"):
            least = 2 if name == "length" else 1
            if getattr(self, name) < least:
                flag = f"--{name.replace('_', '-')}"
                raise ConfigError(f"{flag} {getattr(self, name)} is less than {least}")
        if self.drop_layers < 0:
            raise ConfigError(f"--drop-layers {self.drop_layers} is negative")


@dataclass(frozen=True, slots=True)
class Pruned:
    """A pruned model and what was done to it.

    kept: units left of each group, and of how many; dropped: layers, named as in the dense model;
    params: of the whole model before and after; share: of the prunable cost that is left;
    refitted_on: samples that what stays of the layers left was fitted on, to put out what they did
    with all heads and neurons, 0 without a refit; what dropped layers did is not made up for.
    """

    model: Any
    kept: dict[str, tuple[int, int]]
    dropped: tuple[str, ...]
    params: tuple[int, int]
    share: float
    refitted_on: int
    seconds: float
    config: PruneConfig

    def to_json(self) -> dict[str, Any]:
        """Everything but the model."""
        return {
            **asdict(self.config),
            "kept": {name: list(pair) for name, pair in self.kept.items()},
            "dropped": list(self.dropped),
            "params_before": self.params[0],
            "params_after": self.params[1],
            "share": self.share,
            "refitted_on": self.refitted_on,
            "seconds": self.seconds,
        }


def open_model(folder: Path, *, dtype: str = "auto", device: torch.device) -> Any:
    """The model of a Hugging Face folder (of one GGUF file, or pruned before), ready to be run.

    Raises ConfigError when there is none.
    """
    transformers = require("transformers", extra="peft", purpose="Hugging Face models")
    gguf = sorted(folder.glob("*.gguf")) if not (folder / "config.json").is_file() else []
    kind: Any = "auto" if dtype == "auto" else getattr(torch, dtype)
    options: dict[str, Any] = {"dtype": kind, "local_files_only": True}
    if len(gguf) == 1:
        make, options["gguf_file"] = transformers.AutoModelForCausalLM, gguf[0].name
    else:
        config = read_config(folder)
        if getattr(config, "quantization_config", None) is not None:
            raise ConfigError(f"{folder} is quantised: prune the unquantised model, then quantise")
        if is_pruned(config):
            model = from_pretrained(folder, device=device)
            return model if dtype == "auto" else model.to(kind)
        make = model_class(config, folder)
    try:
        return make.from_pretrained(folder, **options).to(device).eval()
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"{folder} cannot be loaded: {reason}") from None


def prune(model: Any, folder: Path, data: Path | None, config: PruneConfig) -> Pruned:
    """The model, in place, without what the criterion thinks least of.

    folder: with the tokenizer or image processor; data: what `calibrate` reads, needed by criteria
    that look at data, by --drop-layers and by --budget flops. Raises ConfigError and BudgetError.
    """
    start, criterion = time.monotonic(), CRITERIA[config.criterion]
    units = units_of(model, depth=True)
    calibration = _calibration(model, folder, data, config, criterion)
    example = None if calibration is None else trial(model, calibration)
    flops = example if config.budget == "flops" else None
    before = price(model, [u for u in units if u.bypass is None], flops)
    whole = _cost(before, config.budget)
    params = sum(p.numel() for p in model.parameters())
    dropped = _drop(model, calibration, config)
    units = before
    if dropped:
        units = [u for u in units_of(model, depth=True) if u.bypass is None]
        units = price(model, units, flops)
    budget = Budget(_share(units, whole, config), config.budget)
    scores, gates, means = _scores(model, units, criterion, calibration, budget, config)
    keep = choose(scores, units, budget, criterion, config.scope)
    keep = _multiples(scores, keep, units, config)
    refitted_on = 0
    if calibration is not None and config.refit is not False:
        refitted_on = _refit(model, units, keep, calibration)
        gates = means = None  # the fit is to outputs before the cut, with biases of its own
    kept = {u.name: (len(keep[u.name]), u.size) for u in units}
    left = sum(u.cost[config.budget] * len(keep[u.name]) for u in units)
    materialize(model, units, keep, gates=gates, means=means)
    if calibration is not None:
        trial(model, calibration)  # a model that no longer runs must not be written
    after = sum(p.numel() for p in model.parameters())
    seconds = time.monotonic() - start
    return Pruned(model, kept, dropped, (params, after), left / whole, refitted_on, seconds, config)


def _cost(units: Sequence[Units], kind: str) -> float:
    return sum(u.cost[kind] * u.size for u in units)


def _calibration(
    model: Any, folder: Path, data: Path | None, config: PruneConfig, criterion: Criterion
) -> Calibration | None:
    reasons = {
        f"--criterion {config.criterion}": criterion.needs != "nothing",
        "--drop-layers": config.drop_layers > 0,
        "--budget flops": config.budget == "flops",
        "--refit": bool(config.refit),
    }
    if data is None:
        for reason, needed in reasons.items():
            if needed:
                raise ConfigError(f"{reason} needs --calibrate DATA")
        return None
    made = calibrate(
        model,
        folder,
        data,
        samples=config.samples,
        length=config.length,
        batch=config.batch,
        generator=seeded(config.seed),
    )
    if criterion.signed and not made.signed:
        raise ConfigError(
            f"--criterion {config.criterion} needs a language model's loss, and "
            f"{type(model).__name__} has none: use fisher"
        )
    return made


def _drop(model: Any, calibration: Calibration | None, config: PruneConfig) -> tuple[str, ...]:
    if not config.drop_layers or calibration is None:
        return ()
    names = layers_of(model)
    if config.drop_layers >= len(names):
        raise BudgetError(
            f"--drop-layers {config.drop_layers} of {len(names)}: at least one must stay"
        )
    batches = [inputs_of(batch) for batch in calibration.batches]
    found = influence(model, batches, calibration.valid if calibration.padded else None)
    dropped = droppable(model, found, config.drop_layers)
    drop_layers(model, dropped)
    return tuple(n for n in names if n in dropped)


def _share(units: Sequence[Units], whole: float, config: PruneConfig) -> float:
    """The budget as a share of what the remaining layers cost."""
    least = sum(u.cost[config.budget] for u in units) / whole
    if config.keep < least:
        raise BudgetError(
            f"--keep {config.keep} of {config.budget} is not enough for one head and one neuron in "
            f"each of the layers: the smallest that is feasible is {least + 5e-5:.4f}"
        )
    return min(1.0, config.keep * whole / _cost(units, config.budget))


def _scores(
    model: Any,
    units: Sequence[Units],
    criterion: Criterion,
    calibration: Calibration | None,
    budget: Budget,
    config: PruneConfig,
) -> tuple[Gates, Gates | None, Gates | None]:
    """Scores, multipliers of what stays, and means of what goes."""
    with held(model):
        evidence = gather(
            model,
            units,
            [criterion],
            **({} if calibration is None else _passes(model, criterion, calibration)),
            generator=torch.Generator().manual_seed(config.seed),
            budget=budget,
            steps=config.steps,
        )
        scores, gates = score(criterion, evidence)
    return scores, gates, evidence.seen.mean if criterion.compensate else None


def _passes(model: Any, criterion: Criterion, calibration: Calibration) -> dict[str, Any]:
    """How `gather` runs the calibration data."""
    batches: Sequence[Any] = calibration.batches
    loss: Any = calibration.loss
    if criterion.needs == "steps":
        batches, loss = calibration.lesson(model)
    valid = calibration.valid if calibration.padded else None
    return {"batches": batches, "loss": loss, "run": calibration.run, "valid": valid}


def _refit(model: Any, units: Sequence[Units], keep: Keep, calibration: Calibration) -> int:
    """Fits the readers that lose something, and says on how many samples; 0 where none does.

    To what they put out in `model`, which has lost the layers that are dropped.
    """
    batches = [inputs_of(batch) for batch in calibration.batches]
    found = fitted(model, units, keep, batches)
    for name, more in found.items():
        add(model, name, more)
    samples = sum(len(next(iter(batch.values()))) for batch in batches) if found else 0
    tokens = sum(int(batch["attention_mask"].sum()) for batch in batches if calibration.padded)
    if 0 < samples <= _FEW_SAMPLES and tokens < _ENOUGH_TOKENS:
        _log.warning(
            "what stays was fitted on %d samples only, which may be worse than no fit:"
            " give --calibrate more of them, or --no-refit", samples,
        )  # fmt: skip
    return samples


def _multiples(scores: Gates, keep: Keep, units: Sequence[Units], config: PruneConfig) -> Keep:
    """Neurons rounded to the multiple, within their group's ranking; heads stay as they are."""
    if config.multiple_of == 1:
        return keep
    rounded = dict(keep)
    for u in units:
        if u.writes[0].chunk == 1:
            share = Budget(
                len(keep[u.name]) / u.size, "units", "group", multiple=config.multiple_of
            )
            rounded.update(select(scores, [u], share))
    return rounded
